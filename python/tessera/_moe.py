"""The MoE layer for arrays of any framework: what it is made of, checked; one call of it; its weights prepared."""

import collections
import ctypes
import math
import operator
import threading

import numpy

from . import _native
from ._arrays import (VECTOR_BYTES, current_stream, device_name, kind_of, read_stream, require_device, require_memory,
                      require_shape, require_type, torch_tensors, view)
from ._native import CPU, DTYPES, INPUTS_BYTES, LIMITS, PACK_INPUTS, check, lib, use_cuda, wrong

_ID_TYPES = ("int32", "int64")
MAX_EXTENT = 2**31 - 1
BLOCK = 128  # rows and columns that share a scale
FP8_TYPES = ("float8_e4m3fn", "uint8")  # of the latter, the bit patterns
_QUICK_FLOPS, _QUICK_BYTES = 2 * 10**9, 1 << 26  # a tenth of a second of a slow processor


def num_blocks(extent):
    return -(-extent // BLOCK)


def integer(name, value, low, high):
    """An argument that counts something."""
    if isinstance(value, (bool, float)):
        raise TypeError(wrong(name, type(value).__name__, "an int"))
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(wrong(name, type(value).__name__, "an int")) from None
    if not low <= value <= high:
        raise ValueError(wrong(name, value, f"{low}..{high}"))
    return value


def choice(name, value, names):
    """The number of an option's name."""
    if not isinstance(value, str):
        raise TypeError(wrong(name, type(value).__name__, "one of " + ", ".join(names)))
    if value not in names:
        raise ValueError(wrong(name, repr(value), "one of " + ", ".join(names)))
    return names.index(value)


def real(name, value):
    if not isinstance(value, (int, float, numpy.floating, numpy.integer)) or isinstance(value, bool):
        raise TypeError(wrong(name, type(value).__name__, "a number"))
    if not math.isfinite(value):
        raise ValueError(wrong(name, value, "a finite number"))
    return float(value)


class Options:
    """The options that tessera.moe and MoELayer share, read once."""

    def __init__(self, activation, alpha, beta, limit, gated, gate_up_order, first_expert, weight_format,
                 scale_offsets=(0, 0, 0), round_like_engines=False):
        if not isinstance(gated, (bool, numpy.bool_)):
            raise TypeError(wrong("gated", type(gated).__name__, "a bool"))
        if not isinstance(round_like_engines, (bool, numpy.bool_)):
            raise TypeError(wrong("round_like_engines", type(round_like_engines).__name__, "a bool"))
        if round_like_engines and weight_format == "dense":
            raise ValueError(wrong("round_like_engines", True, "False: beside dense weights nothing is quantized"))
        self.gated = bool(gated)
        self.weight_format = weight_format
        self.scale_offsets = _read_offsets(scale_offsets, weight_format, self.gated)
        self.members = {"activation": choice("activation", activation, _native.ACTIVATIONS),
                        "alpha": real("alpha", alpha), "beta": real("beta", beta), "limit": real("limit", limit),
                        "gated": int(self.gated),
                        "gate_up_order": choice("gate_up_order", gate_up_order, _native.GATE_UP_ORDERS),
                        "first_expert": integer("first_expert", first_expert, 0, MAX_EXTENT),
                        "weight_format": choice("weight_format", weight_format, _native.WEIGHT_FORMATS),
                        "round_like_engines": int(round_like_engines),
                        **dict(zip(("gate_scale_offset", "up_scale_offset", "down_scale_offset"), self.scale_offsets))}
        if activation != "clamped_swiglu":  # a limit that does nothing would be a wrong result without a word
            for name, unused in (("alpha", 1.0), ("beta", 0.0), ("limit", 0.0)):
                if self.members[name] != unused:
                    raise ValueError(wrong(name, f"{self.members[name]} for the activation {activation}",
                                           f"{unused}: it is clamped_swiglu's"))


def _read_offsets(offsets, weight_format, gated):
    if not isinstance(offsets, (tuple, list)) or len(offsets) != 3:
        raise TypeError(wrong("scale_offsets", repr(offsets), "three ints: of gate rows, up rows, columns of down"))
    gate, up, down = (integer("scale_offsets", offset, 0, BLOCK - 1) for offset in offsets)
    if weight_format != "fp8-block" and (gate or up or down):
        why = "have no scales" if weight_format == "dense" else "have no blocks of scales"
        raise ValueError(wrong("scale_offsets", offsets, f"(0, 0, 0): {weight_format} weights {why}"))
    if not gated and up:
        raise ValueError(wrong("scale_offsets", offsets, "0 of up: without a gate, gate's is that of gate_up"))
    return gate, up, down


ARRAY_NAMES = ("gate_up", "down", "gate_up_bias", "down_bias", "shared_gate_up", "shared_down", "expert_map",
               "gate_up_scale", "down_scale", "shared_gate_up_scale", "shared_down_scale", "gate_up_input_scale",
               "down_input_scale")


def view_weights(arrays, address=None, inference=True):
    """{name: View} of those that are there, arrays in the order of ARRAY_NAMES."""
    return {name: view(name, array, address, inference) for name, array in zip(ARRAY_NAMES, arrays)
            if array is not None or name in ("gate_up", "down")}


class Weights:
    """Weights as Views in the library's order, [E, 2I, H] and [E, H, I], checked against each other."""

    def __init__(self, views, options, dtype=None, hidden_size=None):
        """`hidden_size`, `dtype`: x's, where there is an x to agree with. The type of dense weights is the layer's."""
        for name in ARRAY_NAMES:
            setattr(self, name, views.get(name))
        gated, self.weight_format = options.gated, options.weight_format
        self.weight_types = (dtype,) if dtype else DTYPES
        if self.weight_format != "dense":
            self.weight_types = FP8_TYPES
        require_type("gate_up", self.gate_up, self.weight_types)
        self.dtype = self.gate_up.dtype if self.weight_format == "dense" else dtype or "bfloat16"
        self.weight_types = (self.gate_up.dtype,)
        if self.gate_up.device != CPU and self.dtype == "float32":
            raise TypeError(wrong("gate_up", "float32 on a GPU", "float16 or bfloat16"))
        self._match("down", self.down, self.weight_types)
        self.gate_up, self.down = as_rows("gate_up", self.gate_up), as_rows("down", self.down)
        self.num_experts, rows, self.hidden_size = self.gate_up.shape
        if hidden_size not in (None, self.hidden_size):
            expected = (self.num_experts, None, hidden_size)
            require_shape("gate_up", self.gate_up, expected, "[E, 2I, H], not gated [E, I, H], with x's H"
                          + _hint(rows == hidden_size))
        self.intermediate_size = half("gate_up", rows, gated)
        self._require_widths()
        expected = (self.num_experts, self.hidden_size, self.intermediate_size)
        require_shape("down", self.down, expected, "[E, H, I] with gate_up's E, H and I"
                      + _hint(self.down.shape[1:] == expected[:0:-1]))
        self._require_matrix("gate_up_bias", (self.num_experts, rows), "[E, rows of gate_up]")
        self._require_matrix("down_bias", (self.num_experts, self.hidden_size), "[E, H]")
        self.shared_intermediate_size = self._read_shared(gated)
        if self.weight_format == "fp8-channel":
            self._require_channel_scales(2 if gated else 1)
        else:
            self._require_block_scales(2 if gated else 1, *options.scale_offsets)
        self._require_input_scales()
        if self.expert_map is not None:
            require_type("expert_map", self.expert_map, ("int32",))
            require_shape("expert_map", self.expert_map, (None,), "[number of global ids]")
            require_device("expert_map", self.expert_map, self.gate_up.device, "gate_up is")
            require_memory("expert_map", self.expert_map, 4)
            if not self.expert_map.shape[0]:
                raise ValueError(wrong("expert_map", "no entries", "one for each global id, or None"))

    def _match(self, name, given, types):
        require_type(name, given, types)
        require_device(name, given, self.gate_up.device, "gate_up is")

    def _require_matrix(self, name, shape, words, types=None):
        given = getattr(self, name)
        if given is not None:
            self._match(name, given, types or (self.dtype,))
            require_shape(name, given, shape, words)
            require_memory(name, given, VECTOR_BYTES)

    def _require_widths(self):
        multiple = LIMITS.width_multiple if self.weight_format == "dense" else VECTOR_BYTES
        for name, width in (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size)):
            if width <= 0 or width % multiple:
                raise ValueError(wrong(f"gate_up: {name}", width, f"a positive multiple of {multiple}"))

    def _require_block_scales(self, parts, gate_offset, up_offset, down_offset):
        """Of formats that have them, each a float32 a block, gate's before up's; else none."""
        hidden, rows, columns, shared = map(num_blocks, (
            self.hidden_size, self.intermediate_size + max(gate_offset, up_offset), self.intermediate_size + down_offset,
            self.shared_intermediate_size))
        halves = (parts,) if parts == 2 else ()
        shapes = {"gate_up_scale": ((self.num_experts, *halves, rows, hidden), "of gate and up, a block each 128 x 128"),
                  "down_scale": ((self.num_experts, hidden, columns), "a block each 128 x 128"),
                  "shared_gate_up_scale": ((*halves, shared, hidden), "of gate and up, a block each 128 x 128"),
                  "shared_down_scale": ((hidden, shared), "a block each 128 x 128")}
        self._require_scales(shapes)

    def _require_channel_scales(self, parts):
        """A float32 each row of a weight, with a last dimension of 1 or without."""
        shared = self.shared_intermediate_size
        shapes = {"gate_up_scale": ((self.num_experts, parts * self.intermediate_size), "[E, 2I], one each row of gate_up"),
                  "down_scale": ((self.num_experts, self.hidden_size), "[E, H], one each row of down"),
                  "shared_gate_up_scale": ((parts * shared,), "[2 I_s], one each row of shared_gate_up"),
                  "shared_down_scale": ((self.hidden_size,), "[H], one each row of shared_down")}
        for name, (shape, words) in shapes.items():
            given = getattr(self, name)
            if given is not None and given.shape == (*shape, 1):
                shapes[name] = (given.shape, words)
        self._require_scales(shapes)

    def _require_input_scales(self):
        """Static scales of x and of the intermediate, each one or one an expert."""
        for name in ("gate_up_input_scale", "down_input_scale"):
            given = getattr(self, name)
            if given is None:
                continue
            if self.weight_format != "fp8-channel":
                raise ValueError(wrong(name, "an array", f"None: beside {self.weight_format} weights there are none"))
            own = self.num_experts + bool(self.shared_intermediate_size)
            words = "one for all experts" if given.shape == (1,) else "one for each expert" + (
                ", the shared one's last" if own > self.num_experts else "; or [1]")
            self._match(name, given, ("float32",))
            require_shape(name, given, (1,) if given.shape == (1,) else (own,), words)
            require_memory(name, given, given.itemsize)

    def _require_scales(self, shapes):
        shared = self.shared_intermediate_size
        for name, (shape, words) in shapes.items():
            given = getattr(self, name)
            wanted = self.weight_format != "dense" and (shared or not name.startswith("shared_"))
            if not wanted and given is not None:
                raise ValueError(wrong(name, "an array", f"None: weights of format {self.weight_format} here have none"))
            if wanted and given is None:
                raise ValueError(wrong(name, None, f"an array: weights of format {self.weight_format} have scales"))
            self._require_matrix(name, shape, words, ("float32",))

    def _read_shared(self, gated):
        """I_s, 0 without a shared expert."""
        if self.shared_gate_up is None and self.shared_down is None:
            return 0
        for name in ("shared_gate_up", "shared_down"):
            if getattr(self, name) is None:
                raise ValueError(wrong(name, None, "a matrix: a shared expert has both"))
        self._require_matrix("shared_gate_up", (None, self.hidden_size), "[2 I_s, H], or [I_s, H] if not gated",
                             self.weight_types)
        width = half("shared_gate_up", self.shared_gate_up.shape[0], gated)
        self._require_matrix("shared_down", (self.hidden_size, width), "[H, I_s] with shared_gate_up's I_s",
                             self.weight_types)
        return width

    def views(self):
        """{name: View} of those that are there."""
        return {name: getattr(self, name) for name in ARRAY_NAMES if getattr(self, name) is not None}

    def structure(self):
        return _native.new(_native.MoEWeights, **{name: part.pointer for name, part in self.views().items()})

    def config(self, options, top_k, num_threads=0):
        if self.expert_map is not None and options.members["first_expert"]:
            raise ValueError(wrong("first_expert", f"{options.members['first_expert']} with an expert_map",
                                   "0: the map says which ids are whose"))
        num_threads = integer("num_threads", num_threads, 0, LIMITS.max_threads)
        if num_threads and self.gate_up.device != CPU:
            raise ValueError(wrong("num_threads", f"{num_threads} with weights on {device_name(self.gate_up.device)}",
                                   "0: only the CPU computes with threads"))
        return _native.new(_native.MoEConfig, hidden_size=self.hidden_size, intermediate_size=self.intermediate_size,
                           num_experts=self.num_experts, top_k=integer("top_k", top_k, 1, MAX_EXTENT),
                           dtype=DTYPES[self.dtype], device=self.gate_up.device,
                           num_mapped_experts=0 if self.expert_map is None else self.expert_map.shape[0],
                           shared_intermediate_size=self.shared_intermediate_size,
                           num_gate_up_input_scales=_count(self.gate_up_input_scale),
                           num_down_input_scales=_count(self.down_input_scale),
                           num_threads=num_threads, **options.members)


