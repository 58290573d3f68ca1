"""What users call: tessera.moe, MoELayer, moe_limits, prepare_weights, convert_scales, quantize_blocks, quantize_rows,
route."""

import numpy

from . import _moe, _native, _quantize
from ._arrays import View, kind_of, same_memory, torch_tensors, view
from ._native import wrong


def moe_limits():
    """What a layer can be, whatever its device and type."""
    return _native.LIMITS


def moe(x, gate_up, down, topk_ids, topk_weights, *, gate_up_bias=None, down_bias=None, activation="silu", alpha=1.0,
        beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first", weight_format="dense", gate_up_scale=None,
        down_scale=None, scale_offsets=(0, 0, 0), gate_up_input_scale=None, down_input_scale=None,
        round_like_engines=False, x_scale=None, dtype=None, first_expert=0, expert_map=None, out=None, workspace=None,
        stream=None):
    """One mixture-of-experts layer: out[t] = sum_s topk_weights[t, s] * down[e] act(gate[e] x[t]) * (up[e] x[t]).

    x [T, H]; gate_up [E, 2I, H]; down [E, H, I]; topk_ids, topk_weights [T, k]. __init__.pyi says all of it.
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
    """A layer that checks its weights once, for callers who run it many times. __init__.pyi says all of it."""

    def __init__(self, gate_up, down, *, top_k, gate_up_bias=None, down_bias=None, activation="silu", alpha=1.0,
                 beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first", weight_format="dense", transposed=False,
                 first_expert=0, expert_map=None, shared_gate_up=None, shared_down=None, gate_up_scale=None,
                 down_scale=None, shared_gate_up_scale=None, shared_down_scale=None, scale_offsets=(0, 0, 0),
                 gate_up_input_scale=None, down_input_scale=None, round_like_engines=False, dtype=None, num_threads=0):
        self.loaded = None  # by load_layer: what it read
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
        self._native = _moe.NativeLayer(weights.config(options, top_k, num_threads), weights.structure())
        self._views = views
        modules = {id(module): module for module in map(torch_tensors, self._arrays) if module is not None}
        self._torch = next(iter(modules.values()), None)
        self._tensors = tuple((given.owner, given.pointer) for given in views.values() if torch_tensors(given.owner))
        self.hidden_size = weights.hidden_size
        self.intermediate_size = weights.intermediate_size
        self.num_experts = weights.num_experts
        self.top_k = self._native.top_k

    def __reduce__(self):
        raise TypeError(wrong("MoELayer", "a layer to copy", "a new MoELayer made of the arrays there: a layer "
                              "refers to their memory"))

    def __call__(self, x, topk_ids, topk_weights, *, shared_weight=None, x_scale=None, out=None, workspace=None,
                 stream=None):
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

    def workspace_bytes(self, num_tokens):
        """Exact size of the workspace for up to num_tokens tokens."""
        return self._native.workspace_bytes(_moe.integer("num_tokens", num_tokens, 0, (2**31 - 1) // self.top_k // 2))


def prepare_weights(gate_up, down, *, gated=True, stream=None):
    """From transposed weights gate_up [E, H, 2I], down [E, I, H] to contiguous [E, 2I, H], [E, H, I], once at load."""
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


def convert_scales(scale, shape, *, gate_and_up=False, grid="per_projection", up_offset=0, gate_up_order="gate_first"):
    """Scales that a checkpoint holds for a weight of this shape, as `moe` takes them. __init__.pyi says all of it."""
    _require_bool("gate_and_up", gate_and_up)
    return _quantize.convert_scales(scale, shape, bool(gate_and_up), grid, up_offset, gate_up_order)


def quantize_rows(x, *, whole_rows=False):
    """(codes [.., columns], scales [.., ceil(columns / 128)] or with whole_rows [.., 1], float32) of x on the CPU."""
    _require_bool("whole_rows", whole_rows)
    return _quantize.quantize("x", x, is_weight=False, whole_rows=bool(whole_rows))


def quantize_blocks(weight, *, gate_and_up=False, gate_up_order="gate_first"):
    """(codes, scales) of a weight [E, rows, columns] or [rows, columns] on the CPU, a float32 scale each 128 x 128."""
    _require_bool("gate_and_up", gate_and_up)
    return _quantize.quantize("weight", weight, True, bool(gate_and_up), gate_up_order)


def _require_bool(name, value):
    if not isinstance(value, (bool, numpy.bool_)):
        raise TypeError(wrong(name, type(value).__name__, "a bool"))


def route(logits, top_k, *, kind="topk_softmax", bias=None, num_groups=1, topk_groups=1, scale=1.0, stream=None):
    """From a router's logits [T, E] (float32, float16, bfloat16) to (topk_ids [T, k] int32, topk_weights [T, k]
    float32). NumPy arrays and PyTorch tensors."""
    torch = torch_tensors(logits)
    if torch is None and not isinstance(logits, numpy.ndarray):
        raise TypeError(wrong("logits", kind_of(logits), "a NumPy array or a PyTorch tensor"))
    if torch is not None and torch.sees_operators_only():
        return torch.call_router(logits, top_k, kind, bias, num_groups, topk_groups, scale, stream)
    return _moe.route(logits, top_k, kind, bias, num_groups, topk_groups, scale, stream)
