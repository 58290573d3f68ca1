"""What users call: tessera.moe, MoELayer, moe_limits, prepare_weights, convert_scales, quantize_blocks, quantize_rows,
route."""

from typing import Any, Literal

import numpy

from . import _moe, _native, _quantize
from ._arrays import View, kind_of, same_memory, torch_tensors, view
from ._native import MoELimits, wrong
from ._types import Activation, Array, GateUpOrder, RouterKind, ScaleGrid, WeightFormat


def moe_limits() -> MoELimits:
    """What a layer can be, whatever its device and type."""
    return _native.LIMITS


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
    arrays = (gate_up, down, gate_up_bias, down_bias, None, None, expert_map, gate_up_scale, down_scale, None, None,
              gate_up_input_scale, down_input_scale)
    options = (activation, alpha, beta, limit, gated, gate_up_order, first_expert, weight_format, scale_offsets,
               round_like_engines)
    torch = torch_tensors(x)
    if torch is not None:
        return torch.moe(x, arrays, topk_ids, topk_weights, options, out, workspace, stream, x_scale, dtype)
    return _moe.moe(x, arrays, topk_ids, topk_weights, None, options, out, workspace, stream, x_scale, dtype)


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
    ) -> None:
        self.loaded = None
        self._options = (activation, alpha, beta, limit, gated, gate_up_order, first_expert, weight_format,
                         scale_offsets, round_like_engines)
        options = _moe.Options(*self._options)
        if dtype is not None:
            _moe.choice("dtype", dtype, tuple(_native.DTYPES))
        if transposed:
            if weight_format != "dense":
                raise ValueError(wrong("transposed", True, "False: only dense weights are transposed"))
            gate_up, down = _prepare(gate_up, down, options.gated, None, of_any_framework=True)
        # The arrays stay referenced: a native layer holds addresses.
        self._arrays = (gate_up, down, gate_up_bias, down_bias, shared_gate_up, shared_down, expert_map,
                        gate_up_scale, down_scale, shared_gate_up_scale, shared_down_scale, gate_up_input_scale,
                        down_input_scale)
        views = _moe.view_weights(self._arrays, inference=False)
        weights = _moe.Weights(views, options, dtype)
        config = weights.config(options, top_k, num_threads)
        self._native = _moe.NativeLayer(config, weights.structure())
        self._type = next(name for name, code in _native.DTYPES.items() if code == config.dtype)
        self._device = "cpu" if config.device == _native.CPU else f"cuda:{config.device}"
        self._views = views
        modules = {id(module): module for module in map(torch_tensors, self._arrays) if module is not None}
        self._torch = next(iter(modules.values()), None)
        self._tensors = tuple((given.owner, given.pointer) for given in views.values() if torch_tensors(given.owner))
        self.hidden_size = weights.hidden_size
        self.intermediate_size = weights.intermediate_size
        self.num_experts = weights.num_experts
        self.top_k = self._native.top_k

    def __repr__(self):
        return (f"tessera.MoELayer(hidden_size={self.hidden_size}, intermediate_size={self.intermediate_size}, "
                f"num_experts={self.num_experts}, top_k={self.top_k}, dtype={self._type}, "
                f"weight_format={self._options[7]}, device={self._device})")

    def __reduce__(self):
        raise TypeError(wrong("MoELayer", "a layer to copy", "a new MoELayer made of the arrays there: a layer "
                              "refers to their memory"))

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
        if self._torch is not None:
            done = self._torch.call(self, x, topk_ids, topk_weights, shared_weight, out, workspace, stream, x_scale)
            if done is not None:
                return done
        for name, given in self._views.items():
            if not same_memory(given):
                raise RuntimeError(wrong(name, "memory that was freed or moved since the layer was made",
                                         "the array as it was: make a new MoELayer"))
            if torch_tensors(given.owner) is not None:
                view(name, given.owner)  # refuses one that requires grad in grad mode
        x_view, address = _moe.read_x(x, stream)
        return _moe.run(self._native, x, x_view, topk_ids, topk_weights, shared_weight, out, workspace, address,
                        x_scale)

    def workspace_bytes(self, num_tokens: int) -> int:
        """Exact size of the workspace for up to num_tokens tokens."""
        return self._native.workspace_bytes(_moe.integer("num_tokens", num_tokens, 0, (2**31 - 1) // self.top_k // 2))


def prepare_weights(
    gate_up: Array, down: Array, *, gated: bool = True, stream: int | None = None
) -> tuple[Array, Array]:
    """From transposed weights gate_up [E, H, 2I], down [E, I, H] to contiguous [E, 2I, H], [E, H, I], once at load.
    NumPy arrays and PyTorch tensors."""
    return _prepare(gate_up, down, gated, stream, of_any_framework=False)


def _prepare(gate_up, down, gated, stream, of_any_framework):
    """(gate_up, down) repacked, of the kind of gate_up. For frameworks that are not asked for memory: a View of
    memory taken from the library, if `of_any_framework`."""
    given, address = _moe.read_x(gate_up, stream, "gate_up")
    torch = torch_tensors(gate_up)
    if not (of_any_framework or torch or isinstance(gate_up, numpy.ndarray)):
        raise TypeError(wrong("gate_up", kind_of(gate_up), "a NumPy array or a PyTorch tensor; MoELayer with "
                                                                 "transposed=True takes any"))

    def allocate(like, shape):
        if torch is not None:
            made, = torch.allocate(like.device, address, (shape, like.dtype))
            return made, view("prepared", made)
        if isinstance(gate_up, numpy.ndarray):
            made = numpy.empty(shape, gate_up.dtype)
            return made, view("prepared", made)
        pointer, handle = _native.allocate(like.device, like.num_bytes)
        made = View(pointer, shape, (shape[1] * shape[2], shape[2], 1), like.dtype, like.itemsize, like.device, True,
                    handle)
        return made, made

    made = _moe.prepare(given, view("down", down, address), bool(gated), address, allocate)
    return made[0][0], made[1][0]


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
    _require_bool("gate_and_up", gate_and_up)
    return _quantize.convert_scales(scale, shape, bool(gate_and_up), grid, up_offset, gate_up_order)


def quantize_rows(x: Array, *, whole_rows: bool = False) -> tuple[Array, Array]:
    """(codes, scales) of x [rows, columns] or [E, rows, columns]: what a layer of "fp8-block" does to its tokens, with
    ``whole_rows`` one of "fp8-channel", whose weights are made so, too. codes, of x's shape, are e4m3 (NumPy: uint8 bit
    patterns, PyTorch: float8_e4m3fn), scales [.., ceil(columns / 128)] or [.., 1] float32. In float32, each step rounded to
    nearest even: scale = max(amax, 1e-10) * (1/448), code = e4m3(value * (1/scale)). A NaN makes its scale and all codes
    under it NaN. Arrays on the CPU."""
    _require_bool("whole_rows", whole_rows)
    return _quantize.quantize("x", x, is_weight=False, whole_rows=bool(whole_rows))


def quantize_blocks(
    weight: Array, *, gate_and_up: bool = False, gate_up_order: GateUpOrder = "gate_first"
) -> tuple[Array, Array]:
    """(codes, scales) of a weight [E, rows, columns] or [rows, columns], a float32 scale each 128 x 128 by the recipe of
    ``quantize_rows``: [E, ceil(rows/128), ceil(columns/128)]. With gate_and_up, rows are 2I in this order, and scales [E, 2,
    ceil(I/128), ceil(columns/128)], as ``moe`` takes them. Arrays on the CPU."""
    _require_bool("gate_and_up", gate_and_up)
    return _quantize.quantize("weight", weight, True, bool(gate_and_up), gate_up_order)


def _require_bool(name, value):
    if not isinstance(value, (bool, numpy.bool_)):
        raise TypeError(wrong(name, type(value).__name__, "a bool"))


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
    torch = torch_tensors(logits)
    if torch is None and not isinstance(logits, numpy.ndarray):
        raise TypeError(wrong("logits", kind_of(logits), "a NumPy array or a PyTorch tensor"))
    if torch is not None and torch.sees_operators_only():
        return torch.call_router(logits, top_k, kind, bias, num_groups, topk_groups, scale, stream)
    return _moe.route(logits, top_k, kind, bias, num_groups, topk_groups, scale, stream)