def _count(given):
    return 0 if given is None else given.shape[0]


def half(name, rows, gated):
    if gated and rows % 2:
        raise ValueError(wrong(name, f"{rows} rows", "an even number: gate rows and up rows"))
    return rows // 2 if gated else rows


def _hint(transposed):
    return "; prepare_weights turns transposed weights into this order" if transposed else ""


def as_rows(name, given):
    """A weight [E, rows, columns] that is contiguous, or whose last two dimensions were swapped back."""
    require_shape(name, given, (None, None, None))
    if not given.is_contiguous() and given.swapped().is_contiguous():
        given = given.swapped()
    require_memory(name, given, VECTOR_BYTES)
    return given


class NativeLayer:
    """A layer of the library: addresses and sizes, what every call is checked against. On the CPU it owns threads."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.hidden_size, self.top_k, self.device = config.hidden_size, config.top_k, config.device
        self.dtype = next(name for name, number in DTYPES.items() if number == config.dtype)
        self.has_shared_expert = config.shared_intermediate_size > 0
        weight_format = _native.WEIGHT_FORMATS[config.weight_format]
        self.quantizes_tokens = weight_format != "dense"
        self.token_groups = 1 if weight_format == "fp8-channel" else num_blocks(config.hidden_size)  # scales of a token
        self.torch_dtype = self.torch_device = None  # tessera._torch's words for dtype and device, noted at first use
        self.known_workspace_bytes = {}
        # On the CPU a call of more may last long enough for somebody to press Ctrl-C.
        self.quick_tokens = _QUICK_FLOPS // (6 * config.top_k * config.hidden_size * config.intermediate_size)
        self.handle = None
        self.renew()

    def renew(self):
        """Makes the native object, also again in a forked child, where the threads of the parent's do not exist."""
        if self.device != CPU:
            use_cuda()
        arguments = ctypes.byref(self.config), ctypes.byref(self.weights)
        self.known_workspace_bytes.clear()  # fewer threads need less: a limit on processes may let in fewer
        self.handle = _native.Handle(lambda reference: lib.tessera_moe_create(*arguments, reference),
                                     lib.tessera_moe_destroy)

    def workspace_bytes(self, num_tokens):
        known = self.known_workspace_bytes.get(num_tokens)
        if known is None:
            if not self.handle.pointer:
                self.renew()
            result = ctypes.c_size_t()
            check(lib.tessera_moe_workspace_bytes(self.handle.pointer, num_tokens, ctypes.byref(result)))
            known = result.value
            if len(self.known_workspace_bytes) < 4096:  # a bound for callers whose batches have every size there is
                self.known_workspace_bytes[num_tokens] = known
        return known

    def run(self, inputs, workspace, workspace_bytes, stream, num_tokens=0):
        """`inputs`: packed bytes. Returns when the work is enqueued or, on the CPU, done: there one run at a time."""
        if not self.handle.pointer:
            self.renew()
        if self.device != CPU:
            check(lib.tessera_moe_run(self.handle.pointer, inputs, workspace, workspace_bytes, stream))
            return

        def run_now():
            with self.handle.lock:
                check(lib.tessera_moe_run(self.handle.pointer, inputs, workspace, workspace_bytes, None))

        run_now() if num_tokens <= self.quick_tokens else _native.in_background(run_now)


