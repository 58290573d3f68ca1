"""tessera.load_layer and inspect_checkpoint: layers of a checkpoint on disk, into memory of the device that runs them."""

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable
from os import PathLike
from typing import Any, Literal, NamedTuple

from . import _native
from ._arrays import View
from ._layer import MoELayer
from ._moe import choice, integer, num_blocks
from ._types import WeightFormat
from ._native import ACTIVATIONS, CPU, DTYPES, GATE_UP_ORDERS, LAYER_ARRAYS, WEIGHT_FORMATS, check, lib, wrong

_AS_STORED = -1
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
_PROGRESS_SECONDS = 0.1  # between two lines on a terminal


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


class _Open:
    """A checkpoint of the library."""

    def __init__(self, path):
        try:
            folder = os.fsencode(path)
        except TypeError:
            raise TypeError(wrong("path", type(path).__name__, "a folder's name")) from None
        if b"\0" in folder:
            raise ValueError(wrong("path", repr(path), "a name without NUL"))
        self.handle = _native.Handle(lambda reference: lib.tessera_checkpoint_open(folder, reference),
                                     lib.tessera_checkpoint_close, is_slow=True)


def inspect_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """What a checkpoint holds and how each layer with experts would run here, without reading a weight: what ``tessera
    inspect --json`` prints. ValueError names file and tensor; what is wrong with one layer is in its "problem"."""
    opened = _Open(path)
    text = lib.tessera_checkpoint_description(opened.handle.pointer)
    if text is None:
        raise ValueError(lib.tessera_last_error().decode("utf-8", "replace"))
    return json.loads(text)


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
    options = _options(layer, device, shard, dtype, weight_format, shared_expert)
    opened = _Open(path)
    if options.device != CPU:
        _native.use_cuda()
    plan = _native.Handle(
        lambda reference: lib.tessera_layer_plan_create(opened.handle.pointer, ctypes.byref(options), reference),
        lib.tessera_layer_plan_destroy, is_slow=True)
    config, sizes = _native.new(_native.MoEConfig), _native.new(_native.LayerSizes)
    check(lib.tessera_layer_plan_get(plan.pointer, ctypes.byref(config), ctypes.byref(sizes)))
    arrays = {name: _allocate(shape, kind, options.device) for name, (shape, kind) in _shapes(config, sizes).items()}
    start = time.monotonic()
    _read(plan, arrays, _reporter(progress, f"layer {options.layer}"))
    seconds = time.monotonic() - start
    made = MoELayer(**{name: array for name, (array, _) in arrays.items()}, num_threads=num_threads,
                    **_layer_options(config))
    made.loaded = Loaded(os.fspath(path), options.layer, (options.shard, options.num_shards),
                         WEIGHT_FORMATS[config.weight_format], _dtype_name(config.dtype), sizes.read_bytes,
                         sum(getattr(sizes, name) for name in LAYER_ARRAYS), seconds, sizes.num_blocks,
                         sizes.num_exact_blocks)
    return made


def _options(layer, device, shard, dtype, weight_format, shared_expert):
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(wrong("shard", repr(shard), "two ints: which one, of how many"))
    count = integer("shard", shard[1], 1, 2**31 - 1)
    if shared_expert is not None and not isinstance(shared_expert, bool):
        raise TypeError(wrong("shared_expert", type(shared_expert).__name__, "a bool or None"))
    names = tuple(DTYPES)
    return _native.new(
        _native.LoadOptions, layer=integer("layer", layer, 0, 2**31 - 1), shard=integer("shard", shard[0], 0, count - 1),
        num_shards=count, device=_device(device),
        dtype=_AS_STORED if dtype is None else DTYPES[names[choice("dtype", dtype, names)]],
        weight_format=_AS_STORED if weight_format is None else choice("weight_format", weight_format, WEIGHT_FORMATS),
        shared_expert=_AS_STORED if shared_expert is None else int(shared_expert))


def _device(device):
    """A device's number: of "cpu", "cuda", "cuda:1", an int, or what prints as one of these (torch.device)."""
    if isinstance(device, int) and not isinstance(device, bool):
        return integer("device", device, CPU, 2**31 - 1)
    matched = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", str(device))
    if matched is None:
        raise ValueError(wrong("device", repr(device), "'cpu', 'cuda', 'cuda:N', or a device's number, -1 for the CPU"))
    if str(device) == "cpu":
        return CPU
    if matched[1] is not None:
        return int(matched[1])
    torch = sys.modules.get("torch")
    return torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0


