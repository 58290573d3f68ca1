"""DLPack capsules, read with ctypes: both the plain and the versioned kind.

A capsule is never taken over: it keeps its name, so that its own destructor hands the memory back when the last
reference to it goes, exactly once, whatever happens in between.
"""

import ctypes

from ._native import CPU, wrong

_CPU, _CUDA, _CUDA_HOST = 1, 2, 3
_READ_ONLY = 1
_TYPES = {(2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16", (0, 32): "int32", (0, 64): "int64",
          (1, 8): "uint8"}
_CODES = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p),
                ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor)]


# Prototypes of our own: those of ctypes.pythonapi belong to everybody in the process.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))


def device(name, value):
    """CPU or the number of the CUDA device of an object with __dlpack_device__."""
    kind, number = value.__dlpack_device__()
    if kind not in (_CPU, _CUDA, _CUDA_HOST):
        raise ValueError(wrong(name, f"memory of DLPack device type {int(kind)}", "the CPU (1) or a CUDA device (2)"))
    return int(number) if kind == _CUDA else CPU


def read(name, value, device, stream):
    """(pointer, shape, strides, dtype, itemsize, device, writable, owner) of an object with __dlpack__."""
    capsule = _export(value, device, stream)
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = ctypes.cast(_pointer(capsule, b"dltensor_versioned"), ctypes.POINTER(_ManagedVersioned)).contents
        if managed.major != 1:
            raise BufferError(wrong(name, f"DLPack version {managed.major}.{managed.minor}", "version 1"))
        writable = not managed.flags & _READ_ONLY
    elif _is_valid(capsule, b"dltensor"):
        managed = ctypes.cast(_pointer(capsule, b"dltensor"), ctypes.POINTER(_Managed)).contents
        writable = True
    else:
        raise BufferError(wrong(name, f"{type(capsule).__name__} from __dlpack__", "a capsule named dltensor"))
    return _members(name, managed.tensor, device, writable, (value, capsule))


def _export(value, device, stream):
    """The capsule. On a GPU the producer makes `stream` wait for its own work; 1 is DLPack's default stream."""
    options = {} if device == CPU else {"stream": stream or 1}
    try:
        return value.__dlpack__(max_version=(1, 0), **options)
    except TypeError:  # a producer of before DLPack 1.0
        return value.__dlpack__(**options)


def _members(name, tensor, device, writable, owner):
    if tensor.lanes != 1:
        raise TypeError(wrong(name, f"vectors of {tensor.lanes} numbers", "single numbers"))
    dtype = _TYPES.get((tensor.code, tensor.bits), f"{_CODES.get(tensor.code, f'type {tensor.code}')}{tensor.bits}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
    else:  # compact, row-major
        strides, step = (), 1
        for extent in reversed(shape):
            strides, step = (step, *strides), step * extent
    pointer = (tensor.data or 0) + tensor.byte_offset if tensor.data else 0
    return pointer, shape, strides, dtype, (tensor.bits + 7) // 8, device, writable, owner