class LayerCache:
    """The least recently used native layers of tessera.moe. They hold addresses and sizes only, so one is right for
    every call with the same key; those on the CPU own threads, so few are kept."""

    def __init__(self, cpu_layers=8, cuda_layers=1024):
        self._limits = {True: cpu_layers, False: cuda_layers}
        self.forget()
        _native._Process.owners.add(self)

    def forget(self):
        self._layers = {True: collections.OrderedDict(), False: collections.OrderedDict()}
        self._lock = threading.Lock()

    lose = forget  # in a forked child; a lock held by a thread of the parent would never be released

    def find(self, key, on_cpu):
        layers = self._layers[on_cpu]
        layer = layers.get(key)
        if layer is not None:
            try:
                layers.move_to_end(key)
            except KeyError:  # another thread has just evicted it
                pass
        return layer

    def add(self, key, layer):
        with self._lock:
            layers = self._layers[layer.device == CPU]
            layers[key] = layer
            while len(layers) > self._limits[layer.device == CPU]:
                layers.popitem(last=False)


CACHE = LayerCache()


def read_x(x, stream, name="x"):
    """(View of x, address of the stream to work on): `stream`, or the one that x's framework works on now."""
    given = view(name, x, stream if isinstance(stream, int) else None)
    address = read_stream(stream, given.device)
    return given, current_stream(x, given.device) if address is None else address


