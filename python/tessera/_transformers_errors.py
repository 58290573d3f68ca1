"""What an experts module of Transformers is refused with."""

import torch


def unsupported(module, name, got, expected):
    """NotImplementedError: what of the module cannot run, as it is and as it would have to be."""
    return NotImplementedError(f"tessera.transformers: {type(module).__name__}.{name}: got {got}, expected {expected}; "
                               "use a different experts_implementation")


def require_eager():
    """Refuses work that a compiler or a CUDA graph would record as something of every call."""
    if torch.compiler.is_compiling() or torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("tessera.transformers: got experts that were not looked at before a compiler or a CUDA graph "
                           "recorded them, expected tessera.transformers.prepare(model) to be called first")
