"""Mixture-of-experts layers and text classification, from NumPy arrays on a CPU to any tensor on a Hopper GPU.

    import numpy, tessera
    out = tessera.moe(x, gate_up, down, topk_ids, topk_weights)      # [T, H]; arrays or tensors of one device

Arrays are NumPy arrays, PyTorch tensors, or anything with ``__dlpack__`` (CuPy, JAX). What comes back is of the kind of
``x``. Nothing is copied, cast or made contiguous behind the caller's back: what does not fit raises ``TypeError``,
``ValueError``, ``BufferError`` or ``tessera.TesseraError``, and the message names the argument, what it got and what it
expected. On a GPU the work is enqueued on the current stream of the tensor's framework, or on ``stream``.
"""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy

Activation = Literal["identity", "silu", "gelu_tanh", "gelu_erf", "relu", "relu_squared", "clamped_swiglu"]
GateUpOrder = Literal["gate_first", "interleaved", "up_first"]
WeightFormat = Literal["dense", "fp8-block", "fp8-channel"]
ScaleGrid = Literal["per_projection", "concatenated", "interleaved", "rows", "halves", "matrices"]
RouterKind = Literal[
    "softmax_topk", "topk_softmax", "softmax_topk_renormalize", "sigmoid_grouped", "sigmoid_renormalize"
]
Array = Any  # numpy.ndarray, torch.Tensor, or an object with __dlpack__ and __dlpack_device__

__version__: str

def check_ids(topk_ids: Array, num_experts: int, *, no_expert: int | None = None) -> None:
    """Raises ValueError if an id is none of 0 to num_experts - 1, and names the first token that has such a one.

    A layer lets ids of no expert add nothing: padded batches and expert parallelism mean it so, an index that is off does
    not. This is for finding the latter. no_expert: one more id that is meant, often -1 or num_experts. topk_ids [T, k]
    int32 or int64, a NumPy array or a PyTorch tensor; of a GPU it waits for the ids, so not in a captured graph.
    """

class Loaded(NamedTuple):
    path: str
    layer: int
    shard: tuple[int, int]
    weight_format: str
    dtype: str  # of x and out, and of dense weights
    read_bytes: int  # from disk
    weight_bytes: int  # in memory
    seconds: float
    num_blocks: int  # of 128 x 128 that MXFP4 weights have; 0 for other formats
    num_exact_blocks: int  # of these, the ones that fp8-block holds to the bit

def inspect_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """What a checkpoint holds and how each layer with experts would run here, without reading a weight: what ``tessera
    inspect --json`` prints. ValueError names file and tensor; what is wrong with one layer is in its "problem"."""

def load_layer(
    path: str | PathLike[str],
    *,
    layer: int,
    device: Any = "cpu",
    shard: tuple[int, int] = (0, 1),
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    weight_format: WeightFormat | None = None,
    shared_expert: bool | None = None,
    num_threads: int = 0,
    progress: bool | Callable[[int, int], object] | None = None,
) -> MoELayer:
    """One MoE layer of a checkpoint on disk: a folder of config.json and safetensors as Hugging Face's libraries save it,
    of Qwen3-MoE, Qwen3-Next, Mixtral, OLMoE, DeepSeek-V3, GLM-4.5, gpt-oss or MiniMax-M2, in one file or several with an
    index, with tensors of each expert or of all experts.

    layer: as the checkpoint counts. device: "cpu", "cuda", "cuda:1", a torch.device, or a number, -1 for the CPU.
    shard (i, n): experts E * i // n and on, up to the next shard's; ids stay those of the whole model, other experts' add
    nothing. dtype: of x, out and dense weights; None: as stored, bfloat16 where weights have 8 bits or less; another type
    than the stored one is rounded to. weight_format: what MXFP4 becomes; None: "fp8-block" if that holds every number to
    the bit, else "dense". shared_expert: None loads it with shard 0, so that shards add up. progress: None draws a bar
    where standard error is a terminal; a function is told bytes read so far and in all.

    Every name, shape and type is checked before a weight is read: ValueError names file and tensor. Weights go straight
    to where they stay, PyTorch tensors where PyTorch is imported, else memory of the library; beside them there is never
    more than one tensor. Ctrl-C ends it. The layer's attribute ``loaded`` is a Loaded.
    """