def run(layer, x, x_view, topk_ids, topk_weights, shared_weight, out, workspace, address, x_scale=None):
    """One call with every argument checked, on the stream at `address`."""
    num_tokens = _require_x(layer, x_view, x_scale is not None)
    scale = _read_beside_x("x_scale", x_scale, layer.quantizes_tokens and "[T, scales of a token]",
                           "with dense weights x is not quantized", (num_tokens, layer.token_groups), layer, address)
    ids = view("topk_ids", topk_ids, address)
    require_type("topk_ids", ids, _ID_TYPES)
    _require_argument("topk_ids", ids, (num_tokens, layer.top_k), "[T, k]", layer)
    slots = view("topk_weights", topk_weights, address)
    require_type("topk_weights", slots, tuple(dict.fromkeys(("float32", layer.dtype))))
    _require_argument("topk_weights", slots, (num_tokens, layer.top_k), "[T, k]", layer)
    shared = _read_beside_x("shared_weight", shared_weight, layer.has_shared_expert and "[T]",
                            "the layer has no shared expert", (num_tokens,), layer, address)
    needed = layer.workspace_bytes(num_tokens)
    result, scratch = _make_results(x, num_tokens, layer, out, workspace, needed, address)
    target = view("out", result, address)
    require_type("out", target, (layer.dtype,))
    _require_argument("out", target, (num_tokens, layer.hidden_size), "[T, H]", layer, VECTOR_BYTES, writable=True)
    room = view("workspace", scratch, address)
    require_type("workspace", room, ("uint8",))
    _require_argument("workspace", room, (None,), "bytes", layer, VECTOR_BYTES, writable=True)
    if room.shape[0] < needed:
        raise ValueError(wrong("workspace", f"{room.shape[0]} bytes", f"at least {needed}"))
    inputs = PACK_INPUTS(INPUTS_BYTES, num_tokens, ids.dtype == "int64", x_view.pointer, ids.pointer, slots.pointer,
                         target.pointer, shared.pointer if shared else 0, DTYPES[slots.dtype],
                         scale.pointer if scale else 0)
    layer.run(inputs, room.pointer, room.shape[0], address, num_tokens)
    return result


