"""What is compared on what: libraries and their layers, and the cells of a run. Plain Python."""
import grid

# Library -> its layers. One process runs one library.
LAYERS = {"tessera": ("tessera", "tessera fp8"),
          "flashinfer": ("flashinfer", "flashinfer det", "flashinfer untuned", "flashinfer det untuned"),
          "sglang": ("sglang triton", "sglang triton fp8"), "vllm": ("vllm triton", "vllm triton fp8"),
          "deepgemm": ("deepgemm", "deepgemm GEMMs"), "deepgemm_fp8": ("deepgemm fp8", "deepgemm fp8 GEMMs"),
          "torch": ("torch grouped_mm", "torch bmm"),
          "transformers": ("transformers grouped_mm", "transformers batched_mm"), "liger": ("liger",),
          "sonicmoe": ("sonicmoe",), "flashinfer_cutlass": ("flashinfer cutlass",)}
OURS = "tessera"
STRONG = ("tessera", "flashinfer", "sglang", "vllm", "deepgemm", "deepgemm_fp8")  # measured unless --peers or --everything
# How the weights lie in memory. fp8-block: e4m3 with one fp32 scale for each 128 x 128 block; activations are quantised
# inside the layer, per token and 128 columns. Layers of one format are compared with each other.
_FP8 = ("tessera fp8", "sglang triton fp8", "vllm triton fp8", "deepgemm fp8", "deepgemm fp8 GEMMs")
FORMATS = {"bf16": tuple(layer for layers in LAYERS.values() for layer in layers if layer not in _FP8), "fp8-block": _FP8}
FORMAT_TITLES = {"bf16": "16-bit weights", "fp8-block": "FP8 weights"}
BLOCK = 128
# Part of a layer's work alone: no library's layer is faster than its bound, and no bound is a layer.
_GEMMS = "rows already gathered and padded, activations computed before: the two grouped GEMMs alone"
BOUNDS = {"torch bmm": "rows already in expert order and equally many for each expert: two torch.bmm and SwiGLU; no "
                       "routing, gather or combine",
          "deepgemm GEMMs": _GEMMS, "deepgemm fp8 GEMMs": _GEMMS + ", inputs quantised before too"}
TITLES = {"tessera": "Tessera", "tessera fp8": "Tessera FP8", "flashinfer": "FlashInfer", "flashinfer det": "FlashInfer, deterministic",
          "flashinfer untuned": "FlashInfer, untuned", "flashinfer det untuned": "FlashInfer, deterministic, untuned",
          "sglang triton": "SGLang Triton", "sglang triton fp8": "SGLang Triton FP8", "vllm triton": "vLLM Triton",
          "vllm triton fp8": "vLLM Triton FP8", "deepgemm": "DeepGEMM + Triton",
          "deepgemm GEMMs": "DeepGEMM's GEMMs (bound, not a layer)", "deepgemm fp8": "DeepGEMM FP8 + Triton",
          "deepgemm fp8 GEMMs": "DeepGEMM's FP8 GEMMs (bound, not a layer)", "torch grouped_mm": "torch grouped_mm",
          "torch bmm": "torch.bmm (bound, not a layer)", "transformers grouped_mm": "Transformers grouped_mm",
          "transformers batched_mm": "Transformers batched_mm", "liger": "Liger Triton", "sonicmoe": "SonicMoE",
          "flashinfer cutlass": "FlashInfer CUTLASS"}
WHERE_ABSENT = {
    "flashinfer": "its CuTe-DSL layer needs flashinfer-python and nvidia-cutlass-dsl",
    "flashinfer_cutlass": "compiles its Hopper fused MoE on first use, hundreds of CUTLASS files, unless flashinfer-jit-cache "
                          "brings it built",
    "sonicmoe": "no package index has it; the kernels hub does, through the package kernels",
    "sglang": "its Triton experts and tuned files come with the pack, or with the whole of SGLang",
    "vllm": "its Triton experts and tuned files come with the pack, or with the whole of vLLM"}
NOT_ASKED = "not asked for: --peers or --everything"
# Libraries that compile for each shape, and in how many processes that is worth doing ahead.
AHEAD_PARTS = {"sglang": 1, "vllm": 1, "deepgemm": 1, "deepgemm_fp8": 1, "liger": 4}
AHEAD_TOKENS = {"liger": (4096,)}  # its variants do not depend on the number of tokens
TUNED = ("flashinfer",)  # libraries that try their tactics on the inputs of a call

MODES = ("graph_cold", "graph_warm", "eager")
LARGE_TOKENS = 512  # from here on tables show TFLOP/s
DECODE_TOKENS = 128  # up to here a layer is judged against the time its weights take to be read
CHAIN_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128)
# What is chained: layers, of each library the form that is meant for few tokens; no bounds.
CHAIN_LEFT_OUT = ("flashinfer det", "flashinfer untuned", "flashinfer det untuned")

PRESETS = ("mixtral-8x7b", "qwen3-30b", "qwen3-235b", "qwen3-next", "deepseek-v3-shard32", "gpt-oss-120b", "qwen2-57b",
           "glm-4.5-air")
TOKENS = tuple(2**n for n in range(15))  # 1 .. 16384
BALANCED_TOKENS = (4096, 8192, 16384)
# Two passes over the presets: after the first, an interrupted run has every preset in every range of tokens. One pass less
# would save one loading of each preset's weights, about a second each; one preset at a time would leave out whole models,
# and one number of tokens at a time would load the weights eight times.
FIRST_PASS = (1, 8, 32, 128, 512, 2048, 4096, 16384)
_QUICK = {"qwen3-30b": (1, 32, 512, 4096), "mixtral-8x7b": (1, 4096)}
# Liger tries 32 variants of each GEMM on every new (H, I): seconds of machine time a preset.
_LIGER_PRESETS = ("qwen3-30b", "mixtral-8x7b")


