"""Mixture-of-experts layers and text classification, from NumPy arrays on a CPU to any tensor on a Hopper GPU.

    import numpy, tessera
    out = tessera.moe(x, gate_up, down, topk_ids, topk_weights)      # [T, H]; arrays or tensors of one device

Arrays are NumPy arrays, PyTorch tensors, or anything with ``__dlpack__`` (CuPy, JAX). What comes back is of the kind of
``x``. Nothing is copied, cast or made contiguous behind the caller's back: what does not fit raises ``TypeError``,
``ValueError``, ``BufferError`` or ``tessera.TesseraError``, and the message names the argument, what it got and what it
expected. On a GPU the work is enqueued on the current stream of the tensor's framework, or on ``stream``.
"""

from ._check import check_ids
from ._checkpoint import Loaded, inspect_checkpoint, load_layer
from ._classifier import Classifier, Prediction
from ._doctor import Device, Doctor, Engine, doctor, why_unusable
from ._predict import Predictions
from ._layer import (MoELayer, convert_scales, moe, moe_limits, prepare_weights, quantize_blocks, quantize_rows,
                     route)
from ._native import MoELimits, TesseraError
from ._native import VERSION as __version__
from ._types import Activation, Array, GateUpOrder, RouterKind, ScaleGrid, WeightFormat

__all__ = ["Activation", "Array", "Classifier", "Device", "Doctor", "Engine", "GateUpOrder", "Loaded", "MoELayer",
           "MoELimits", "Prediction", "Predictions", "RouterKind", "ScaleGrid", "TesseraError", "WeightFormat", "__version__",
           "check_ids", "convert_scales", "doctor", "inspect_checkpoint", "load_layer", "moe", "moe_limits", "prepare_weights",
           "quantize_blocks", "quantize_rows", "route", "why_unusable"]
