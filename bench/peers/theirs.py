"""What of each layer is its library's own and what is ours: shown in README.md and in the notes of the results. Plain Python."""
import collections

import fp8

Parts = collections.namedtuple("Parts", "library format theirs ours")
_CUTE = "FlashInfer 0.7.4 `cute_dsl_fused_moe_bf16`, use_fused_finalize={}"
_PARTS = "which of its own tactics runs: tuned one GEMM at a time, with a cold cache, on this routing"
_SGLANG = ("SGLang 0.5.23 `fused_experts_impl`: Triton kernel, launch code, tuned files, alignment, SiLU{}, sum up to 32 tokens; "
           "its CUDA kernels compiled ahead")
_SGLANG_OURS = "what its files import beside that; above 32 tokens the sum over k is its Triton kernel, not its CUDA one"
_VLLM = "vLLM 0.33.0 `fused_experts_impl`: Triton kernel, launch code, tuned files and defaults"
_VLLM_OURS = "alignment{} and SiLU are SGLang's CUDA kernels, the sum over k is our Triton kernel: its own are in its binary"
_DEEPGEMM = "the two grouped GEMMs, {}"
_AROUND = "plan, {}, combine: Triton kernels (`padded_rows.py`)"
_NOTHING = "nothing"

# Layer -> the library's process, its format, what is theirs, what is ours.
LAYERS = {
    "tessera": Parts("tessera", "bf16", "-", "`tessera.MoELayer`"),
    "tessera fp8": Parts("tessera", "fp8-block", "-", "`tessera.MoELayer` of format fp8-block; the weights' quantisation (once)"),
    "torch grouped_mm": Parts("torch", "bf16", "`grouped_mm` and the eager operations", "their sequence, as in Transformers"),
    "torch bmm": Parts("torch", "bf16", "`torch.bmm`", "SwiGLU (a Triton kernel)"),
    "transformers grouped_mm": Parts("transformers", "bf16", "`Qwen3MoeExperts` and its experts function", _NOTHING),
    "transformers batched_mm": Parts("transformers", "bf16", "`Qwen3MoeExperts` and its experts function", _NOTHING),
    "sonicmoe": Parts("sonicmoe", "bf16", "the experts function of Transformers, the kernel from the hub", _NOTHING),
    "liger": Parts("liger", "bf16", "`LigerFusedMoEFunction`, its autotuner", _NOTHING),
    "flashinfer": Parts("flashinfer", "bf16", _CUTE.format(True), _PARTS),
    "flashinfer det": Parts("flashinfer", "bf16", _CUTE.format(False), _PARTS),
    "flashinfer untuned": Parts("flashinfer", "bf16", _CUTE.format(True) + ", default tactic", _NOTHING),
    "flashinfer det untuned": Parts("flashinfer", "bf16", _CUTE.format(False) + ", default tactic", _NOTHING),
    "flashinfer cutlass": Parts("flashinfer_cutlass", "bf16", "FlashInfer `cutlass_fused_moe`", _NOTHING),
    "sglang triton": Parts("sglang", "bf16", _SGLANG.format(""), _SGLANG_OURS),
    "sglang triton fp8": Parts("sglang", "fp8-block", _SGLANG.format(", group quantisation"),
                               "the weights' quantisation (once); " + _SGLANG_OURS),
    "vllm triton": Parts("vllm", "bf16", _VLLM, _VLLM_OURS.format("")),
    "vllm triton fp8": Parts("vllm", "fp8-block", _VLLM,
                             "the weights' quantisation (once); " + _VLLM_OURS.format(", group quantisation")),
    "deepgemm": Parts("deepgemm", "bf16", _DEEPGEMM.format("bf16"), _AROUND.format("gather, SwiGLU")),
    "deepgemm GEMMs": Parts("deepgemm", "bf16", _DEEPGEMM.format("bf16"), "rows gathered and activated before: a bound"),
    "deepgemm fp8": Parts("deepgemm_fp8", "fp8-block", _DEEPGEMM.format("FP8, 128 x 128 blocks"), "the weights' quantisation "
                          "(once); " + _AROUND.format("gather with quantisation, SwiGLU with quantisation")),
    "deepgemm fp8 GEMMs": Parts("deepgemm_fp8", "fp8-block", _DEEPGEMM.format("FP8, 128 x 128 blocks"),
                                "rows gathered, activated and quantised before: a bound")}


def layers(library):
    return tuple(layer for layer, parts in LAYERS.items() if parts.library == library)


def note(layer, **details):
    """What a result says of its layer beside its times."""
    return {"theirs": LAYERS[layer].theirs, "ours": LAYERS[layer].ours, **details}


def does_not_take(layer, hidden, intermediate):
    """Why a layer does not take experts of these widths, or ""."""
    parts = LAYERS[layer]
    if parts.format == "fp8-block" and parts.library in ("sglang", "vllm"):
        return fp8.divisible(hidden, intermediate)
    return ""


def markdown_table():
    """Rows of README.md, one for each layer."""
    rows = [f"| {layer} | {parts.format} | {parts.theirs} | {parts.ours} |" for layer, parts in LAYERS.items()]
    return "\n".join(["| layer | format | theirs | ours |", "| --- | --- | --- | --- |", *rows])