def _require_x(layer, x, is_quantized):
    require_type("x", x, FP8_TYPES if is_quantized else (layer.dtype,))
    require_shape("x", x, (None, layer.hidden_size), "[T, H]")
    require_device("x", x, layer.device, "the weights are")
    require_memory("x", x, VECTOR_BYTES)
    return integer("x: number of tokens", x.shape[0], 0, MAX_EXTENT)


def _read_beside_x(name, given, words, why_not, shape, layer, address):
    """The View of float32 numbers that a call has for its tokens. `words`: what they are, of a layer that has them."""
    if given is None:
        return None
    if not words:
        raise ValueError(wrong(name, "an array", f"None: {why_not}"))
    numbers = view(name, given, address)
    require_type(name, numbers, ("float32",))
    _require_argument(name, numbers, shape, words, layer)
    return numbers


def _require_argument(name, given, shape, words, layer, alignment=None, writable=False):
    require_shape(name, given, shape, words)
    require_device(name, given, layer.device, "x and the weights are")
    require_memory(name, given, alignment or given.itemsize, writable)


def _make_results(x, num_tokens, layer, out, workspace, needed, address):
    """(out, workspace), made by x's framework where they were not given."""
    if out is not None and workspace is not None:
        return out, workspace
    torch = torch_tensors(x)
    if torch is not None:
        made = torch.allocate(layer.device, address, ((num_tokens, layer.hidden_size), layer.dtype), (needed, "uint8"))
    elif isinstance(x, numpy.ndarray):
        dtype = x.dtype if str(x.dtype) == layer.dtype else _numpy_type(layer.dtype)
        made = numpy.empty((num_tokens, layer.hidden_size), dtype), numpy.empty(needed, numpy.uint8)
    else:
        name = "out" if out is None else "workspace"
        raise ValueError(wrong(name, None, f"an array: none is allocated for {kind_of(x)}"))
    return made[0] if out is None else out, made[1] if workspace is None else workspace