class Classifier:
    """A text classifier from a checkpoint directory (config.json, vocab.txt, model.safetensors). path None: the model that
    comes with the package, for English review sentences.

    device: "auto" (a usable GPU, else the CPU), "cpu", "cuda", "cuda:1". precision: "default" (fp16 on a GPU, fp32 on
    the CPU), "fp32", "bf16", "fp16" (GPU), "fp64" (CPU, the oracle). form: "auto", "direct", "dft", "distinct" or
    "vocab". A copied or pickled one is what it was made of: the checkpoint is loaded again where that arrives. Where the system
    allows fewer threads than asked for, there are fewer.
    """

    class_names: tuple[str, ...]
    vocab_size: int
    sequence_length: int
    embedding_size: int
    num_classes: int
    num_experts: int
    description: str

    def __init__(
        self,
        path: Any = None,
        *,
        device: str = "auto",
        precision: str = "default",
        input: Literal["ids", "embeddings"] = "ids",
        form: str = "auto",
        expert_threshold: float = 0.0,
        micro_batch: int = 0,
        num_threads: int = 0,
    ) -> None: ...
    def __call__(self, texts: str | Iterable[str]) -> Prediction | list[Prediction]:
        """One prediction for one text, a list for several: a list, an array, a pandas or Arrow column, a generator. Ctrl-C
        ends a call within a tenth of a second or one slice of 256 texts."""

    def predict(self, texts: Iterable[str], *, progress: Any = None, min_probability: float = 0.0) -> Any:
        """`Predictions` of any iterable of str, as arrays; for a pandas Series or Index a DataFrame with its index, for an
        Arrow column a Table, with the columns label, score, probability_<class>, tokens, unknown, truncated. progress: True
        shows a line on standard error; a function is called with (done, total)."""

    def tokenize(self, texts: Iterable[str]) -> numpy.ndarray:
        """Token ids [number of texts, sequence_length] int32. A text with a NUL byte raises ValueError."""

    def logits(self, inputs: numpy.ndarray) -> numpy.ndarray:
        """Logits [n, num_classes] float32 of ids [n, sequence_length] int32, or of embeddings [n, embedding_size,
        sequence_length] float32 for input="embeddings". A sentence with an id outside the vocabulary, or whose numbers
        are not finite, raises ValueError naming the first."""

class Prediction(NamedTuple):
    label: str  # "empty" for a text without words
    score: float  # probability of the label; NaN for an empty text
    probabilities: tuple[float, ...]  # of every class, in the model's order

class Device(NamedTuple):
    index: int  # type: ignore[assignment]  # -1: the CPU
    name: str
    usable: bool
    why_not: str  # "" where usable

class Doctor(NamedTuple):
    version: str
    library: str  # path of the shared library
    devices: tuple[Device, ...]
    torch: str  # version, or "" where PyTorch is not installed
    problems: tuple[str, ...]  # empty: a layer was computed on every usable device and was right
    engines: tuple[Engine, ...]
    why_no_gpu: str  # "" where there is one
    driver: str  # of NVIDIA, "" where there is none
    python: str
    package: str

    def json(self) -> str:
        """The same as a JSON object."""

class Engine(NamedTuple):
    name: str
    version: str  # "" where it is not installed
    plugin: bool  # whether it would find Tessera's experts
    why_not: str  # "" where it would

def doctor() -> Doctor:
    """What this installation can do here: a small layer on every usable device, checked; the engines that are installed."""

def why_unusable(device: int) -> str:
    """Empty if layers and classifiers run on this device, else the reason. The number of a CUDA device, or -1 for the CPU;
    ValueError for a number that no device has. The answer is the library's own, the same in every interface."""

