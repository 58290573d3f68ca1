"""Cases for the package with their numbers, and a producer of DLPack capsules. What they are checked against is
tests/moe/layer_reference.py."""
import ctypes
import dataclasses
import pathlib
import sys

import numpy
import tessera

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "moe"))
import battery
import layer_reference
from layer_reference import problems, round_to  # what tests import from here


def bfloat16_bits(values):
    """uint16 bit patterns of float64 values that are bfloat16 numbers."""
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)


def from_bfloat16_bits(bits):
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)


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
    integers: bool = False  # ternary numbers and powers of two: every sum is exact
    narrow_weights: bool = False  # the routing weights are of the type of x

    def __post_init__(self):
        random = numpy.random.default_rng(self.seed)

        def normal(*shape, scale=1.0):
            if self.integers:
                return random.integers(-1, 2, shape) * (random.random(shape) < 0.125) * 1.0
            return round_to(self.dtype, random.standard_normal(shape) * scale)

        def weights(*shape):
            drawn = numpy.exp2(-random.integers(0, 4, shape)) if self.integers else random.random(shape)
            return drawn.astype(numpy.float32)

        rows = self.intermediate * (2 if self.gated else 1)
        self.x = normal(self.tokens, self.hidden)
        self.gate_up = normal(self.experts, rows, self.hidden, scale=self.hidden**-0.5)
        self.down = normal(self.experts, self.hidden, self.intermediate, scale=self.intermediate**-0.5)
        self.gate_up_bias = normal(self.experts, rows) if self.biases else None
        self.down_bias = normal(self.experts, self.hidden) if self.biases else None
        shared_rows = self.shared_intermediate * (2 if self.gated else 1)
        self.shared_gate_up = normal(shared_rows, self.hidden, scale=self.hidden**-0.5)
        self.shared_down = normal(self.hidden, self.shared_intermediate, scale=0.1)
        self.shared_weight = weights(self.tokens)
        if self.ids is None:
            num_ids = len(self.expert_map) if self.expert_map else self.experts + self.first_expert
            self.ids = random.integers(0, num_ids, (self.tokens, self.top_k))
        self.ids = self.ids.astype(self.ids_type)
        self.topk_weights = weights(self.tokens, self.top_k)

    def options(self):
        return {"activation": self.activation, "alpha": self.alpha, "beta": self.beta, "limit": self.limit,
                "gated": self.gated, "gate_up_order": self.order, "first_expert": self.first_expert}

    def reference(self):
        """[T, H] in float64, before the last rounding."""
        shared = (self.shared_gate_up, self.shared_down) if self.shared_intermediate else None
        return layer_reference.layer(self.dtype, self.x, self.gate_up, self.down, self.ids, self.topk_weights,
                                     self.gate_up_bias, self.down_bias, self.expert_map, shared=shared,
                                     shared_weight=self.shared_weight, **self.options())


def battery_cases():
    """(name, case) of every entry of the battery, in one of its types, which take turns; not in step with threes of entries."""
    for number, entry in enumerate(battery.entries()):
        dtype = entry.dtypes[(number + number // 3) % len(entry.dtypes)]
        yield f"{entry.name}_{dtype}", of_battery(entry, dtype)


def of_battery(entry, dtype):
    """An entry with numbers: of its sizes and options, its ids and its expert map."""
    same = ("tokens", "hidden", "intermediate", "experts", "top_k", "activation", "alpha", "beta", "limit", "gated",
            "order", "first_expert", "biases", "shared_intermediate", "integers")
    case = Case(**{name: getattr(entry, name) for name in same}, dtype=dtype, ids=entry.ids_array(),
                ids_type=numpy.int64 if entry.wide_ids else numpy.int32,
                expert_map=None if entry.expert_map is None else list(entry.expert_map))
    case.round_like_engines = entry.round_like_engines
    if not entry.shared_weight:
        case.shared_weight[:] = 1
    if entry.topk_weights_dtype == dtype != "float32":  # the package takes float32 and the type of x
        case.topk_weights = round_to(dtype, case.topk_weights.astype(numpy.float64))
        case.narrow_weights = True
    return case


def shifted(array):
    """The same numbers, one byte beside where they could lie."""
    room = numpy.zeros(array.nbytes + 17, numpy.uint8)
    begin = -room.ctypes.data % 16 + 1
    moved = room[begin:begin + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[:] = array
    return moved


POISON = 0xFF  # NaN in every floating-point type


def array_of(values, dtype):
    """float64 values, numbers of the type all of them, as an array of it; bfloat16 through DLPack, as NumPy has none."""
    if values is None:
        return None
    return bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def arguments(case):
    """(positional, keyword) arguments of tessera.moe."""
    def made(values):
        return array_of(values, case.dtype)
    expert_map = None if case.expert_map is None else numpy.array(case.expert_map, numpy.int32)
    weights = made(case.topk_weights) if case.narrow_weights else case.topk_weights
    return ([made(case.x), made(case.gate_up), made(case.down), case.ids, weights],
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


class Fp8Layers:
    """What the tests of layers with e4m3 weights share. Theirs: FORMAT, arguments(case, entry) -> (given, named,
    shared), and reference(case, given, named, shared) in float64."""

    def run_case(self, case, entry=None):
        """(out, reference) in float64."""
        given, named, shared = self.arguments(case, entry)
        layer = tessera.MoELayer(given[1], given[2], top_k=case.top_k, dtype=case.dtype, **named, **shared)
        out = array_of(numpy.full(case.x.shape, numpy.nan), case.dtype)
        workspace = numpy.full(layer.workspace_bytes(case.tokens), 0xFF, numpy.uint8)
        weight = {"shared_weight": case.shared_weight} if shared else {}
        layer(given[0], *given[3:], out=out, workspace=workspace, **weight)
        if not shared and case.dtype != "bfloat16":
            self.assertTrue(numpy.array_equal(tessera.moe(*given, **named), out), case)
        got = from_bfloat16_bits(out.array) if case.dtype == "bfloat16" else out.astype(numpy.float64)
        return got, self.reference(case, given, named, shared)

    def errors(self, got, expected):
        """Of each row that is not zero, relative to it."""
        kept = numpy.linalg.norm(expected, axis=1) > 0
        self.assertFalse(got[~kept].any())
        return numpy.linalg.norm(got - expected, axis=1)[kept] / numpy.linalg.norm(expected[kept], axis=1)

    def test_battery(self):
        ran = 0
        for number, entry in enumerate(battery.entries(self.FORMAT)):
            case = of_battery(entry, entry.dtypes[number % len(entry.dtypes)])
            case.integers = case.narrow_weights = False
            errors = self.errors(*self.run_case(case, entry))
            if errors.size:
                self.assertLess(errors.max(), 1.5e-2 * (1 + 8 / case.hidden**0.5), entry.name)
                self.assertLess(numpy.median(errors), 6e-3 * (1 + 8 / (case.hidden * errors.size)**0.5), entry.name)
            ran += 1
        self.assertGreater(ran, 50)