def layers_of(fmt):
    """{library: its layers of this format, maybe none}"""
    return {library: tuple(layer for layer in layers if format_of(layer) == fmt) for library, layers in LAYERS.items()}


def format_of(layer):
    return next(name for name, layers in FORMATS.items() if layer in layers)


def is_ours(layer):
    return layer in LAYERS[OURS]


def plan(quick=False, presets=None, tokens=None):
    """The cells of a run in their order; `presets`, `tokens`: only these."""
    chosen = [preset for preset in PRESETS if presets is None or preset in presets]
    chosen += [preset for preset in presets or () if preset not in PRESETS]  # one that only --presets names
    if quick:
        found = [grid.Cell(p, count, "random") for p, counts in _QUICK.items() for count in counts if p in chosen]
    else:
        passes = FIRST_PASS, tuple(count for count in TOKENS if count not in FIRST_PASS)
        found = [grid.Cell(p, count, routing) for counts in passes for p in chosen for count in counts
                 for routing in ("random", "balanced") if routing == "random" or is_balanced(p, count)]
    return [cell for cell in found if tokens is None or cell.tokens in tokens]


def is_balanced(preset, tokens):
    """Whether the plan has this cell with equally many rows for each expert too."""
    _, _, experts, top_k = grid.PRESETS[preset]
    return tokens in BALANCED_TOKENS and tokens * top_k % experts == 0


def left_out(layer, cell, everything=False):
    """Why the plan leaves this layer out of this cell, or ""."""
    if layer == "torch bmm" and cell.routing != "balanced":
        return "only for equally many rows for each expert"
    if layer in ("flashinfer untuned", "flashinfer det untuned") and not everything:
        return "the tuned form is measured (--everything: both)"
    if layer == "liger" and cell.preset not in _LIGER_PRESETS and not everything:
        return f"its autotuner takes long: measured on {', '.join(_LIGER_PRESETS)} (--everything: on all)"
    return ""


def chain_layers(library):
    return [layer for layer in LAYERS[library] if layer not in BOUNDS and layer not in CHAIN_LEFT_OUT]


def flops(cell):
    hidden, intermediate, _, top_k = grid.PRESETS[cell.preset]
    return 6 * cell.tokens * top_k * hidden * intermediate


def weight_bytes(preset, active_experts, fmt="bf16"):
    """Bytes of the weights of so many experts, with their scales."""
    if fmt == "bf16":
        return grid.weight_bytes(preset, active_experts)
    hidden, intermediate, _, _ = grid.PRESETS[preset]

    def scales(rows, columns):
        return 4 * -(-rows // BLOCK) * -(-columns // BLOCK)
    return active_experts * (3 * hidden * intermediate + scales(2 * intermediate, hidden) + scales(hidden, intermediate))


def self_test():
    cells = plan()
    assert len(cells) == len(set(cells)) == len(PRESETS) * (len(TOKENS) + len(BALANCED_TOKENS))
    assert set(_LIGER_PRESETS) <= set(PRESETS) <= set(grid.PRESETS) and set(TOKENS) <= set(grid.TOKENS)
    for cell in cells:  # equally many rows for each expert, where that is said
        assert cell.routing != "balanced" or cell.tokens * grid.PRESETS[cell.preset][3] % grid.PRESETS[cell.preset][2] == 0
    half = cells[:len(PRESETS) * (len(FIRST_PASS) + 2)]  # interrupted there, every preset has every number of the first pass
    assert {(c.preset, c.tokens) for c in half} == {(p, count) for p in PRESETS for count in FIRST_PASS}
    changes = sum(a.preset != b.preset for a, b in zip(cells, cells[1:]))
    assert changes == 2 * len(PRESETS) - 1, changes  # weights are loaded twice
    assert [c.tokens for c in plan(presets=["olmoe"], tokens=[1, 16384])] == [1, 16384, 16384]
    assert 0 < len(plan(quick=True)) < len(cells) / 8 and set(plan(quick=True)) <= set(cells)
    assert left_out("torch bmm", grid.Cell("olmoe", 512, "random")) and not left_out("torch bmm", cells[-1]._replace(
        routing="balanced"))
    assert left_out("liger", grid.Cell("gemma4", 1, "random")) and not left_out(
        "liger", grid.Cell("gemma4", 1, "random"), everything=True)
    assert flops(grid.Cell("olmoe", 2, "random")) == 6 * 2 * 8 * 2048 * 1024
    names = [layer for layers in LAYERS.values() for layer in layers]
    assert set(names) == set(TITLES) and set(BOUNDS) <= set(TITLES) and set(STRONG) <= set(LAYERS)
    assert sorted(names) == sorted(layer for layers in FORMATS.values() for layer in layers)
    assert set(TUNED) | set(AHEAD_PARTS) <= set(LAYERS)
    assert layers_of("fp8-block")["tessera"] == ("tessera fp8",) and layers_of("fp8-block")["flashinfer"] == ()
    assert format_of("deepgemm fp8 GEMMs") == "fp8-block" and format_of("deepgemm GEMMs") == "bf16"
    assert chain_layers("flashinfer") == ["flashinfer"] and chain_layers("deepgemm") == ["deepgemm"]
    assert weight_bytes("olmoe", 3) == 3 * 6 * 2048 * 1024
    assert weight_bytes("olmoe", 3, "fp8-block") == 3 * (3 * 2048 * 1024 + 4 * (16 * 16 + 16 * 8))
