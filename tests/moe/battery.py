"""The cases of tests/moe/cases.cc, which the C++ tests run on every back end, for tests in Python."""
import dataclasses
import json
import pathlib

import numpy

FILE = pathlib.Path(__file__).with_name("cases.json")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of cases.json."""

    name: str
    why: str
    dtypes: tuple
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    tokens: int
    first_expert: int
    shared_intermediate: int
    activation: str
    alpha: float
    beta: float
    limit: float
    gated: bool
    order: str
    biases: bool
    shared_weight: bool
    wide_ids: bool
    topk_weights_dtype: str
    integers: bool
    format: str
    dead_experts: bool
    x_scales: int
    h_scales: int
    round_like_engines: bool
    expert_map: tuple
    ids: tuple

    def ids_array(self):
        """[T, k] of the case's width."""
        ids = numpy.array(self.ids, numpy.int64 if self.wide_ids else numpy.int32)
        return ids.reshape(self.tokens, self.top_k)


def entries(weight_format="dense"):
    """All of a weight format, in the order of the list."""
    lines = [line for line in json.loads(FILE.read_text()) if line["format"] == weight_format]
    return [Entry(**{name: tuple(value) if isinstance(value, list) else value for name, value in line.items()})
            for line in lines]
