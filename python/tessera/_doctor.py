"""tessera.doctor(): what this installation can do here, found out by doing it."""

import ctypes
import importlib.metadata
from typing import NamedTuple

import numpy

from . import _moe, _native
from ._arrays import View
from ._native import CPU, DTYPES, INPUTS_BYTES, PACK_INPUTS, lib

_NAME_BYTES = 256


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


def doctor() -> Doctor:
    """What this installation can do here, found out by doing it: a small layer on every usable device, checked."""
    devices = tuple(_describe(index) for index in range(CPU, _native.num_devices()))
    problems = tuple(problem for device in devices if device.usable for problem in _try(device.index))
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return Doctor(_native.VERSION, str(_native.PATH), devices, torch, problems)


def why_unusable(device: int) -> str:
    """Empty if layers and classifiers run on this device, else the reason. The number of a CUDA device, or -1 for the CPU;
    ValueError for a number that no device has. The answer is the library's own, the same in every interface."""
    return _native.why_unusable(_moe.integer("device", device, CPU, 2**31 - 1))


def _describe(index):
    name = ctypes.create_string_buffer(_NAME_BYTES)
    known = lib.tessera_device_name(index, name, _NAME_BYTES) == 0
    why_not = why_unusable(index)
    return Device(index, name.value.decode("utf-8", "replace") if known else "", not why_not, why_not)


def _try(index):
    """Problems of a small layer on a device: none, or one. Its numbers are small integers, so the sums are exact."""
    where = "the CPU" if index == CPU else f"cuda:{index}"
    try:
        wrong_elements = _small_layer(index)
    except (RuntimeError, ValueError, MemoryError, OSError) as error:
        return [f"{where}: {error}"]
    return [f"{where}: {wrong_elements} elements of a small layer are wrong"] if wrong_elements else []


def _small_layer(index):
    """How many elements of out = sum over slots of weight * down relu(gate x) * (up x) are wrong on a device."""
    tokens, hidden, intermediate, experts, top_k = 5, 64, 32, 4, 2
    random = numpy.random.default_rng(7)
    x = _sparse(random, (tokens, hidden))
    gate_up, down = _sparse(random, (experts, 2 * intermediate, hidden)), _sparse(random, (experts, hidden, intermediate))
    ids = random.permuted(numpy.tile(numpy.arange(experts, dtype=numpy.int32), (tokens, 1)), axis=1)[:, :top_k].copy()
    weights = numpy.exp2(random.integers(-1, 2, (tokens, top_k))).astype(numpy.float32)
    expected = numpy.zeros((tokens, hidden))
    for token, slot in numpy.ndindex(tokens, top_k):
        rows = gate_up[ids[token, slot]].astype(numpy.float64) @ x[token]
        act = numpy.maximum(rows[:intermediate], 0) * rows[intermediate:]
        expected[token] += weights[token, slot] * (down[ids[token, slot]].astype(numpy.float64) @ act)
    with _DeviceMemory(index) as memory:
        views = {"gate_up": memory.put(gate_up), "down": memory.put(down)}
        options = _moe.Options("relu", 1.0, 0.0, 0.0, True, "gate_first", 0, "dense")
        read = _moe.Weights(views, options)
        layer = _moe.NativeLayer(read.config(options, top_k), read.structure())
        needed = layer.workspace_bytes(tokens)
        workspace = memory.put(numpy.zeros(needed, numpy.uint8))
        out = memory.put(numpy.full((tokens, hidden), numpy.nan, x.dtype))
        inputs = PACK_INPUTS(INPUTS_BYTES, tokens, 0, memory.put(x).pointer, memory.put(ids).pointer,
                             memory.put(weights).pointer, out.pointer, 0, DTYPES["float32"], 0)
        layer.run(inputs, workspace.pointer, needed, None)
        got = memory.get(out, x.dtype)
    return int((got.astype(numpy.float64) != expected).sum())


def _sparse(random, shape):
    """float16 numbers of -1, 0, 1, few enough of them that every value of the layer is an integer below 2048."""
    signs = random.integers(-1, 2, shape)
    return (signs * (random.random(shape) < 0.25)).astype(numpy.float16)


class _DeviceMemory:
    """Copies of arrays on a device, for whoever has no framework there: on a GPU through the CUDA driver itself."""

    def __init__(self, index):
        self.index, self.kept, self.driver = index, [], None

    def __enter__(self):
        if self.index != CPU:
            _native.use_cuda()
            self.driver = ctypes.CDLL("libcuda.so.1")
            self.context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.index)
            self._call("cuCtxPushCurrent_v2", self.context)
        return self

    def __exit__(self, *_):
        self.kept.clear()
        if self.driver is not None:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(self.context))
            self._call("cuDevicePrimaryCtxRelease_v2", self.index)

    def _call(self, name, *arguments):
        code = getattr(self.driver, name)(*arguments)
        if code:
            raise _native.TesseraError(f"{name}: got CUDA driver error {code}, expected 0")

    def _copy(self, target, source, num_bytes):
        if self.driver is None:
            ctypes.memmove(target, source, num_bytes)
        else:  # waits for all work before it on the default stream, where the layer runs
            self._call("cuMemcpy", ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(num_bytes))

    def put(self, array):
        pointer, handle = _native.allocate(self.index, array.nbytes)
        self.kept.append(handle)
        self._copy(pointer, array.ctypes.data, array.nbytes)
        strides = tuple(step // array.itemsize for step in array.strides)
        return View(pointer, array.shape, strides, array.dtype.name, array.itemsize, self.index, True, handle)

    def get(self, given, dtype):
        array = numpy.empty(given.shape, dtype)
        self._copy(array.ctypes.data, given.pointer, given.num_bytes)
        return array