def _numpy_type(name):
    try:
        return numpy.dtype(name)
    except TypeError:  # ml_dtypes' type, which nobody has imported
        raise ValueError(wrong("out", None, f"an array: NumPy has no {name}")) from None


def moe(x, arrays, topk_ids, topk_weights, shared_weight, options, out, workspace, stream, x_scale=None, dtype=None,
        key=None):
    """tessera.moe with every argument checked. `arrays` in the order of ARRAY_NAMES; `options`: the arguments of
    Options; `key`: the caller's own word for the layer that this call uses."""
    x_view, address = read_x(x, stream)
    read = Options(*options)
    layer_type = _layer_type(x_view, x_scale, dtype, read.weight_format)
    require_shape("x", x_view, (None, None), "[T, H]")
    views = view_weights(arrays, address)
    for name in ("gate_up", "down"):
        require_device(name, views[name], x_view.device, "x is")
        if read.weight_format == "dense":
            require_type(name, views[name], (x_view.dtype,))
    weights = Weights(views, read, layer_type, x_view.shape[1])
    ids = view("topk_ids", topk_ids, address)
    require_shape("topk_ids", ids, (None, None), "[T, k]")
    config, structure = weights.config(read, ids.shape[1]), weights.structure()
    key = key or bytes(config) + bytes(structure)
    layer = CACHE.find(key, x_view.device == CPU)
    if layer is None:
        layer = NativeLayer(config, structure)
        CACHE.add(key, layer)
    return run(layer, x, x_view, topk_ids, topk_weights, shared_weight, out, workspace, address, x_scale)