class Predictions(NamedTuple):
    """What `Classifier.predict` says of n texts. A text without words is labelled "empty", with a score and probabilities of
    NaN; a score below min_probability makes the label "unsure"."""

    labels: numpy.ndarray  # [n] object: str
    scores: numpy.ndarray  # [n] float32, of the most probable class
    probabilities: numpy.ndarray  # [n, num_classes] float32
    tokens: numpy.ndarray  # [n] int64: words of the text, before it is cut to sequence_length
    unknown: numpy.ndarray  # [n] int64: of the words that are left, those that the model does not know
    truncated: numpy.ndarray  # [n] bool

class MoELayer:
    """A layer that checks its weights once, for callers who run it many times.

    With transposed=True the weights are gate_up [E, H, 2I] and down [E, I, H], and the layer keeps a copy in its own
    order. Otherwise it refers to the arrays it was given and keeps them alive; if their memory is taken away or moved
    (``tensor.data = ...``, ``untyped_storage().resize_(0)``), the next call raises RuntimeError. num_threads is the
    CPU's, 0 for every processor of this process; with weights on a GPU anything but 0 raises ValueError.

    ``dtype`` is the type of x (without x_scale), biases and out; of dense weights theirs, and not needed; else bfloat16
    where it is not given. Scales as in ``moe``, a shared expert's [2, ceil(I_s/128), ceil(H/128)] and [ceil(H/128),
    ceil(I_s/128)], which begin with their blocks whatever the scale_offsets; of "fp8-channel" [2 I_s] and [H]. Where experts
    have static scales each, a shared expert's is the last of E + 1.
    """

    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    loaded: Any  # what load_layer read: a Loaded; else None

    def __init__(
        self,
        gate_up: Array,
        down: Array,
        *,
        top_k: int,
        gate_up_bias: Array | None = None,
        down_bias: Array | None = None,
        activation: Activation = "silu",
        alpha: float = 1.0,
        beta: float = 0.0,
        limit: float = 0.0,
        gated: bool = True,
        gate_up_order: GateUpOrder = "gate_first",
        weight_format: WeightFormat = "dense",
        transposed: bool = False,
        first_expert: int = 0,
        expert_map: Array | None = None,
        shared_gate_up: Array | None = None,
        shared_down: Array | None = None,
        gate_up_scale: Array | None = None,
        down_scale: Array | None = None,
        shared_gate_up_scale: Array | None = None,
        shared_down_scale: Array | None = None,
        scale_offsets: tuple[int, int, int] = (0, 0, 0),
        gate_up_input_scale: Array | None = None,
        down_input_scale: Array | None = None,
        round_like_engines: bool = False,
        dtype: Literal["float32", "float16", "bfloat16"] | None = None,
        num_threads: int = 0,
    ) -> None: ...
    def __call__(
        self,
        x: Array,
        topk_ids: Array,
        topk_weights: Array,
        *,
        shared_weight: Array | None = None,
        x_scale: Array | None = None,
        out: Array | None = None,
        workspace: Array | None = None,
        stream: int | None = None,
    ) -> Array:
        """out [T, H] of x [T, H], topk_ids [T, k], topk_weights [T, k]; shared_weight [T] float32, without it 1; with
        x_scale [T, ceil(H / 128)], of "fp8-channel" [T, 1], x is e4m3."""

    def workspace_bytes(self, num_tokens: int) -> int:
        """Exact size of the workspace for up to num_tokens tokens."""

