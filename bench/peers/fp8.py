"""FP8 (e4m3) with block scales: weights have one fp32 scale for each 128 x 128 block, activations one for each row and 128 columns.

A scale is the block's largest magnitude / 448, so that the largest value becomes e4m3's largest; values are rounded to
nearest, ties to even. The rule is stated twice: in plain Python, which the self-tests compute with, and in torch, which
quantises the peers' weights once, outside the timing.
"""
import math

BLOCK = 128
LARGEST = 448.0  # of e4m3
LEAST_MAGNITUDE = 1e-10  # of a block, so that a block of zeros has a scale; as SGLang's and vLLM's kernels have it
LEAST_EXPONENT = -6  # of a normal e4m3 value; below, the spacing stays
MANTISSA_BITS = 3


def e4m3(value):
    """The nearest e4m3 value as a float; what is beyond 448 becomes 448."""
    _, exponent = math.frexp(value)
    spacing = math.ldexp(1.0, max(exponent - 1, LEAST_EXPONENT) - MANTISSA_BITS)
    return math.copysign(min(round(abs(value) / spacing) * spacing, LARGEST), value)


def scale_of(values):
    return max(max(map(abs, values)), LEAST_MAGNITUDE) / LARGEST


def quantised_row(row):
    """(e4m3 values, a scale for each 128 columns) of an activation row."""
    scales = [scale_of(row[begin:begin + BLOCK]) for begin in range(0, len(row), BLOCK)]
    return [e4m3(value / scales[column // BLOCK]) for column, value in enumerate(row)], scales


def quantised_matrix(rows):
    """(e4m3 rows, scales [ceil(N / 128)][ceil(K / 128)]) of a weight matrix [N][K]."""
    scales = [[scale_of([value for row in rows[top:top + BLOCK] for value in row[left:left + BLOCK]])
               for left in range(0, len(rows[0]), BLOCK)] for top in range(0, len(rows), BLOCK)]
    return [[e4m3(value / scales[n // BLOCK][k // BLOCK]) for k, value in enumerate(row)]
            for n, row in enumerate(rows)], scales


def restored_row(values, scales):
    return [value * scales[column // BLOCK] for column, value in enumerate(values)]


def restored_matrix(values, scales):
    return [restored_row(row, scales[n // BLOCK]) for n, row in enumerate(values)]


def quantised_weights(torch, weights, chunk=8):
    """(e4m3 [E, N, K], fp32 scales [E, ceil(N / 128), ceil(K / 128)]) of weights [E, N, K], `chunk` experts at a time."""
    experts, rows, columns = weights.shape
    tall, wide = -(-rows // BLOCK), -(-columns // BLOCK)
    values = torch.empty_like(weights, dtype=torch.float8_e4m3fn)
    scales = torch.empty(experts, tall, wide, dtype=torch.float32, device=weights.device)
    for begin in range(0, experts, chunk):
        part = weights[begin:begin + chunk].float()
        count = part.shape[0]
        padded = torch.nn.functional.pad(part, (0, wide * BLOCK - columns, 0, tall * BLOCK - rows))
        blocks = padded.view(count, tall, BLOCK, wide, BLOCK)
        scale = blocks.abs().amax((2, 4)).clamp_min(LEAST_MAGNITUDE) / LARGEST
        blocks = blocks / scale[:, :, None, :, None]
        values[begin:begin + count] = blocks.reshape(count, tall * BLOCK, wide * BLOCK)[:, :rows, :columns].to(values.dtype)
        scales[begin:begin + count] = scale
    return values, scales


def divisible(hidden, intermediate):
    """Why SGLang's and vLLM's group quantisation does not take these widths, or ""."""
    odd = [f"{name} {size}" for name, size in (("hidden size", hidden), ("intermediate size", intermediate)) if size % BLOCK]
    return f"its group quantisation wants multiples of {BLOCK}, got {' and '.join(odd)}" if odd else ""
