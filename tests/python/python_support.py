"""The slow layer in float64 that the package is checked against, cases for it, and a producer of DLPack capsules."""
import ctypes
import dataclasses
import math

import numpy

# Relative error of a row, by type: what the library declares for layers whose sums are fp32.
ROW_TOLERANCE = {"float32": 1e-5, "float16": 4e-4, "bfloat16": 3e-3}
_erf = numpy.vectorize(math.erf, otypes=[float])


def round_to(dtype, values):
    """float64 values rounded once to a type, as float64."""
    if dtype != "bfloat16":
        return values.astype(dtype).astype(numpy.float64)
    bits = values.astype(numpy.float64).view(numpy.uint64)
    low = numpy.uint64(45)  # bits of a double's fraction beyond the seven of a bfloat16
    half = ((bits >> low) & numpy.uint64(1)) + numpy.uint64((1 << 44) - 1)
    return (((bits + half) >> low) << low).view(numpy.float64)


def bfloat16_bits(values):
    """uint16 bit patterns of float64 values that are bfloat16 numbers."""
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)


def from_bfloat16_bits(bits):
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)


ACTIVATIONS = {
    "identity": lambda v: v,
    "silu": lambda v: v / (1 + numpy.exp(-v)),
    "gelu_tanh": lambda v: 0.5 * v * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "gelu_erf": lambda v: 0.5 * v * (1 + _erf(v / math.sqrt(2))),
    "relu": lambda v: numpy.maximum(v, 0),
    "relu_squared": lambda v: numpy.maximum(v, 0)**2,
}


@dataclasses.dataclass
class Case:
    """Arguments of one layer as float64 arrays whose numbers the type holds exactly."""

    tokens: int = 9
    hidden: int = 64
    intermediate: int = 40
    experts: int = 5
    top_k: int = 3
    dtype: str = "float32"
    activation: str = "silu"
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    gated: bool = True
    order: str = "gate_first"
    first_expert: int = 0
    biases: bool = False
    shared_intermediate: int = 0
    expert_map: list = None
    ids_type: type = numpy.int64
    seed: int = 1
    ids: numpy.ndarray = None

    def __post_init__(self):
        random = numpy.random.default_rng(self.seed)

        def normal(*shape, scale=1.0):
            return round_to(self.dtype, random.standard_normal(shape) * scale)

        rows = self.intermediate * (2 if self.gated else 1)
        self.x = normal(self.tokens, self.hidden)
        self.gate_up = normal(self.experts, rows, self.hidden, scale=self.hidden**-0.5)
        self.down = normal(self.experts, self.hidden, self.intermediate, scale=self.intermediate**-0.5)
        self.gate_up_bias = normal(self.experts, rows) if self.biases else None
        self.down_bias = normal(self.experts, self.hidden) if self.biases else None
        shared_rows = self.shared_intermediate * (2 if self.gated else 1)
        self.shared_gate_up = normal(shared_rows, self.hidden, scale=self.hidden**-0.5)
        self.shared_down = normal(self.hidden, self.shared_intermediate, scale=0.1)
        self.shared_weight = random.random(self.tokens).astype(numpy.float32)
        if self.ids is None:
            num_ids = len(self.expert_map) if self.expert_map else self.experts + self.first_expert
            self.ids = random.integers(0, num_ids, (self.tokens, self.top_k))
        self.ids = self.ids.astype(self.ids_type)
        self.topk_weights = random.random((self.tokens, self.top_k)).astype(numpy.float32)

    def options(self):
        return {"activation": self.activation, "alpha": self.alpha, "beta": self.beta, "limit": self.limit,
                "gated": self.gated, "gate_up_order": self.order, "first_expert": self.first_expert}

    def expert_of(self, number):
        if self.expert_map is not None:
            return self.expert_map[number] if 0 <= number < len(self.expert_map) else -1
        expert = number - self.first_expert
        return expert if 0 <= expert < self.experts else -1

    def _act(self, rows):
        half = len(rows) // 2
        if not self.gated:
            return ACTIVATIONS[self.activation](rows)
        gate, up = {"gate_first": (rows[:half], rows[half:]), "up_first": (rows[half:], rows[:half]),
                    "interleaved": (rows[::2], rows[1::2])}[self.order]
        if self.activation == "clamped_swiglu":
            gate, up = numpy.minimum(gate, self.limit), numpy.clip(up, -self.limit, self.limit)
            return (up + self.beta) * gate / (1 + numpy.exp(-self.alpha * gate))
        return ACTIVATIONS[self.activation](gate) * up

    def _expert_row(self, token, gate_up, down, gate_up_bias=0.0, down_bias=0.0):
        inner = round_to(self.dtype, self._act(gate_up @ self.x[token] + gate_up_bias))
        return round_to(self.dtype, down @ inner + down_bias)

    def reference(self):
        """[T, H] in float64: the intermediate and the experts' rows are rounded once, as the library declares."""
        out = numpy.zeros((self.tokens, self.hidden))
        for token, slot in numpy.ndindex(self.tokens, self.top_k):
            e = self.expert_of(int(self.ids[token, slot]))
            if e < 0:
                continue
            biases = (self.gate_up_bias[e], self.down_bias[e]) if self.biases else ()
            row = self._expert_row(token, self.gate_up[e], self.down[e], *biases)
            out[token] += float(self.topk_weights[token, slot]) * row
        if self.shared_intermediate:
            for token in range(self.tokens):
                row = self._expert_row(token, self.shared_gate_up, self.shared_down)
                out[token] += float(self.shared_weight[token]) * row
        return out