def convert_scales(
    scale: Array,
    shape: tuple[int, ...],
    *,
    gate_and_up: bool = False,
    grid: ScaleGrid = "per_projection",
    up_offset: int = 0,
    gate_up_order: GateUpOrder = "gate_first",
) -> Array:
    """The scales that a checkpoint holds for a weight of this shape ([E, rows, columns] or [rows, columns]), as ``moe`` takes
    them, float32: [E, ceil(rows/128), ceil(columns/128)], or with gate_and_up rows (2I) [E, 2, ceil((I + up_offset)/128),
    ceil(columns/128)]. Arrays on the CPU of float32, bfloat16, float8_e8m0fnu or uint8 (its bytes: 2^(byte - 127)). Exact.

    ``grid`` says which block rows gate and up have: "per_projection" [E, 2 ceil(I/128), ..], gate's and then up's;
    "interleaved" the same number, gate's and up's in turn; "concatenated" [E, ceil(2I/128), ..], of all rows counted through.
    Where I is no multiple of 128, up's rows of the last begin inside a block: with up_offset = I % 128, which then goes
    to ``moe`` or ``MoELayer`` as scale_offsets=(0, I % 128, 0), every scale stays what it is. Without it ValueError, but
    where scales that a block has to share are equal. ValueError names expert and block of a scale that is negative,
    infinite or NaN; 0 is accepted.

    For "fp8-channel" the result is [E, rows], from a grid "rows" [E, rows], "halves" [E, 2] (all gate rows, all up rows, which
    lie in this ``gate_up_order``) or "matrices" [E], each also with last dimensions of 1."""

def moe(
    x: Array,
    gate_up: Array,
    down: Array,
    topk_ids: Array,
    topk_weights: Array,
    *,
    gate_up_bias: Array | None = None,
    down_bias: Array | None = None,
    activation: Activation = "silu",
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float = 0.0,
    gated: bool = True,
    gate_up_order: GateUpOrder = "gate_first",
    weight_format: WeightFormat = "dense",
    gate_up_scale: Array | None = None,
    down_scale: Array | None = None,
    scale_offsets: tuple[int, int, int] = (0, 0, 0),
    gate_up_input_scale: Array | None = None,
    down_input_scale: Array | None = None,
    round_like_engines: bool = False,
    x_scale: Array | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    first_expert: int = 0,
    expert_map: Array | None = None,
    out: Array | None = None,
    workspace: Array | None = None,
    stream: int | None = None,
) -> Array:
    """One mixture-of-experts layer: out[t] = sum_s topk_weights[t, s] * down[e] act(gate[e] x[t]) * (up[e] x[t]).

    x [T, H]; gate_up [E, 2I, H] (not gated: [E, I, H]); down [E, H, I]; topk_ids [T, k] int32 or int64; topk_weights
    [T, k] float32 or x's type; biases [E, 2I] and [E, H]. Sizes: ``moe_limits``. Types: float32, float16, bfloat16
    on the CPU; float16, bfloat16 on a GPU; x, biases, out and (weight_format "dense") weights alike. A slot whose id
    belongs to no expert of this shard (first_expert .. first_expert + E, or a negative entry of expert_map) adds nothing.

    weight_format "fp8-block": gate_up and down are e4m3 (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn, or uint8 for its
    bit patterns) with a float32 scale each 128 x 128: gate_up_scale [E, 2, ceil(I/128), ceil(H/128)], gate's before up's
    whatever the gate_up_order (not gated: [E, ceil(I/128), ceil(H/128)]), down_scale [E, ceil(H/128), ceil(I/128)]. H and I
    are multiples of 16. x and what lies between the products are quantized as ``quantize_rows`` does. ``scale_offsets``,
    on the CPU: how far inside their first block of scales gate rows, up rows and columns of down begin, each below 128, as
    in a shard or under a concatenated grid (``convert_scales``); the shapes of the scales then are [E, 2, ceil((I +
    the larger of the first two)/128), ceil(H/128)] and [E, ceil(H/128), ceil((I + the third)/128)].

    weight_format "fp8-channel": the same elements with a float32 scale each row: gate_up_scale [E, 2I] in the order of the rows
    (not gated [E, I]), down_scale [E, H], also with a last dimension of 1. x has one scale a token. Static scales take the
    place of those that are made of the rows: ``gate_up_input_scale`` for x, ``down_input_scale`` for what lies between the
    products, float32 [1] or [E], one for each expert. ``round_like_engines``, of both formats: what enters and leaves the
    activation is also rounded to x's type, as engines do that keep both in memory.

    x_scale [T, ceil(H/128)], of "fp8-channel" [T, 1], float32: x is e4m3 already and used as it is; biases and out are of
    ``dtype``, bfloat16 where it is not given. Else ``dtype`` is x's.

    gate_up and down may also be views whose last two dimensions are swapped back, as ``prepare_weights`` returns.
    ``out`` and ``workspace`` (one-dimensional uint8 of at least ``workspace_bytes``) are allocated where not given, by
    PyTorch or NumPy; for tensors of other frameworks they must be given. ``out`` and ``workspace``
    overlap neither each other nor any other array of the call (ValueError). ``alpha``, ``beta`` and ``limit`` are
    clamped_swiglu's; ``first_expert`` goes with no expert_map (ValueError). Under
    ``torch.compile`` and in CUDA graphs it is the operator ``torch.ops.tessera.moe``. Inference only: tensors that
    require grad raise RuntimeError unless grad mode is off.

    ``stream``: the address of a CUDA stream, for which the caller does what a framework asks of work on another stream:
    it waits for whatever writes the inputs, and they stay allocated until its work is done (PyTorch:
    ``stream.wait_stream(...)``, ``tensor.record_stream(stream)``). On the CPU Ctrl-C ends a long call.
    """

