"""One slow layer for the tests of the integrations: what torch.ops.tessera.moe computes, token by token.

`install_double` registers it under that name, for a machine on which the library is not built: only where the
environment says TESSERA_TEST_DOUBLE=1, so that no record of a GPU can come from it."""
import importlib
import os
import pathlib
import sys
import types

import torch
from torch.nn import functional

SCHEMA = ("moe(Tensor x, Tensor gate_up, Tensor down, Tensor topk_ids, Tensor topk_weights, Tensor? gate_up_bias, "
          "Tensor? down_bias, Tensor? expert_map, str activation, float alpha, float beta, float limit, bool gated, "
          "str gate_up_order, int first_expert) -> Tensor")
PLAIN = {"identity": lambda x: x, "silu": functional.silu, "gelu_erf": functional.gelu, "relu": functional.relu,
         "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
         "relu_squared": lambda x: functional.relu(x).square()}
_LIBRARIES = []


def between(product, activation, alpha, beta, limit, gated, order):
    """What lies between the projections: [.., 2I] -> [.., I], or [.., I] -> [.., I]."""
    if not gated:
        return PLAIN[activation](product)
    if order == "interleaved":
        gate, up = product[..., 0::2], product[..., 1::2]
    else:
        gate, up = product.chunk(2, -1) if order == "gate_first" else product.chunk(2, -1)[::-1]
    if activation != "clamped_swiglu":
        return PLAIN[activation](gate) * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + beta) * gate * torch.sigmoid(alpha * gate)


def moe(x, gate_up, down, topk_ids, topk_weights, gate_up_bias=None, down_bias=None, expert_map=None, activation="silu",
        alpha=1.0, beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first", first_expert=0):
    """[T, H] in x's type, computed in fp64, the intermediate and the experts' rows rounded as the library does."""
    for name, tensor in (("x", x), ("gate_up", gate_up), ("down", down)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: got strides {tensor.stride()}, expected contiguous rows")
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    ids = topk_ids.long()
    if expert_map is not None:
        known = (ids >= 0) & (ids < expert_map.numel())
        ids = torch.where(known, expert_map.long()[ids.clamp(0, expert_map.numel() - 1)], -1)
    else:
        ids = ids - first_expert
    for expert in range(down.shape[0]):
        tokens, slots = torch.where(ids == expert)
        if not len(tokens):
            continue
        product = x[tokens].double() @ gate_up[expert].double().T
        if gate_up_bias is not None:
            product = product + gate_up_bias[expert].double()
        hidden = between(product, activation, alpha, beta, limit, gated, gate_up_order).to(x.dtype)
        rows = hidden.double() @ down[expert].double().T
        if down_bias is not None:
            rows = rows + down_bias[expert].double()
        out.index_add_(0, tokens, rows.to(x.dtype).double() * topk_weights[tokens, slots, None].double())
    return out.to(x.dtype)


def _refuse_gradients(*arguments):
    """In the library's way: its operator is for inference only."""
    if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments):
        raise RuntimeError("tessera.moe: got tensors that require grad, expected inference")
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.tessera.moe.default(*arguments)


def install_double():
    """A package `tessera` of the Python files beside the real one's, whose `moe` and operator are the layer above."""
    library = torch.library.Library("tessera", "DEF")
    library.define(SCHEMA)
    library.impl("moe", moe, "CompositeExplicitAutograd")
    library.impl("moe", _refuse_gradients, "Autograd")
    torch.library.register_fake("tessera::moe", lambda x, *_: torch.empty_like(x), lib=library)
    _LIBRARIES.append(library)  # an operator lives as long as its library object
    package = types.ModuleType("tessera")
    package.__path__ = [str(pathlib.Path(__file__).resolve().parents[3] / "python" / "tessera")]
    package.moe = _moe_of_the_package
    sys.modules["tessera"] = package
    sys.modules["tessera.torch_ops"] = package.torch_ops = types.ModuleType("tessera.torch_ops")


def _moe_of_the_package(*arrays, out=None, **options):
    """tessera.moe: the operator's keywords, and `out`."""
    result = moe(*arrays, **options)
    return result if out is None else out.copy_(result)


def require_operator():
    """The installed package, or the double where that is asked for."""
    if os.environ.get("TESSERA_TEST_DOUBLE") == "1":
        if not _LIBRARIES:
            install_double()
        return
    importlib.import_module("tessera.torch_ops")