def _dtype_name(number):
    return next(name for name, known in DTYPES.items() if known == number)


def _shapes(config, sizes):
    """{name: (shape, type)} of the arrays that the layer has."""
    experts, hidden, width = config.num_experts, config.hidden_size, config.intermediate_size
    shared, dtype = config.shared_intermediate_size, _dtype_name(config.dtype)
    form = WEIGHT_FORMATS[config.weight_format]
    weight = dtype if form == "dense" else "float8_e4m3fn"
    rows = num_blocks(width + max(config.gate_scale_offset, config.up_scale_offset))
    columns = num_blocks(width + config.down_scale_offset)
    shapes = {"gate_up": ((experts, 2 * width, hidden), weight), "down": ((experts, hidden, width), weight),
              "gate_up_bias": ((experts, 2 * width), dtype), "down_bias": ((experts, hidden), dtype),
              "shared_gate_up": ((2 * shared, hidden), weight), "shared_down": ((hidden, shared), weight)}
    if form == "fp8-channel":
        scales = {"gate_up_scale": (experts, 2 * width), "down_scale": (experts, hidden),
                  "shared_gate_up_scale": (2 * shared,), "shared_down_scale": (hidden,)}
    else:
        scales = {"gate_up_scale": (experts, 2, rows, num_blocks(hidden)),
                  "down_scale": (experts, num_blocks(hidden), columns),
                  "shared_gate_up_scale": (2, num_blocks(shared), num_blocks(hidden)),
                  "shared_down_scale": (num_blocks(hidden), num_blocks(shared))}
    shapes.update({name: (shape, "float32") for name, shape in scales.items()})
    return {name: shapes[name] for name in LAYER_ARRAYS if getattr(sizes, name)}


def _allocate(shape, kind, device):
    """(array, its address): a tensor where PyTorch is imported, else memory of the library."""
    if "torch" in sys.modules:
        from . import _torch
        made, = _torch.allocate(device, None if device == CPU else _torch.current_stream(device), (shape, kind))
        return made, made.data_ptr()
    item_bytes, strides = _ITEM_BYTES[kind], [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    pointer, owner = _native.allocate(device, strides[0] * shape[0] * item_bytes)
    return View(pointer, shape, tuple(strides), kind, item_bytes, device, True, owner), pointer


def _layer_options(config):
    return {"top_k": config.top_k, "activation": ACTIVATIONS[config.activation], "alpha": config.alpha,
            "beta": config.beta, "limit": config.limit, "gated": bool(config.gated),
            "gate_up_order": GATE_UP_ORDERS[config.gate_up_order], "weight_format": WEIGHT_FORMATS[config.weight_format],
            "first_expert": config.first_expert, "dtype": _dtype_name(config.dtype),
            "scale_offsets": (config.gate_scale_offset, config.up_scale_offset, config.down_scale_offset)}


def _read(plan, arrays, report):
    memory = _native.new(_native.LayerMemory, **{name: address for name, (_, address) in arrays.items()})
    failed = []

    def tell(_, done, total):
        if report is not None and not failed:
            try:
                report(done, total)
            except BaseException as error:  # leaves from here when the library is back
                failed.append(error)

    callback = _native.PROGRESS(tell)
    try:
        _native.in_background(lambda: check(lib.tessera_layer_plan_read(plan.pointer, ctypes.byref(memory), callback, None)))
    finally:
        if isinstance(report, _Bar):
            report.remove()
    if failed:
        raise failed[0]


def _reporter(progress, name):
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if isinstance(progress, bool):
        return _Bar(name) if progress else None
    if not callable(progress):
        raise TypeError(wrong("progress", type(progress).__name__, "None, a bool, or a function of bytes done and in all"))
    return progress


class _Bar:
    """One line on standard error: bytes, share, rate."""

    def __init__(self, name):
        self._name, self._start, self._drawn = name, time.monotonic(), -_PROGRESS_SECONDS

    def __call__(self, done, total):
        seconds = time.monotonic() - self._start
        if seconds - self._drawn < _PROGRESS_SECONDS and done < total:
            return
        self._drawn = seconds
        filled = 20 * done // max(total, 1)
        print(f"\r{self._name} [{'#' * filled}{' ' * (20 - filled)}] {done / 1e9:.2f} of {total / 1e9:.2f} GB, "
              f"{done / 1e9 / max(seconds, 1e-9):.2f} GB/s", end="\x1b[K", file=sys.stderr, flush=True)

    def remove(self):
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
