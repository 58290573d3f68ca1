"""tessera.doctor(): what this installation can do here, found out by doing it."""

import ctypes
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
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


class Engine(NamedTuple):
    name: str
    version: str  # "" where it is not installed
    plugin: bool  # whether it would find Tessera's experts
    why_not: str  # "" where it would


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
        plain = self._asdict()
        plain["devices"] = [device._asdict() for device in self.devices]
        plain["engines"] = [engine._asdict() for engine in self.engines]
        return json.dumps(plain, indent=2)

    def __str__(self):
        lines = [("tessera", self.version), ("library", self.library), ("package", self.package), ("python", self.python),
                 ("driver", self.driver or "none")]
        for device in self.devices:
            where = "CPU" if device.index == CPU else f"cuda:{device.index}"
            lines.append((where, f"{device.name}: {'usable' if device.usable else device.why_not}"))
        if self.why_no_gpu:
            lines.append(("GPU", f"none: {self.why_no_gpu}"))
        for engine in self.engines:
            state = engine.version or "not installed"
            if engine.version and engine.name != "torch":
                state += ", finds the plug-in" if engine.plugin else f", without the plug-in: {engine.why_not}"
            lines.append((engine.name, state))
        lines += [("problem", problem) for problem in self.problems]
        lines.append(("healthy" if not self.problems else "NOT healthy", ""))
        return "\n".join(f"{name:<13}{value}".rstrip() for name, value in lines)


def doctor() -> Doctor:
    """What this installation can do here: a small layer on every usable device, checked; the engines that are installed."""
    num_devices = _native.num_devices()
    devices = tuple(_describe(index) for index in range(CPU, num_devices))
    problems = tuple(problem for device in devices if device.usable for problem in _try(device.index))
    return Doctor(_native.VERSION, str(_native.PATH), devices, _version("torch"), problems, _engines(),
                  "" if num_devices else _why_no_gpu(), _driver(), f"{platform.python_version()} ({sys.executable})",
                  str(pathlib.Path(__file__).parent))


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _engines():
    """Each engine, whether it is installed, and whether it would find the plug-in. None of them is imported."""
    found = []
    for name, why_not in (("torch", _why_no_operator), ("transformers", _why_not_in_transformers), ("vllm", _why_not_in_vllm),
                          ("sglang", _why_not_in_sglang)):
        version = _version(name)
        reason = why_not() if version else "not installed"
        found.append(Engine(name, version, not reason, reason))
    return tuple(found)


def _why_no_operator():
    return "" if "tessera._torch" in sys.modules else "torch.ops.tessera comes with the first tensor, or import tessera.torch_ops"


def _why_not_in_transformers():
    module = sys.modules.get("transformers.integrations.moe")
    try:
        registered = module is not None and "tessera" in module.ALL_EXPERTS_FUNCTIONS.valid_keys()
    except AttributeError:
        registered = False
    return "" if registered else "this process has not called tessera.transformers.register()"


def _why_not_in_vllm():
    return _why_no_plugin("vllm", "vllm.general_plugins", "VLLM_PLUGINS", os.environ.get("VLLM_PLUGINS"))


def _why_not_in_sglang():
    return _why_no_plugin("sglang", "sglang.srt.plugins", "SGLANG_PLUGINS", os.environ.get("SGLANG_PLUGINS") or None)


def _why_no_plugin(engine, group, variable, allowed):
    """`allowed`: the names of plug-ins that the variable lets in, None for all."""
    names = [entry.name for entry in importlib.metadata.entry_points(group=group)
             if entry.value.partition(":")[0].split(".")[0] == f"tessera_{engine}"]
    if not names:
        return f"the package tessera-{engine} is not installed: pip install ./integrations/{engine} in a checkout"
    if allowed is not None and not set(names) & {name.strip() for name in allowed.split(",")}:
        return f"{variable}={allowed!r} leaves it out"
    return ""


def _driver():
    """The version of NVIDIA's driver, "" where there is none."""
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    matched = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    return matched[1] if matched else text.partition("\n")[0].strip()


def _why_no_gpu():
    """The library's reason, and which NVIDIA devices are on the bus all the same."""
    reason = lib.tessera_last_error().decode("utf-8", "replace") if lib.tessera_device_check(0) else ""
    here = sorted(_nvidia_on_bus())
    if here and not _driver():
        reason += f"; an NVIDIA device is on the bus ({', '.join(here)}), and no driver is loaded"
    return reason


def _nvidia_on_bus():
    nvidia, display = "0x10de", "0x03"
    for device in pathlib.Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == nvidia and (device / "class").read_text().startswith(display):
                yield device.name
        except OSError:
            continue


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
