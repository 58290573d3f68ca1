"""The slow layer of tests/moe/layer_reference.py on PyTorch tensors: what torch.ops.tessera.moe computes.

`install_double` registers it under that name, for a machine on which the library is not built: only where the
environment says TESSERA_TEST_DOUBLE=1, so that no record of a GPU can come from it."""
import importlib
import os
import pathlib
import sys
import types

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "moe"))
import battery  # for tensor_support
import layer_reference

SCHEMA = ("moe(Tensor x, Tensor gate_up, Tensor down, Tensor topk_ids, Tensor topk_weights, Tensor? gate_up_bias, "
          "Tensor? down_bias, Tensor? expert_map, str activation, float alpha, float beta, float limit, bool gated, "
          "str gate_up_order, int first_expert) -> Tensor")
_LIBRARIES = []


class PerExpert:
    """A weight or bias whose experts' parts become float64 arrays one at a time: whole layers of a model fit so."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, expert):
        return array_of(self.tensor[expert])


def array_of(tensor):
    """float64 NumPy values of a tensor; None stays None."""
    return None if tensor is None else tensor.detach().double().cpu().numpy()


def reference(x, gate_up, down, topk_ids, topk_weights, gate_up_bias=None, down_bias=None, expert_map=None, shared=None,
              shared_weight=None, **options):
    """[T, H] in float64 on x's device, before the last rounding: tests/moe/layer_reference.py on tensors."""
    biases = [None if bias is None else PerExpert(bias) for bias in (gate_up_bias, down_bias)]
    out = layer_reference.layer(str(x.dtype).rpartition(".")[2], array_of(x), PerExpert(gate_up), PerExpert(down),
                                topk_ids.long().cpu().numpy(), array_of(topk_weights), *biases,
                                None if expert_map is None else expert_map.cpu().numpy(),
                                shared=None if shared is None else [array_of(weight) for weight in shared],
                                shared_weight=array_of(shared_weight), **options)
    return torch.from_numpy(out).to(x.device)


def moe(x, gate_up, down, topk_ids, topk_weights, gate_up_bias=None, down_bias=None, expert_map=None, activation="silu",
        alpha=1.0, beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first", first_expert=0):
    """[T, H] in x's type: what torch.ops.tessera.moe computes."""
    for name, tensor in (("x", x), ("gate_up", gate_up), ("down", down)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: got strides {tensor.stride()}, expected contiguous rows")
    return reference(x, gate_up, down, topk_ids, topk_weights, gate_up_bias, down_bias, expert_map,
                     activation=activation, alpha=alpha, beta=beta, limit=limit, gated=gated,
                     gate_up_order=gate_up_order, first_expert=first_expert).to(x.dtype)


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