def moe_limits() -> MoELimits:
    """What a layer can be, whatever its device and type."""

def prepare_weights(
    gate_up: Array, down: Array, *, gated: bool = True, stream: int | None = None
) -> tuple[Array, Array]:
    """From transposed weights gate_up [E, H, 2I], down [E, I, H] to contiguous [E, 2I, H], [E, H, I], once at load.
    NumPy arrays and PyTorch tensors."""

def quantize_blocks(
    weight: Array, *, gate_and_up: bool = False, gate_up_order: GateUpOrder = "gate_first"
) -> tuple[Array, Array]:
    """(codes, scales) of a weight [E, rows, columns] or [rows, columns], a float32 scale each 128 x 128 by the recipe of
    ``quantize_rows``: [E, ceil(rows/128), ceil(columns/128)]. With gate_and_up, rows are 2I in this order, and scales [E, 2,
    ceil(I/128), ceil(columns/128)], as ``moe`` takes them. Arrays on the CPU."""

def quantize_rows(x: Array, *, whole_rows: bool = False) -> tuple[Array, Array]:
    """(codes, scales) of x [rows, columns] or [E, rows, columns]: what a layer of "fp8-block" does to its tokens, with
    ``whole_rows`` one of "fp8-channel", whose weights are made so, too. codes, of x's shape, are e4m3 (NumPy: uint8 bit
    patterns, PyTorch: float8_e4m3fn), scales [.., ceil(columns / 128)] or [.., 1] float32. In float32, each step rounded to
    nearest even: scale = max(amax, 1e-10) * (1/448), code = e4m3(value * (1/scale)). A NaN makes its scale and all codes
    under it NaN. Arrays on the CPU."""

def route(
    logits: Array,
    top_k: int,
    *,
    kind: RouterKind = "topk_softmax",
    bias: Array | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    scale: float = 1.0,
    stream: int | None = None,
) -> tuple[Array, Array]:
    """From a router's logits [T, E] (float32, float16, bfloat16) to (topk_ids [T, k] int32, topk_weights [T, k]
    float32). NumPy arrays and PyTorch tensors."""

class MoELimits(NamedTuple):
    width_multiple: int  # H and I are multiples of it
    max_experts: int  # E that one layer's weights hold
    max_top_k: int  # slots a token
    alignment: int  # bytes: of weights, x, out, workspaces and router logits
    max_threads: int  # num_threads of a layer and of a classifier

class TesseraError(RuntimeError):
    """A failure of the library that no Python exception fits: a device that failed, no GPU, a fork after CUDA."""
