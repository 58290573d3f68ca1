"""Names of the types that signatures mention."""

from typing import Any, Literal

from ._native import ACTIVATIONS, CHANNEL_GRIDS, GATE_UP_ORDERS, ROUTER_KINDS, SCALE_GRIDS, WEIGHT_FORMATS

Activation = Literal[ACTIVATIONS]
GateUpOrder = Literal[GATE_UP_ORDERS]
WeightFormat = Literal[WEIGHT_FORMATS]
ScaleGrid = Literal[SCALE_GRIDS + CHANNEL_GRIDS]
RouterKind = Literal[ROUTER_KINDS]
Array = Any  # numpy.ndarray, torch.Tensor, or an object with __dlpack__ and __dlpack_device__
