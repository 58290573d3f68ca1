"""Layers of random tensors for the tests of the package, and the slow layer in float64 they are checked against."""
import contextlib
import dataclasses
import os
import subprocess
import sys

import torch
from moe_reference import between

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
# Relative error of a row, by type: what the library declares for layers whose sums are fp32.
ROW_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-4, torch.bfloat16: 3e-3}


def dtypes_of(device):
    return (torch.float16, torch.bfloat16) if device == "cuda" else (torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass
class Layer:
    """Tensors of one layer. `inputs(tokens)` makes those of a call."""

    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    hidden: int = 128
    intermediate: int = 64
    experts: int = 8
    top_k: int = 3
    activation: str = "silu"
    gated: bool = True
    order: str = "gate_first"
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    first_expert: int = 0
    biases: bool = False
    expert_map: list = None
    seed: int = 0

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)
        rows = self.intermediate * (2 if self.gated else 1)
        self.gate_up = self.normal(self.experts, rows, self.hidden, scale=self.hidden**-0.5)
        self.down = self.normal(self.experts, self.hidden, self.intermediate, scale=self.intermediate**-0.5)
        self.gate_up_bias = self.normal(self.experts, rows) if self.biases else None
        self.down_bias = self.normal(self.experts, self.hidden) if self.biases else None
        self.map = None
        if self.expert_map is not None:
            self.map = torch.tensor(self.expert_map, dtype=torch.int32, device=self.device)

    def normal(self, *shape, scale=1.0):
        return (torch.randn(*shape, generator=self.generator) * scale).to(self.device, self.dtype)

    def inputs(self, tokens, ids_type=torch.int64):
        """(x, topk_ids, topk_weights); some slots belong to no expert."""
        count = self.experts + self.first_expert if self.map is None else len(self.map)
        ids = torch.randint(-1, count, (tokens, self.top_k), generator=self.generator)
        weights = torch.rand(tokens, self.top_k, generator=self.generator)
        return self.normal(tokens, self.hidden), ids.to(self.device, ids_type), weights.to(self.device)

    def named(self):
        return {"activation": self.activation, "alpha": self.alpha, "beta": self.beta, "limit": self.limit,
                "gated": self.gated, "gate_up_order": self.order, "first_expert": self.first_expert,
                "gate_up_bias": self.gate_up_bias, "down_bias": self.down_bias, "expert_map": self.map}

    def reference(self, x, ids, weights):
        """[T, H] in float64; the intermediate and the experts' rows are rounded once, as the library declares."""
        out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        local = ids.long() - self.first_expert
        if self.map is not None:
            local = torch.where(ids >= 0, self.map.long()[ids.long().clamp(min=0)], -1)
        for expert in range(self.experts):
            tokens, slots = torch.where(local == expert)
            product = x[tokens].double() @ self.gate_up[expert].double().T
            if self.biases:
                product += self.gate_up_bias[expert].double()
            inner = between(product, self.activation, self.alpha, self.beta, self.limit, self.gated, self.order)
            rows = inner.to(x.dtype).double() @ self.down[expert].double().T
            if self.biases:
                rows += self.down_bias[expert].double()
            out.index_add_(0, tokens, rows.to(x.dtype).double() * weights[tokens, slots, None].double())
        return out


def problems(got, expected):
    """What is wrong with a result, row by row; empty if nothing is. A row that should be zero must be exactly +0."""
    if got.shape != expected.shape:
        return [f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"]
    error, norm = (got.double() - expected).norm(dim=1), expected.norm(dim=1)
    empty = (norm == 0) & ((got != 0) | torch.signbit(got)).any(dim=1)
    found = [f"row {row} is not +0" for row in empty.nonzero()[:, 0].tolist()]
    wrong = (norm > 0) & ~(error <= ROW_TOLERANCE[got.dtype] * norm)
    return found + [f"row {row}: relative error {error[row] / norm[row]:.2e}" for row in wrong.nonzero()[:, 0].tolist()]


def poisoned_like(x):
    return torch.full_like(x, float("nan"))


def python(code, **environment):
    """(exit code, output) of a fresh interpreter that sees the same packages as this one."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], text=True, timeout=300, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path, **environment})
    return done.returncode, done.stdout


@contextlib.contextmanager
def busy(stream, milliseconds=50):
    """The block with a stream that has work for a while before what the block puts on it."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(milliseconds * 1.5e6))
        yield
