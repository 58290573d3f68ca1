"""Mixture-of-experts layers and text classification, from NumPy arrays on a CPU to any tensor on a Hopper GPU.

    import numpy, tessera
    out = tessera.moe(x, gate_up, down, topk_ids, topk_weights)      # [T, H]; arrays or tensors of one device

The type stubs beside this file are the reference.
"""

from ._classifier import Classifier, Prediction
from ._doctor import Device, Doctor, doctor
from ._layer import MoELayer, moe, prepare_weights, route
from ._native import VERSION as __version__
from ._native import TesseraError

__all__ = ["Classifier", "Device", "Doctor", "MoELayer", "Prediction", "TesseraError", "__version__", "doctor", "moe",
           "prepare_weights", "route"]
