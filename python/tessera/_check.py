"""tessera.check_ids: finds ids that name no expert, which a layer passes over."""

import numpy

from ._arrays import kind_of, require_shape, require_type, torch_tensors, view
from ._moe import integer
from ._native import wrong
from ._types import Array


def check_ids(topk_ids: Array, num_experts: int, *, no_expert: int | None = None) -> None:
    """Raises ValueError if an id is none of 0 to num_experts - 1, and names the first token that has such a one.

    A layer lets ids of no expert add nothing: padded batches and expert parallelism mean it so, an index that is off does
    not. This is for finding the latter. no_expert: one more id that is meant, often -1 or num_experts. topk_ids [T, k]
    int32 or int64, a NumPy array or a PyTorch tensor; of a GPU it waits for the ids, so not in a captured graph.
    """
    given = view("topk_ids", topk_ids)
    require_type("topk_ids", given, ("int32", "int64"))
    require_shape("topk_ids", given, (None, None), "[T, k]")
    count = integer("num_experts", num_experts, 1, 2**31 - 1)
    if torch_tensors(topk_ids) is not None:
        ids = topk_ids.detach().cpu().numpy()
    elif isinstance(topk_ids, numpy.ndarray):
        ids = topk_ids
    else:
        raise TypeError(wrong("topk_ids", kind_of(topk_ids), "a NumPy array or a PyTorch tensor"))
    outside = (ids < 0) | (ids >= count)
    if no_expert is not None:
        outside &= ids != no_expert
    places = numpy.argwhere(outside)
    if len(places):
        token, slot = places[0]
        more = "" if len(places) == 1 else f", the first of {len(places)} such ids of {ids.size}"
        meant = "" if no_expert is None else f", or {no_expert} for no expert"
        raise ValueError(wrong("topk_ids", f"{ids[token, slot]} at token {token}, slot {slot}{more}",
                               f"an expert, 0 to {count - 1}{meant}"))
