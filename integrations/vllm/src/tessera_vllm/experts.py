"""The modular experts of vLLM, computed by tessera.moe."""
from typing import NamedTuple

import tessera
import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.platforms import current_platform

DTYPES = (torch.bfloat16, torch.float16)
LIMITS = tessera.moe_limits()
ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0  # of vLLM's operator swigluoai_and_mul

GATED = {MoEActivation.SILU: "silu", MoEActivation.GELU: "gelu_erf", MoEActivation.GELU_TANH: "gelu_tanh"}
NOT_GATED = {MoEActivation.SILU_NO_MUL: "silu", MoEActivation.GELU_NO_MUL: "gelu_erf",
             MoEActivation.GELU_TANH_NO_MUL: "gelu_tanh", MoEActivation.RELU2_NO_MUL: "relu_squared"}
CLAMPED = (MoEActivation.SWIGLUOAI, MoEActivation.SWIGLUOAI_UNINTERLEAVE)


class ActivationNumbers(NamedTuple):
    """What newer versions call ApplyMoEActivationConfig."""

    clamp_limit: float | None
    alpha: float
    beta: float


def activation_numbers(experts):
    """Of experts of any version: before activation_config there were the numbers of the quantization alone."""
    known = getattr(experts, "activation_config", None)
    if known is not None:
        return known
    config = experts.quant_config
    return ActivationNumbers(config.gemm1_clamp_limit, 1.0 if config.gemm1_alpha is None else config.gemm1_alpha,
                             0.0 if config.gemm1_beta is None else config.gemm1_beta)


def refuse_hook(experts, num_tokens):
    """A hook on the experts' rows, which some versions have, would see nothing here."""
    uses_hook = getattr(experts, "_uses_post_gemm2_hook", None)
    if uses_hook is not None and uses_hook(num_tokens):
        raise ValueError("tessera_vllm: post_gemm2_hook: got one, expected none: the experts' rows are weighted and summed "
                         "by the library")


def options_of(activation, config):
    """Keywords of tessera.moe that say what apply_moe_activation does with this ApplyMoEActivationConfig."""
    if activation in NOT_GATED:
        return {"activation": NOT_GATED[activation], "gated": False}
    if activation is MoEActivation.SWIGLUOAI:
        return {"activation": "clamped_swiglu", "alpha": ALPHA, "beta": BETA, "limit": LIMIT,
                "gate_up_order": "interleaved"}
    if activation is MoEActivation.SWIGLUOAI_UNINTERLEAVE:
        return {"activation": "clamped_swiglu", "alpha": config.alpha, "beta": config.beta, "limit": config.clamp_limit}
    if activation is MoEActivation.SILU and config.clamp_limit is not None:
        return {"activation": "clamped_swiglu", "alpha": 1.0, "beta": 0.0, "limit": config.clamp_limit}
    return {"activation": GATED[activation]}


class TesseraExperts(mk.FusedMoEExpertsModular):
    """Unquantized experts in bfloat16 or float16. What _supports_* and is_supported_config decline stays vLLM's."""

    @staticmethod
    def is_supported_config(cls, moe_config, weight_key, activation_key, activation_format):
        supported, reason = mk.FusedMoEExperts.is_supported_config(cls, moe_config, weight_key, activation_key,
                                                                   activation_format)
        if not supported:
            return supported, reason
        width, limit = moe_config.intermediate_size_per_partition, getattr(moe_config, "swiglu_limit", None)
        for wrong, what in (
                (moe_config.in_dtype not in DTYPES, f"{moe_config.in_dtype}"),
                (moe_config.hidden_dim % LIMITS.width_multiple, f"hidden size {moe_config.hidden_dim}"),
                (width % LIMITS.width_multiple, f"intermediate size {width} of a rank"),
                (not 1 <= moe_config.num_local_experts <= LIMITS.max_experts, f"{moe_config.num_local_experts} experts"),
                (not 1 <= moe_config.experts_per_token <= LIMITS.max_top_k,
                 f"{moe_config.experts_per_token} experts a token"),
                (limit is not None and limit <= 0, f"swiglu limit {limit}"),
                (moe_config.activation is MoEActivation.SWIGLUOAI_UNINTERLEAVE and limit is None, "no swiglu limit")):
            if wrong:
                return False, f"kernel does not support {what}"
        return True, None

    @staticmethod
    def activation_format():
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_current_device():
        return current_platform.is_cuda() and not tessera.why_unusable(torch.cuda.current_device())

    @staticmethod
    def _supports_no_act_and_mul():
        return True

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key):
        return weight_key is None and activation_key is None

    @staticmethod
    def _supports_activation(activation):
        return activation in GATED or activation in NOT_GATED or activation in CLAMPED

    @staticmethod
    def _supports_parallel_config(moe_parallel_config):
        # Tensor parallelism, and expert parallelism through the expert map. Exchanges of tokens between ranks have
        # formats of their own, which were not tried.
        return not (moe_parallel_config.use_all2all_kernels
                    or getattr(moe_parallel_config, "use_passthrough_all2all", False))

    @staticmethod
    def _supports_batch_invariance():
        return True  # the bits of a row do not depend on the rows beside it

    def finalize_weight_and_reduce_impl(self):
        return TopKWeightAndReduceNoOP()  # `apply` weights and sums

    def workspace_shapes(self, M, N, K, topk, global_num_experts, local_num_experts, expert_tokens_meta, activation):
        return (0,), (0,), (M, K)  # the library's workspace has a size that these arguments do not tell

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map,
              a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta, apply_router_weight_on_input):
        """output [M, K] of hidden_states [M, K], w1 [E, 2I, K] or [E, I, K], w2 [E, K, I], ids and weights [M, topk]."""
        for name, scale in (("a1q_scale", a1q_scale), ("a2_scale", a2_scale)):
            if scale is not None:
                raise ValueError(f"tessera_vllm: {name}: got a scale, expected unquantized activations")
        refuse_hook(self, hidden_states.shape[0])
        if apply_router_weight_on_input:  # done by who prepared the input
            topk_weights = torch.ones_like(topk_weights)
        tessera.moe(hidden_states, w1, w2, topk_ids, topk_weights, gate_up_bias=self.w1_bias, down_bias=self.w2_bias,
                    expert_map=expert_map, out=output, **options_of(activation, activation_numbers(self)))
