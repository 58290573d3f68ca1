"""What a Transformers experts module computes between its two projections, found out by trying it.

A class may override ``_apply_gate``, and two classes may give one attribute different meanings. So nothing is concluded
from names: the module's own function runs on numbers that reach past every clamp, and its values must be those of one
of the functions that the library computes.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional

PROBE_VALUES = 4096  # pairs at least: each column of a gate is tried, and with many of a narrow one's
TOLERANCE = 1e-5  # of 1 + |expected|: float32 roundings stay below 3e-6; the two GELUs differ by 5e-4
REACH = 12.0  # probes lie within; a limit beyond it widens them to three times the limit


class Gate(NamedTuple):
    """Arguments of the operator that say what happens between the projections."""

    activation: str
    alpha: float
    beta: float
    limit: float
    gated: bool
    gate_up_order: str


ACTIVATIONS = {
    "silu": functional.silu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "relu": functional.relu,
    "identity": lambda x: x,
    "relu_squared": lambda x: functional.relu(x).square(),  # not gated only
}


def split(gate_up, order):
    """The gate's and the up projection's columns of [R, 2I]."""
    if order == "interleaved":
        return gate_up[..., ::2], gate_up[..., 1::2]
    first, second = gate_up.chunk(2, dim=-1)
    return (first, second) if order == "gate_first" else (second, first)


def values_of(gate, gate_up):
    """[R, I] from [R, 2I], or from [R, I] if not gated: the function that the operator applies."""
    if not gate.gated:
        return ACTIVATIONS[gate.activation](gate_up)
    gated, up = split(gate_up, gate.gate_up_order)
    if gate.activation != "clamped_swiglu":
        return ACTIVATIONS[gate.activation](gated) * up
    gated, up = gated.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    return (up + gate.beta) * gated * torch.sigmoid(gate.alpha * gated)


def numbers_of(module, *names):
    """Finite numbers that the module or its configuration keeps under one of the names."""
    owners = (module, getattr(module, "config", None))
    found = {getattr(owner, name, None) for owner in owners for name in names}
    return sorted(float(x) for x in found if type(x) in (int, float) and math.isfinite(x))


def candidates(module):
    """Every gate that this module could have, the usual first."""
    if not getattr(module, "has_gate", True):
        return [Gate(name, 1.0, 0.0, 0.0, False, "gate_first") for name in ACTIVATIONS]
    orders = ("gate_first", "interleaved", "up_first")
    plain = [Gate(name, 1.0, 0.0, 0.0, True, order)
             for order in orders for name in ACTIVATIONS if name != "relu_squared"]
    limits = [limit for limit in numbers_of(module, "limit", "swiglu_limit") if limit > 0]
    alphas = sorted({1.0, *numbers_of(module, "alpha", "swiglu_alpha")})
    betas = sorted({0.0, 1.0, *numbers_of(module, "beta", "swiglu_beta")})
    return plain + [Gate("clamped_swiglu", alpha, beta, limit, True, order) for order in orders
                    for limit in limits for alpha in alphas for beta in betas]


def probe_of(width, reach):
    """[R, width] float32 on the CPU: even draws within +-reach, half of them small, and no global random state."""
    rows = max(2, -(-PROBE_VALUES // width))
    generator = torch.Generator("cpu").manual_seed(width)
    draws = torch.rand(2, rows, width, generator=generator, dtype=torch.float32, device="cpu")
    return (2 * draws[0] - 1) * torch.where(draws[1] < 0.5, reach, min(reach, 3.0))


def identify(module, width):
    """The gate of the module whose first projection has `width` columns (2I, or I if not gated), or None.

    None too where the module's function fails on such numbers."""
    known = candidates(module)
    probe = probe_of(width, max([REACH] + [3 * gate.limit for gate in known]))
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            got = module._apply_gate(probe) if known[0].gated else module.act_fn(probe)
            for gate in known:
                expected = values_of(gate, probe)
                if got.shape != expected.shape or got.device != expected.device:
                    return None
                if bool(((got - expected).abs() <= TOLERANCE * (1 + expected.abs())).all()):  # also not where NaN
                    return gate
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    return None
