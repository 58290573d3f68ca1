"""The fused function of SGLang's Triton runner, computed by tessera.moe where that can."""
import functools
import logging

import tessera
import torch

# Whoever imports this module has it register the function whose place is taken.
import sglang.srt.layers.moe.moe_runner.triton  # noqa: F401
from sglang.srt.layers.moe.moe_runner.base import FusedOpPool
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.topk import TopKOutputChecker

logger = logging.getLogger(__name__)
PLACE = ("none", "triton")  # exchange between ranks, runner
DTYPES = (torch.bfloat16, torch.float16)
LIMITS = tessera.moe_limits()
BLOCK = 128
WIDTH_MULTIPLE = 16  # of widths, for weights of 8 bits
# What these say is not computed here: other formats, other activations, what belongs to other runners. Versions differ in
# which of them there are.
OTHER_QUANTIZATION = ("use_mxfp8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "per_channel_quant",
                      "fuse_swiglu_interleaved")
OTHER_ARRAYS = ("w13_zp", "w2_zp", "a13_scale", "a2_scale")
OTHER_CONFIG = ("apply_router_weight_on_input", "no_combine", "no_combine_keep_router_weight", "silu_mul_keep_fp32")
OTHER_NUMBERS = ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit", "swiglu_limit")


@functools.lru_cache(maxsize=64)
def why_unusable(device):
    return tessera.why_unusable(device.index or 0) if device.type == "cuda" else f"{device}"


def why_not(dispatched, quantization, config):
    """Why this call stays Triton's, or empty."""
    x, w13, w2 = dispatched.hidden_states, quantization.w13_weight, quantization.w2_weight
    for owner, names in ((quantization, OTHER_QUANTIZATION), (config, OTHER_CONFIG)):
        for name in names:
            if getattr(owner, name, False):
                return name
    for owner, names in ((quantization, OTHER_ARRAYS), (config, OTHER_NUMBERS)):
        for name in names:
            if getattr(owner, name, None) is not None:
                return name
    experts, rows, hidden = w13.shape
    width, multiple = w2.shape[2], WIDTH_MULTIPLE if quantization.use_fp8_w8a8 else LIMITS.width_multiple
    checks = ((config.activation != "silu" or not config.is_gated, f"activation {config.activation}, gated {config.is_gated}"),
              (not TopKOutputChecker.format_is_standard(dispatched.topk_output), "the router's format"),
              (x.dtype not in DTYPES, f"tokens of {x.dtype}"),
              (rows != 2 * width or hidden != x.shape[1] or w2.shape[:2] != (experts, hidden), "padded weights"),
              (hidden % multiple or width % multiple, f"widths {hidden} and {width}"),
              (experts > LIMITS.max_experts, f"{experts} experts"),
              (dispatched.topk_output.topk_ids.shape[1] > LIMITS.max_top_k, "experts a token"),
              (any(bias is not None and bias.dtype != x.dtype for bias in (quantization.b13, quantization.b2)), "biases' type"),
              (not quantization.use_fp8_w8a8 and w13.dtype != x.dtype, f"weights of {w13.dtype}"))
    for wrong, what in checks:
        if wrong:
            return what
    return why_not_fp8(quantization, width) or why_unusable(x.device)


def why_not_fp8(quantization, width):
    if not quantization.use_fp8_w8a8:
        return ""
    if list(quantization.block_shape or []) != [BLOCK, BLOCK]:
        return f"scales of blocks of {quantization.block_shape}"
    if width % BLOCK:
        return f"FP8 with intermediate size {width}: a block of scales of gate and up"
    if quantization.w13_weight.dtype != torch.float8_e4m3fn or quantization.w13_scale.dtype != torch.float32:
        return f"weights of {quantization.w13_weight.dtype}, scales of {quantization.w13_scale.dtype}"
    return ""


def compute(dispatched, quantization, config):
    """[T, H] of what `why_not` has nothing against."""
    weights, ids = dispatched.topk_output.topk_weights, dispatched.topk_output.topk_ids
    if config.routed_scaling_factor not in (None, 1.0):
        weights = weights * config.routed_scaling_factor
    options = {}
    if quantization.use_fp8_w8a8:
        experts, blocks, columns = quantization.w13_scale.shape
        options = {"weight_format": "fp8-block", "down_scale": quantization.w2_scale,
                   "gate_up_scale": quantization.w13_scale.view(experts, 2, blocks // 2, columns)}
    return tessera.moe(dispatched.hidden_states, quantization.w13_weight, quantization.w2_weight, ids, weights,
                       gate_up_bias=quantization.b13, down_bias=quantization.b2, **options)


def around(theirs):
    """The function that takes the place of `theirs`."""
    said = set()

    @functools.wraps(theirs)
    def fused_experts_tessera(dispatch_output, quant_info, runner_config):
        reason = why_not(dispatch_output, quant_info, runner_config)
        if not reason:
            return StandardCombineInput(hidden_states=compute(dispatch_output, quant_info, runner_config))
        if reason not in said:
            said.add(reason)
            logger.info("tessera_sglang: Triton's experts stay: %s", reason)
        return theirs(dispatch_output, quant_info, runner_config)

    fused_experts_tessera.tessera = True
    return fused_experts_tessera


def enroll():
    """From now on the Triton runner's fused function is this one. SGLang's pool refuses a second registration, and its list of
    runner cores is not asked where a fused function is there: its table is the door that is left."""
    theirs = FusedOpPool.get_fused_func(*PLACE)
    if theirs is None:
        raise RuntimeError(f"tessera_sglang: got no fused function for {PLACE}, expected SGLang's own: another version?")
    if not getattr(theirs, "tessera", False):
        FusedOpPool._fused_funcs[PLACE] = around(theirs)
