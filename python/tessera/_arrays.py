"""Arrays of any framework as (address, shape, strides, type, device), and the checks before an address crosses to C.

Every refusal names the argument: TypeError (no array, wrong type), ValueError (shape, device), BufferError (not
contiguous, misaligned, read-only).
"""

import sys

import numpy

from . import _dlpack
from ._native import CPU, LIMITS, use_cuda, wrong

VECTOR_BYTES = LIMITS.alignment
_NUMPY_TYPES = {numpy.dtype(name): name for name in ("float32", "float16", "int32", "int64", "uint8")}


class View:
    """What the library needs to know of an array, and the object that keeps its memory alive."""

    __slots__ = ("pointer", "shape", "strides", "dtype", "itemsize", "device", "writable", "owner")

    def __init__(self, pointer, shape, strides, dtype, itemsize, device, writable, owner):
        self.pointer = pointer
        self.shape = shape
        self.strides = strides  # in elements
        self.dtype = dtype  # "float32", ...; for what the library does not know, the framework's word
        self.itemsize = itemsize
        self.device = device  # CPU or the number of a CUDA device
        self.writable = writable
        self.owner = owner

    @property
    def num_bytes(self):
        count = self.itemsize
        for extent in self.shape:
            count *= extent
        return count

    def is_contiguous(self):
        if 0 in self.shape:  # strides of nothing mean nothing
            return True
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides)):
            if extent != 1 and stride != expected:
                return False
            expected *= extent
        return True

    def swapped(self):
        """The same memory with its last two dimensions swapped."""
        order = (*range(len(self.shape) - 2), len(self.shape) - 1, len(self.shape) - 2)
        return View(self.pointer, tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order),
                    self.dtype, self.itemsize, self.device, self.writable, self.owner)


def kind_of(value):
    """The name of a value's type in a message: "list", "cupy.ndarray"."""
    module = type(value).__module__
    return type(value).__name__ if module == "builtins" else f"{module}.{type(value).__name__}"


def device_name(device):
    return "the CPU" if device == CPU else f"cuda:{device}"


def torch_tensors(value):
    """The module tessera._torch if value is a PyTorch tensor, else None; PyTorch is never imported for it."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, getattr(torch, "Tensor", ())):
        return None
    from . import _torch  # a compiler that traces this line imports the module; it could not trace a cache of it
    return _torch


def view(name, value, stream=None, inference=True):
    """The View of an argument. `stream` is where the work will run, for producers that must synchronise with it; None:
    where the argument's own framework works now. `inference`: refuse a tensor that requires grad in grad mode."""
    if isinstance(value, numpy.ndarray):
        return _numpy_view(name, value)
    if isinstance(value, View):  # of memory that is the library's own
        return value
    torch = torch_tensors(value)
    if torch is not None:
        return torch.view(name, value, inference)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        device = _dlpack.device(name, value)
        return View(*_dlpack.read(name, value, device, current_stream(value, device) if stream is None else stream))
    raise TypeError(wrong(name, kind_of(value),
                          "a NumPy array, a PyTorch tensor, or an object with __dlpack__ and __dlpack_device__"))


def _numpy_view(name, value):
    if isinstance(value, numpy.ma.MaskedArray):
        raise TypeError(wrong(name, "a masked array", "an array without a mask"))
    dtype, itemsize = value.dtype, value.itemsize
    known = _NUMPY_TYPES.get(dtype)
    if known is None:
        # ml_dtypes' type; NumPy has none of its own.
        known = "bfloat16" if dtype.name == "bfloat16" and itemsize == 2 else str(dtype)
    strides = tuple(step // itemsize if itemsize and step % itemsize == 0 else -1 for step in value.strides)
    return View(value.__array_interface__["data"][0], value.shape, strides, known, itemsize, CPU,
                value.flags.writeable, value)


def require_type(name, given, types):
    if given.dtype not in types:
        raise TypeError(wrong(name, given.dtype, " or ".join(types)))


def require_shape(name, given, shape, words=None):
    """`shape` holds extents; None stands for any. `words` says what they are."""
    fits = len(given.shape) == len(shape) and all(want is None or have == want
                                                  for have, want in zip(given.shape, shape))
    if not fits:
        plain = "[" + ", ".join("any" if extent is None else str(extent) for extent in shape) + "]"
        raise ValueError(wrong(name, f"shape {list(given.shape)}", f"{plain}{' = ' + words if words else ''}"))


def require_device(name, given, device, whose):
    if given.device != device:
        raise ValueError(wrong(name, f"an array on {device_name(given.device)}", f"{device_name(device)}, as {whose}"))


def require_memory(name, given, alignment, writable=False):
    """Contiguous, aligned memory that is really there."""
    if not given.is_contiguous():
        raise BufferError(wrong(name, f"strides {list(given.strides)} for shape {list(given.shape)}",
                                "a contiguous array"))
    if given.pointer % alignment:
        raise BufferError(wrong(name, "misaligned memory", f"{alignment}-byte alignment"))
    if not given.pointer and given.num_bytes:
        raise RuntimeError(wrong(name, "an array whose memory was freed", "memory"))
    if writable and not given.writable:
        raise BufferError(wrong(name, "a read-only array", "one that may be written"))


def same_memory(given):
    """Whether the array that a View was made of still lies where it lay. What came by DLPack is pinned by its capsule."""
    owner = given.owner
    if isinstance(owner, numpy.ndarray):
        return owner.__array_interface__["data"][0] == given.pointer and owner.nbytes >= given.num_bytes
    return torch_tensors(owner) is None or owner.data_ptr() == given.pointer


def current_stream(value, device):
    """The stream that the framework of `value` works on now: of PyTorch and CuPy theirs, else the default stream."""
    if device == CPU:
        return 0
    use_cuda()
    torch = torch_tensors(value)
    if torch is not None:
        return torch.current_stream(device)
    if type(value).__module__.partition(".")[0] == "cupy":
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            return cupy.cuda.get_current_stream().ptr
    return 0


def read_stream(stream, device):
    """The `stream` argument as an address, or None where it was left out."""
    if stream is None:
        return None
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise TypeError(wrong("stream", type(stream).__name__, "an int: the address of a CUDA stream, 0 for the default"))
    if device == CPU:
        raise ValueError(wrong("stream", "a stream", "None: the arrays are on the CPU"))
    if stream < 0 or stream >= 1 << 64:
        raise ValueError(wrong("stream", stream, "the address of a CUDA stream"))
    return stream
