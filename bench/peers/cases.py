"""What is compared on what: libraries and their layers, and the cells of a run. Plain Python."""
import grid

# Library -> its layers. One process runs one library.
LAYERS = {"tessera": ("tessera",), "torch": ("torch grouped_mm", "torch bmm"),
          "transformers": ("transformers grouped_mm", "transformers batched_mm"),
          "deepgemm": ("deepgemm", "deepgemm GEMMs"), "liger": ("liger",), "flashinfer": ("flashinfer",),
          "sonicmoe": ("sonicmoe",), "vllm": ("vllm triton",)}
OURS = "tessera"
# Part of a layer's work alone: no library's layer is faster than its bound, and no bound is a layer.
BOUNDS = {"torch bmm": "rows already in expert order and equally many for each expert: two torch.bmm and SwiGLU; no "
                       "routing, gather or combine",
          "deepgemm GEMMs": "rows already gathered and padded, activations computed before: the two grouped GEMMs alone"}
TITLES = {"tessera": "Tessera", "torch grouped_mm": "torch grouped_mm", "torch bmm": "torch.bmm (bound, not a layer)",
          "transformers grouped_mm": "Transformers grouped_mm", "transformers batched_mm": "Transformers batched_mm",
          "deepgemm": "DeepGEMM + Triton", "deepgemm GEMMs": "DeepGEMM's GEMMs (bound, not a layer)", "liger": "Liger Triton",
          "flashinfer": "FlashInfer CUTLASS", "sonicmoe": "SonicMoE", "vllm triton": "vLLM Triton"}
WHERE_ABSENT = {
    "flashinfer": "compiles its Hopper fused MoE on first use, hundreds of CUTLASS files, unless flashinfer-jit-cache brings "
                  "it built",
    "sonicmoe": "no package index has it; the kernels hub does, through the package kernels",
    "vllm": "its Triton experts need vLLM's own extension modules, so the whole wheel"}
# Libraries that compile for each shape, and for how many tokens that is worth doing ahead, in several processes at once.
AHEAD_PARTS = {"deepgemm": 1, "liger": 4}
AHEAD_TOKENS = {"liger": (4096,)}  # its variants do not depend on the number of tokens

MODES = ("graph_cold", "graph_warm", "eager")
LARGE_TOKENS = 512  # from here on no peer may be faster without being listed
DECODE_TOKENS = 128  # up to here a layer is judged against the time its weights take to be read

_MANY = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384)
_FEW = (1, 32, 128, 512, 2048, 4096, 16384)
_RANDOM = {"qwen3-30b": _MANY, "mixtral-8x7b": _MANY, "qwen3-235b": _MANY, "deepseek-v3-shard32": _FEW,
           "gpt-oss-120b": _FEW, "qwen2-57b": _FEW, "olmoe": _FEW, "glm-4.5-air": _FEW, "qwen3-next": _FEW, "gemma4": _FEW}
_BALANCED = {"qwen3-30b": (4096, 16384), "mixtral-8x7b": (4096, 16384), "qwen3-235b": (16384,),
             "deepseek-v3-shard32": (16384,), "gpt-oss-120b": (16384,), "qwen2-57b": (4096,), "olmoe": (16384,)}
_QUICK = {"random": {"qwen3-30b": (1, 32, 512, 16384), "mixtral-8x7b": (1, 4096)}, "balanced": {"qwen3-30b": (16384,)}}
# Liger tries 32 variants of each GEMM on every new (H, I): seconds of machine time a preset.
_LIGER_PRESETS = ("qwen3-30b", "mixtral-8x7b", "olmoe")


def plan(quick=False, presets=None, tokens=None):
    """The cells of a run, preset by preset; `presets`, `tokens`: only these."""
    random, balanced = (_QUICK["random"], _QUICK["balanced"]) if quick else (_RANDOM, _BALANCED)
    return [grid.Cell(preset, count, routing) for preset in _RANDOM if presets is None or preset in presets
            for routing, counts in (("random", random), ("balanced", balanced)) for count in counts.get(preset, ())
            if tokens is None or count in tokens]


def left_out(layer, cell, everything=False):
    """Why the plan leaves this layer out of this cell, or ""."""
    if layer == "torch bmm" and cell.routing != "balanced":
        return "only for equally many rows for each expert"
    if layer == "liger" and cell.preset not in _LIGER_PRESETS and not everything:
        return f"its autotuner takes long: measured on {', '.join(_LIGER_PRESETS)} (--everything: on all)"
    return ""


def flops(cell):
    hidden, intermediate, _, top_k = grid.PRESETS[cell.preset]
    return 6 * cell.tokens * top_k * hidden * intermediate


def self_test():
    cells = plan()
    assert len(cells) == len(set(cells)) and set(_LIGER_PRESETS) <= set(_RANDOM) and set(_RANDOM) <= set(grid.PRESETS)
    for cell in cells:  # the bmm bound needs equally many rows
        assert cell.routing != "balanced" or cell.tokens * grid.PRESETS[cell.preset][3] % grid.PRESETS[cell.preset][2] == 0
    assert [c.tokens for c in plan(presets=["olmoe"], tokens=[1, 16384])] == [1, 16384, 16384]
    assert 0 < len(plan(quick=True)) < len(cells) / 8 and set(plan(quick=True)) <= set(cells)
    assert left_out("torch bmm", grid.Cell("olmoe", 512, "random")) and not left_out("torch bmm", cells[-1]._replace(
        routing="balanced"))
    assert left_out("liger", grid.Cell("gemma4", 1, "random")) and not left_out(
        "liger", grid.Cell("gemma4", 1, "random"), everything=True)
    assert flops(grid.Cell("olmoe", 2, "random")) == 6 * 2 * 8 * 2048 * 1024
    assert {layer for layers in LAYERS.values() for layer in layers} == set(TITLES) and set(BOUNDS) <= set(TITLES)
