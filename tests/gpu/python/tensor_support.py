"""Layers of random tensors for the tests of the package, and the slow layer in float64 they are checked against."""
import contextlib
import dataclasses
import os
import subprocess
import sys

import torch

import moe_reference
from moe_reference import battery, layer_reference

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


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

    @classmethod
    def of_entry(cls, entry, device, dtype):
        """An entry of the battery, without its shared expert."""
        same = ("hidden", "intermediate", "experts", "top_k", "activation", "gated", "order", "alpha", "beta", "limit",
                "first_expert", "biases")
        return cls(device, dtype, **{name: getattr(entry, name) for name in same},
                   expert_map=None if entry.expert_map is None else list(entry.expert_map))

    def inputs_of(self, entry):
        """(x, topk_ids, topk_weights) of an entry."""
        weights = torch.rand(entry.tokens, entry.top_k, generator=self.generator)
        ids = torch.from_numpy(entry.ids_array())
        return self.normal(entry.tokens, self.hidden), ids.to(self.device), weights.to(self.device)

    def shared_of(self, entry):
        """(gate_up, down) of an entry's shared expert, or None."""
        width = entry.shared_intermediate
        rows = width * (2 if self.gated else 1)
        return (self.normal(rows, self.hidden, scale=self.hidden**-0.5),
                self.normal(self.hidden, width, scale=self.intermediate**-0.5)) if width else None

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

    def reference(self, x, ids, weights, **shared):
        """[T, H] in float64, before the last rounding; `shared` is (gate_up, down), `shared_weight` [T]."""
        return moe_reference.reference(x, self.gate_up, self.down, ids, weights, **self.named(), **shared)


def problems(got, expected, narrow_rows=0.0):
    """What is wrong with a result, row by row; empty if nothing is (tests/moe/layer_reference.py)."""
    return layer_reference.problems(moe_reference.array_of(got), expected.cpu().numpy(),
                                    str(got.dtype).rpartition(".")[2], narrow_rows)


def poisoned_like(x):
    return torch.full_like(x, float("nan"))


def python(code, **environment):
    """(exit code, output) of a fresh interpreter that sees the same packages as this one."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], text=True, timeout=300, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": path, **environment})
    return done.returncode, done.stdout


def entries_for(device, part, parts):
    """(entry, dtype) of every `parts`-th entry of the battery that a device takes, in one of its types in turn."""
    for number, entry in enumerate(battery.entries()):
        if number % parts != part or device == "cuda" and entry.shared_intermediate % entry.intermediate != 0:
            continue
        dtypes = [dtype for dtype in dtypes_of(device) if str(dtype).rpartition(".")[2] in entry.dtypes]
        yield entry, dtypes[number // parts % len(dtypes)]


@contextlib.contextmanager
def busy(stream, milliseconds=50):
    """The block with a stream that has work for a while before what the block puts on it."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(int(milliseconds * 1.5e6))
        yield