def problems(got, expected, dtype):
    """What is wrong with a result, row by row; empty if nothing is. A row that should be zero must be exactly +0."""
    found = []
    if got.shape != expected.shape:
        return [f"shape {got.shape}, expected {expected.shape}"]
    for row, (have, want) in enumerate(zip(got.astype(numpy.float64), expected)):
        norm = numpy.linalg.norm(want)
        if norm == 0:
            if have.any() or numpy.signbit(have).any():
                found.append(f"row {row} is not +0")
        elif not numpy.linalg.norm(have - want) <= ROW_TOLERANCE[dtype] * norm:
            found.append(f"row {row}: relative error {numpy.linalg.norm(have - want) / norm:.2e}")
    return found


POISON = 0xFF  # NaN in every floating-point type


def arguments(case):
    """(positional, keyword) arguments of tessera.moe."""
    def made(values):
        return None if values is None else values.astype(case.dtype)
    expert_map = None if case.expert_map is None else numpy.array(case.expert_map, numpy.int32)
    return ([made(case.x), made(case.gate_up), made(case.down), case.ids, case.topk_weights],
            {**case.options(), "gate_up_bias": made(case.gate_up_bias), "down_bias": made(case.down_bias),
             "expert_map": expert_map})


def poisoned(shape, dtype):
    return numpy.full(int(numpy.prod(shape)) * numpy.dtype(dtype).itemsize, POISON, numpy.uint8).view(dtype).reshape(shape)


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
                ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
                ("byte_offset", ctypes.c_uint64)]


class _Plain(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Versioned(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p),
                ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _Tensor)]


_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi))
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))
_live = {}  # address of what a capsule holds -> (structure, producer)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(address):
    _, producer = _live.pop(address)
    producer.deleted += 1


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy_capsule(capsule):
    for name in (b"dltensor", b"dltensor_versioned"):
        if _capsule_is(capsule, name):  # nobody took it over: what DLPack asks of a producer
            _delete(_capsule_pointer(capsule, name))


class Producer:
    """An array as another framework would hand it over. `deleted` counts calls of the capsules' deleters."""

    def __init__(self, array, code=None, versioned=True, read_only=False, device=(1, 0), lanes=1, major=1, strided=True):
        self.array, self.device, self.versioned = array, device, versioned
        self.made = self.deleted = 0
        self._flags, self._major = int(read_only), major
        self._shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self._strides = (ctypes.c_int64 * array.ndim)(*(step // array.itemsize for step in array.strides))
        kind = {"i": 0, "u": 1, "f": 2}[array.dtype.kind] if code is None else code
        self._tensor = _Tensor(array.ctypes.data, *device, array.ndim, kind, array.itemsize * 8, lanes,
                               ctypes.addressof(self._shape), ctypes.addressof(self._strides) if strided else None, 0)

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if not self.versioned and "max_version" in options:
            raise TypeError("an unexpected keyword argument: a producer of before DLPack 1.0")
        deleter = ctypes.cast(_delete, ctypes.c_void_p).value
        if self.versioned:
            managed, name = _Versioned(self._major, 0, None, deleter, self._flags, self._tensor), b"dltensor_versioned"
        else:
            managed, name = _Plain(self._tensor, None, deleter), b"dltensor"
        address = ctypes.addressof(managed)
        _live[address] = (managed, self)
        self.made += 1
        self._name = name  # a capsule refers to its name, it does not copy it
        return _new_capsule(address, name, ctypes.cast(_destroy_capsule, ctypes.c_void_p))


def bfloat16(values):
    """float64 values, bfloat16 numbers all of them, as an array of another framework."""
    return Producer(bfloat16_bits(values), code=4)
