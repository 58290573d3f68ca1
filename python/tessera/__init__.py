"""Mixture-of-experts layers and text classification, from NumPy arrays on a CPU to any tensor on a Hopper GPU.

    import numpy, tessera
    out = tessera.moe(x, gate_up, down, topk_ids, topk_weights)      # [T, H]; arrays or tensors of one device

__init__.pyi beside this file is the reference.
"""

from typing import Any, Literal

from ._classifier import Classifier, Prediction
from ._predict import Predictions
from ._doctor import Device, Doctor, doctor, why_unusable
from ._layer import (MoELayer, convert_scales, moe, moe_limits, prepare_weights, quantize_blocks, quantize_rows,
                     route)
from ._native import (ACTIVATIONS, CHANNEL_GRIDS, GATE_UP_ORDERS, ROUTER_KINDS, SCALE_GRIDS, WEIGHT_FORMATS, MoELimits,
                      TesseraError)
from ._native import VERSION as __version__

Activation = Literal[ACTIVATIONS]
GateUpOrder = Literal[GATE_UP_ORDERS]
WeightFormat = Literal[WEIGHT_FORMATS]
ScaleGrid = Literal[SCALE_GRIDS + CHANNEL_GRIDS]
RouterKind = Literal[ROUTER_KINDS]
Array = Any

__all__ = ["Activation", "Array", "Classifier", "Device", "Doctor", "GateUpOrder", "MoELayer", "MoELimits",
           "Prediction", "Predictions", "RouterKind", "ScaleGrid", "TesseraError", "WeightFormat", "__version__", "convert_scales",
           "doctor", "moe", "moe_limits", "prepare_weights", "quantize_blocks", "quantize_rows", "route", "why_unusable"]
