"""The MoE layer by its definition in NumPy, float64: what every Python test of the package is judged by. It rounds where
the library declares to, the intermediate and the experts' rows, once each to the layer's type, and nowhere else."""
import math

import numpy

# Relative error of a row, by type: what the library declares for layers whose sums are fp32.
ROW_TOLERANCE = {"float32": 1e-5, "float16": 4e-4, "bfloat16": 3e-3}
_erf = numpy.vectorize(math.erf, otypes=[float])

ACTIVATIONS = {
    "identity": lambda v: v,
    "silu": lambda v: v / (1 + numpy.exp(-v)),
    "gelu_tanh": lambda v: 0.5 * v * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "gelu_erf": lambda v: 0.5 * v * (1 + _erf(v / math.sqrt(2))),
    "relu": lambda v: numpy.maximum(v, 0),
    "relu_squared": lambda v: numpy.maximum(v, 0)**2,
}


def round_to(dtype, values):
    """float64 values rounded once to a type, as float64."""
    if dtype != "bfloat16":
        return values.astype(dtype).astype(numpy.float64)
    bits = values.astype(numpy.float64).view(numpy.uint64)
    low = numpy.uint64(45)  # bits of a double's fraction beyond the seven of a bfloat16
    half = ((bits >> low) & numpy.uint64(1)) + numpy.uint64((1 << 44) - 1)
    return (((bits + half) >> low) << low).view(numpy.float64)