def _layer_type(x, x_scale, dtype, weight_format):
    """The type of the layer: x's, or where that is quantized `dtype`."""
    if dtype is not None:
        choice("dtype", dtype, tuple(DTYPES))
    if x_scale is not None:
        if weight_format == "dense":
            raise ValueError(wrong("x_scale", "an array", "None: with dense weights x is not quantized"))
        require_type("x", x, FP8_TYPES)
        return dtype or "bfloat16"
    require_type("x", x, DTYPES)
    if dtype not in (None, x.dtype):
        raise ValueError(wrong("dtype", dtype, f"{x.dtype}, as x is"))
    return x.dtype


def prepare(gate_up, down, gated, stream, allocate):
    """Repacks Views of transposed weights; `allocate(View, shape)` makes (array, View) of each result."""
    require_type("gate_up", gate_up, DTYPES)
    require_type("down", down, (gate_up.dtype,))
    require_device("down", down, gate_up.device, "gate_up is")
    for name, given in (("gate_up", gate_up), ("down", down)):
        require_shape(name, given, (None, None, None))
        require_memory(name, given, VECTOR_BYTES)
    experts, hidden, columns = gate_up.shape
    intermediate = half("gate_up", columns, gated)
    require_shape("down", down, (experts, intermediate, hidden), "[E, I, H] with the E, I and H of gate_up [E, H, 2I]")
    config = _native.new(_native.MoEConfig, hidden_size=hidden, intermediate_size=intermediate, num_experts=experts,
                         top_k=1, dtype=DTYPES[gate_up.dtype], gated=int(gated), device=gate_up.device)
    if gate_up.device != CPU:
        use_cuda()
    made = [allocate(given, (experts, given.shape[2], given.shape[1])) for given in (gate_up, down)]

    def prepare_now():
        check(lib.tessera_moe_prepare_weights(ctypes.byref(config), gate_up.pointer, down.pointer, made[0][1].pointer,
                                              made[1][1].pointer, stream or None))

    is_long = gate_up.device == CPU and gate_up.num_bytes > _QUICK_BYTES
    _native.in_background(prepare_now) if is_long else prepare_now()
    return made


def route(logits, top_k, kind, bias, num_groups, topk_groups, scale, stream):
    """tessera.route for an array that is NumPy's or PyTorch's."""
    torch = torch_tensors(logits)
    given, address = read_x(logits, stream, "logits")
    require_type("logits", given, DTYPES)
    require_shape("logits", given, (None, None), "[T, E]")
    require_memory("logits", given, VECTOR_BYTES)
    num_tokens, num_experts = given.shape
    config = _native.new(_native.RouterConfig, kind=choice("kind", kind, _native.ROUTER_KINDS),
                         num_experts=num_experts, top_k=integer("top_k", top_k, 1, 2**31 - 1),
                         num_groups=integer("num_groups", num_groups, 1, 2**31 - 1),
                         topk_groups=integer("topk_groups", topk_groups, 1, 2**31 - 1),
                         scale=real("scale", scale), logits_dtype=DTYPES[given.dtype], device=given.device)
    bias_pointer = None
    if bias is not None:
        scores = view("bias", bias, address)
        require_type("bias", scores, ("float32",))
        require_shape("bias", scores, (num_experts,), "[E]")
        require_device("bias", scores, given.device, "logits is")
        require_memory("bias", scores, VECTOR_BYTES)
        bias_pointer = scores.pointer
    if given.device != CPU:
        use_cuda()
    shape = (num_tokens, config.top_k)
    if torch is not None:
        ids, weights = torch.allocate(given.device, address, (shape, "int32"), (shape, "float32"))
    else:
        ids, weights = numpy.empty(shape, numpy.int32), numpy.empty(shape, numpy.float32)
    check(lib.tessera_route(ctypes.byref(config), num_tokens, given.pointer, bias_pointer, view("topk_ids", ids).pointer,
                            view("topk_weights", weights).pointer, None, address or None))
    return ids, weights
