"""Experts of 8-bit weights: e4m3 with scales, in blocks of 128 x 128 or by the row, tokens quantized as they come."""
import tessera
import torch
import vllm.model_executor.layers.fused_moe.oracle.fp8 as oracle
from vllm.model_executor.layers.quantization.utils.quant_utils import (kFp8Dynamic128Sym, kFp8DynamicTokenSym,
                                                                       kFp8Static128BlockSym, kFp8StaticChannelSym)

from tessera_vllm.experts import TesseraExperts, activation_numbers, options_of, refuse_hook

BLOCK = 128
WIDTH_MULTIPLE = 16  # of widths, for weights of 8 bits
BLOCKS, ROWS = (kFp8Static128BlockSym, kFp8Dynamic128Sym), (kFp8StaticChannelSym, kFp8DynamicTokenSym)
HAS_ROWS = "fp8-channel" in tessera.WeightFormat.__args__


class TesseraFp8Experts(TesseraExperts):
    """What _supports_* and is_supported_config decline stays vLLM's."""

    @staticmethod
    def is_supported_config(cls, moe_config, weight_key, activation_key, activation_format):
        if moe_config.moe_backend != "auto":
            return False, f"kernel does not support a backend that was asked for, {moe_config.moe_backend}"
        supported, reason = TesseraExperts.is_supported_config(cls, moe_config, weight_key, activation_key, activation_format)
        if not supported:
            return supported, reason
        width = moe_config.intermediate_size_per_partition
        for what, extent in (("hidden size", moe_config.hidden_dim), ("intermediate size", width)):
            if extent % WIDTH_MULTIPLE:
                return False, f"kernel does not support {what} {extent}"
        return True, None

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key):
        return (weight_key, activation_key) == BLOCKS or HAS_ROWS and (weight_key, activation_key) == ROWS

    @property
    def expects_unquantized_inputs(self):
        return True  # rows are quantized on their way into the first product

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map,
              a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta, apply_router_weight_on_input):
        """As TesseraExperts.apply; w1, w2 e4m3. hidden_states may be e4m3 with a1q_scale [M, K / 128], or [M, 1], float32."""
        if a2_scale is not None:
            raise ValueError("tessera_vllm: a2_scale: got a scale, expected none: the intermediate is quantized as it is made")
        refuse_hook(self, hidden_states.shape[0])
        if (hidden_states.dtype == torch.float8_e4m3fn) != (a1q_scale is not None):
            raise ValueError(f"tessera_vllm: a1q_scale: got {'none' if a1q_scale is None else 'scales'} for hidden states of "
                             f"{hidden_states.dtype}, expected scales for e4m3 and none else")
        if apply_router_weight_on_input:  # done by who prepared the input
            topk_weights = torch.ones_like(topk_weights)
        options = options_of(activation, activation_numbers(self))
        gated = options.get("gated", True)
        options.update(weight_scales(self.w1_scale, self.w2_scale, w1.shape, w2.shape, gated))
        if a1q_scale is not None:
            options.update(x_scale=a1q_scale.contiguous(), dtype=str(output.dtype).removeprefix("torch."))
        tessera.moe(hidden_states, w1, w2, topk_ids, topk_weights, gate_up_bias=self.w1_bias, down_bias=self.w2_bias,
                    expert_map=expert_map, out=output, **options)


def weight_scales(w1_scale, w2_scale, w1_shape, w2_shape, gated):
    """Keywords of tessera.moe for vLLM's scales, as views: blocks [E, 2 ceil(I/128), ceil(K/128)] (not gated without the 2)
    and [E, ceil(K/128), ceil(I/128)], or of rows [E, 2I, 1] and [E, K, 1]."""
    experts, rows, hidden = w1_shape
    width = w2_shape[2]
    if w1_scale.shape[1] == rows and w1_scale.shape[2] == 1:
        return {"weight_format": "fp8-channel", "gate_up_scale": w1_scale.view(experts, rows),
                "down_scale": w2_scale.view(experts, hidden)}
    parts, blocks, columns = (2 if gated else 1), -(-width // BLOCK), -(-hidden // BLOCK)
    if w1_scale.shape != (experts, parts * blocks, columns):
        raise ValueError(f"tessera_vllm: w1_scale: got shape {list(w1_scale.shape)}, expected {[experts, parts * blocks, columns]}")
    shape = (experts, parts, blocks, columns) if gated else (experts, blocks, columns)
    return {"weight_format": "fp8-block", "gate_up_scale": w1_scale.view(shape), "down_scale": w2_scale}


def enroll():
    """From now on the choice of FP8 experts sees Tessera's before Triton's. Their weights stay as Triton keeps them."""
    theirs = oracle.backend_to_kernel_cls

    def backend_to_kernel_cls(backend):
        classes = theirs(backend)
        return [TesseraFp8Experts, *classes] if backend is oracle.Fp8MoeBackend.TRITON else classes

    if getattr(theirs, "tessera", False):
        return
    backend_to_kernel_cls.tessera = True
    oracle.backend_to_kernel_cls = backend_to_kernel_cls