def between(product, activation="silu", alpha=1.0, beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first"):
    """What lies between the projections: [.., 2I] -> [.., I], or [.., I] -> [.., I]."""
    if not gated:
        return ACTIVATIONS[activation](product)
    half = product.shape[-1] // 2
    first, last = product[..., :half], product[..., half:]
    gate, up = {"gate_first": (first, last), "up_first": (last, first),
                "interleaved": (product[..., ::2], product[..., 1::2])}[gate_up_order]
    if activation == "clamped_swiglu":
        gate, up = numpy.minimum(gate, limit), numpy.clip(up, -limit, limit)
        return (up + beta) * gate / (1 + numpy.exp(-alpha * gate))
    return ACTIVATIONS[activation](gate) * up


def experts_of(ids, num_experts, first_expert=0, expert_map=None):
    """int64 ids as numbers of these experts; -1 for ids of none."""
    ids = numpy.asarray(ids)
    if expert_map is None:
        numbers = ids - first_expert
    else:
        known = (ids >= 0) & (ids < len(expert_map))
        numbers = numpy.where(known, numpy.asarray(expert_map, numpy.int64)[numpy.where(known, ids, 0)], -1)
    return numpy.where((numbers >= 0) & (numbers < num_experts), numbers, -1)


def e4m3_values():
    """[256] of every code, NaN where it is none."""
    codes = numpy.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    values = numpy.where(exponent == 0, fraction * 2.0**-9, (8 + fraction) * 2.0**(exponent - 10.0))
    values[(codes & 127) == 127] = numpy.nan
    return numpy.where(codes < 128, values, -values)


E4M3 = e4m3_values()
_MIDDLES = (E4M3[:126] + E4M3[1:127]) / 2


def e4m3_codes(values):
    """uint8 codes nearest to finite values, ties to even."""
    magnitude = numpy.abs(values).astype(numpy.float64)
    code = numpy.searchsorted(_MIDDLES, magnitude)  # the code below a middle itself
    tie = magnitude == _MIDDLES[numpy.minimum(code, 125)]
    code += tie & (code % 2 == 1)
    return (code | (numpy.signbit(values) << 7)).astype(numpy.uint8)


def quantized(values, rows=1):
    """(codes, scales) of [.., R, C] with a scale each `rows` x 128, in float32 as the library defines it."""
    values = values.astype(numpy.float32)
    *outer, height, width = values.shape
    scales = numpy.empty((*outer, -(-height // rows), -(-width // 128)), numpy.float32)
    codes = numpy.empty(values.shape, numpy.uint8)
    for row in range(scales.shape[-2]):
        for column in range(scales.shape[-1]):
            part = numpy.s_[..., row * rows:(row + 1) * rows, column * 128:(column + 1) * 128]
            amax = numpy.abs(values[part]).max(axis=(-2, -1), initial=0)
            scale = numpy.maximum(amax, numpy.float32(1e-10)) * (numpy.float32(1) / numpy.float32(448))
            scales[..., row, column] = scale
            codes[part] = e4m3_codes(values[part] * (numpy.float32(1) / scale)[..., None, None])
    return codes, scales


def dequantized(codes, scales, rows=1):
    """float64 values of codes [.., R, C]."""
    wide = scales.astype(numpy.float64).repeat(rows, axis=-2).repeat(128, axis=-1)
    return E4M3[codes] * wide[..., :codes.shape[-2], :codes.shape[-1]]


def round_by_e4m3(values):
    """What quantizing rows leaves of them."""
    return dequantized(*quantized(values)) if values.size else values


def expert_rows(dtype, x, gate_up, down, gate_up_bias=None, down_bias=None, keep=None, round_like_engines=False,
                **options):
    """[rows, H]: one expert's answer to rows of x. `keep`: what becomes of the intermediate, without it rounded;
    `round_like_engines`: what enters and leaves the activation is rounded first."""
    keep = keep or (lambda values: round_to(dtype, values))
    product = x @ gate_up.T
    if gate_up_bias is not None:
        product = product + gate_up_bias
    engine = (lambda values: round_to(dtype, values)) if round_like_engines else (lambda values: values)
    rows = keep(engine(between(engine(product), **options))) @ down.T
    return round_to(dtype, rows if down_bias is None else rows + down_bias)


def layer(dtype, x, gate_up, down, topk_ids, topk_weights, gate_up_bias=None, down_bias=None, expert_map=None,
          first_expert=0, shared=None, shared_weight=None, of_expert=None, **options):
    """[T, H] before the last rounding. Arrays are float64; weights and biases need only give an expert's by its index.

    `shared` is (gate_up, down) of a shared expert, `options` are those of between() and of expert_rows(). `of_expert` says
    for the number of an expert, E for the shared one, what becomes of its rows of x and of its intermediate."""
    def answer(expert, x, *rest):
        if of_expert is None:
            return expert_rows(dtype, x, *rest, **options)
        take, keep = of_expert(expert)
        return expert_rows(dtype, take(x), *rest, keep=keep, **options)

    out = numpy.zeros(x.shape)
    numbers = experts_of(topk_ids, len(down), first_expert, expert_map)
    for expert in numpy.unique(numbers[numbers >= 0]).tolist():
        tokens, slots = numpy.nonzero(numbers == expert)
        biases = [None if bias is None else bias[expert] for bias in (gate_up_bias, down_bias)]
        rows = answer(expert, x[tokens], gate_up[expert], down[expert], *biases)
        numpy.add.at(out, tokens, rows * topk_weights[tokens, slots, None])  # a token may name an expert twice
    if shared is not None:
        weight = numpy.ones(len(x)) if shared_weight is None else shared_weight
        out += answer(len(down), x, *shared) * weight[:, None]
    return out


def relative_error(got, expected):
    return numpy.linalg.norm(got - expected) / numpy.linalg.norm(expected)


def problems(got, expected, dtype, narrow_rows=0.0):
    """What is wrong with a result, row by row and as a whole; empty if nothing is. A row that should be zero must be
    exactly +0.

    The tolerance of n elements of 16 bits grows by narrow_rows / sqrt(n): where one element in many rounds the other way
    than the reference's, the error of a narrow row spreads so (tests/moe/judge.h)."""
    if got.shape != expected.shape:
        return [f"shape {got.shape}, expected {expected.shape}"]

    def tolerance(elements):
        return ROW_TOLERANCE[dtype] * (1 + (narrow_rows / math.sqrt(elements) if dtype != "float32" else 0))

    found, got = [], got.astype(numpy.float64)
    kept = numpy.linalg.norm(expected, axis=1) > 0
    for row, (have, want) in enumerate(zip(got, expected)):
        if not kept[row]:
            if have.any() or numpy.signbit(have).any():
                found.append(f"row {row} is not +0")
        elif not relative_error(have, want) <= tolerance(len(want)):
            found.append(f"row {row}: relative error {relative_error(have, want):.2e}")
    if not found and kept.any() and not relative_error(got[kept], expected[kept]) <= tolerance(expected[kept].size):
        found.append(f"all rows: relative error {relative_error(got[kept], expected[kept]):.2e}")
    return found
