"""Experts modules of Transformers whose weights have 8 bits, FP8Experts: what the operator takes them as.

Such a module keeps e4m3 weights, and beside each `<name>_scale_inv`, what the codes of a block are multiplied by: a grid
[E, ceil(rows / 128), ceil(columns / 128)] over all rows, gate's and up's one after the other. The operator counts blocks of
gate and of up rows apart, so the grid is its own where no block holds rows of both: I is a multiple of 128. Weights are
never copied. Scales of float32 are used as they lie; narrower ones (bfloat16, powers of two as float8_e8m0fnu) have a copy
in float32, which holds each of them exactly. It is made anew when they change, as PyTorch counts changes: not what is
written through `.data`, after which `prepare` makes it.
"""

import torch

from ._transformers_errors import require_eager, unsupported

DTYPE = torch.float8_e4m3fn
BLOCK = 128
WIDTH_MULTIPLE = 16  # a row of codes is whole vectors of 16 bytes
NARROW_TYPES = tuple(getattr(torch, name) for name in ("bfloat16", "float16", "float8_e8m0fnu") if hasattr(torch, name))
_KEPT = "_tessera_scales"  # attribute of the module: {name: (mark of the scales, their float32 copy)}


def scale_names(weight_names):
    return tuple(name + "_scale_inv" for name in weight_names)


def require(module, weight_names, width):
    """Refuses what the operator does not compute of a module with such weights; `width`: rows of the first one."""
    block = getattr(module, "block_size", None)
    if block is None or tuple(block) != (BLOCK, BLOCK):
        raise unsupported(module, "block_size", "None, one scale a tensor" if block is None else list(block),
                          f"[{BLOCK}, {BLOCK}], a scale each block of the weights")
    scheme = getattr(module, "activation_scheme", "dynamic")
    if scheme != "dynamic":
        raise unsupported(module, "activation_scheme", repr(scheme), "'dynamic': scales made of the tokens as they come")
    if module.is_transposed:
        raise unsupported(module, "is_transposed", True, "weights [E, rows, columns], which are used as they lie")
    if module.has_bias:
        raise unsupported(module, "has_bias", True, "no biases beside weights of 8 bits")
    gated = weight_names[0] == "gate_up_proj"
    if gated and width // 2 % BLOCK:
        raise unsupported(module, scale_names(weight_names)[0],
                          f"blocks of {BLOCK} rows over gate and up rows together, {width // 2} each: one lies across both",
                          f"an intermediate size that is a multiple of {BLOCK}")
    for name in weight_names:
        _require_grid(module, name)


def _require_grid(module, weight_name):
    weight, name = getattr(module, weight_name), scale_names((weight_name,))[0]
    scale = getattr(module, name, None)
    if type(scale) not in (torch.Tensor, torch.nn.Parameter):
        raise unsupported(module, name, type(scale).__name__, f"a plain tensor: {weight_name} has codes that it scales")
    if scale.dtype != torch.float32 and scale.dtype not in NARROW_TYPES:
        raise unsupported(module, name, scale.dtype, " or ".join(map(str, (torch.float32, *NARROW_TYPES))))
    if scale.device != weight.device:
        raise unsupported(module, name, f"device {scale.device}", f"{weight.device} as {weight_name}")
    experts, rows, columns = weight.shape
    expected = (experts, -(-rows // BLOCK), -(-columns // BLOCK))
    if tuple(scale.shape) != expected:
        raise unsupported(module, name, f"shape {tuple(scale.shape)}", f"{expected} beside {tuple(weight.shape)} codes")


def forget(module):
    """The copies of narrow scales; the next call makes them."""
    module.__dict__.pop(_KEPT, None)


def scales(module, weight_names):
    """(scales of the first weight: [E, 2, I / 128, ceil(H / 128)], not gated [E, ceil(I / 128), ..]; those of down) in
    float32, of a module that `require` let pass."""
    first, down = (_float32(module, name) for name in scale_names(weight_names))
    return (first.unflatten(1, (2, -1)) if weight_names[0] == "gate_up_proj" else first), down


def _float32(module, name):
    scale = getattr(module, name)
    if scale.dtype == torch.float32:
        return scale
    kept = getattr(module, _KEPT, {}).get(name)
    if kept is not None and torch.compiler.is_compiling():
        return kept[1]
    mark = (scale.data_ptr(), 0 if scale.is_inference() else scale._version, scale.dtype, scale.device)
    if kept is None or kept[0] != mark:
        require_eager()
        with torch.inference_mode(False), torch.no_grad():
            kept = mark, scale.detach().float().contiguous()
        module.__dict__.setdefault(_KEPT, {})[name] = kept
    return kept[1]
