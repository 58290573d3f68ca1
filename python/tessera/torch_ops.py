"""`import tessera.torch_ops` registers torch.ops.tessera.moe at once, not with the first tensor that tessera.moe sees."""

from . import _torch as _torch
