"""Experts modules of Transformers whose weights have 8 bits, FP8Experts: what the operator takes them as.

Such a module keeps e4m3 weights, and beside each `<name>_scale_inv`, what the codes of a block are multiplied by: a grid
[E, ceil(rows / 128), ceil(columns / 128)] over all rows, gate's and up's one after the other. The operator counts blocks of
gate and of up rows apart, so the grid is its own where no block holds rows of both: I is a multiple of 128. Weights are
never copied. Scales of float32 are used as they lie; narrower ones (bfloat16, powers of two as float8_e8m0fnu) have a copy
in float32, which holds each of them exactly. It is made anew when they change, as PyTorch counts changes: not what is
written through `.data`, after which `prepare` makes it.

Without a block size (`block_size` None) a projection has one scale, [E, 1, 1], gate's and up's apart [E, 2, 1]: the operator
gets it for each row, and quantizes tokens by one scale each or, where the module has static ones
(`gate_up_proj_activation_scale`, `down_proj_activation_scale`: [E]), by those.
"""

import torch

from ._moe import num_blocks
from ._transformers_errors import require_eager, unsupported

DTYPE = torch.float8_e4m3fn
BLOCK = 128
WIDTH_MULTIPLE = 16  # a row of codes is whole vectors of 16 bytes
NARROW_TYPES = tuple(getattr(torch, name) for name in ("bfloat16", "float16", "float8_e8m0fnu") if hasattr(torch, name))
_KEPT = "_tessera_scales"  # attribute of the module: {name: (mark of the scales, their float32 copy)}


STATIC_NAMES = ("gate_up_proj_activation_scale", "down_proj_activation_scale")  # also without a gate


def scale_names(weight_names):
    return tuple(name + "_scale_inv" for name in weight_names)


def tensor_names(module, weight_names):
    """Of all tensors beside the weights."""
    return scale_names(weight_names) + (STATIC_NAMES if _is_static(module) else ())


def _is_static(module):
    return getattr(module, "activation_scheme", "dynamic") == "static"


def _has_blocks(module):
    return getattr(module, "block_size", None) is not None


def require(module, weight_names, width):
    """Refuses what the operator does not compute of a module with such weights; `width`: rows of the first one."""
    if _has_blocks(module) and tuple(module.block_size) != (BLOCK, BLOCK):
        raise unsupported(module, "block_size", list(module.block_size),
                          f"[{BLOCK}, {BLOCK}], a scale each block of the weights, or None, one a tensor")
    scheme = getattr(module, "activation_scheme", "dynamic")
    if scheme != "dynamic" and (scheme != "static" or _has_blocks(module)):
        raise unsupported(module, "activation_scheme", repr(scheme),
                          "'dynamic', scales made of the tokens as they come; without a block size also 'static'")
    if module.is_transposed:
        raise unsupported(module, "is_transposed", True, "weights [E, rows, columns], which are used as they lie")
    if module.has_bias:
        raise unsupported(module, "has_bias", True, "no biases beside weights of 8 bits")
    gated = weight_names[0] == "gate_up_proj"
    if gated and _has_blocks(module) and width // 2 % BLOCK:
        raise unsupported(module, scale_names(weight_names)[0],
                          f"blocks of {BLOCK} rows over gate and up rows together, {width // 2} each: one lies across both",
                          f"an intermediate size that is a multiple of {BLOCK}")
    for name in weight_names:
        experts, rows, columns = getattr(module, name).shape
        grid = num_blocks(rows), num_blocks(columns)
        if not _has_blocks(module):
            grid = 2 if gated and name == weight_names[0] else 1, 1
        _require_scale(module, scale_names((name,))[0], name, (experts, *grid), (torch.float32, *NARROW_TYPES))
    for name in STATIC_NAMES if _is_static(module) else ():
        _require_scale(module, name, weight_names[0], (len(getattr(module, weight_names[0])),), (torch.float32,))


def _require_scale(module, name, weight_name, expected, dtypes):
    weight, scale = getattr(module, weight_name), getattr(module, name, None)
    if type(scale) not in (torch.Tensor, torch.nn.Parameter):
        raise unsupported(module, name, type(scale).__name__, f"a plain tensor: {weight_name} has codes that it scales")
    if scale.dtype not in dtypes:
        raise unsupported(module, name, scale.dtype, " or ".join(map(str, dtypes)))
    if scale.device != weight.device:
        raise unsupported(module, name, f"device {scale.device}", f"{weight.device} as {weight_name}")
    if tuple(scale.shape) != expected:
        raise unsupported(module, name, f"shape {tuple(scale.shape)}", f"{expected} beside {tuple(weight.shape)} codes")


def forget(module):
    """The copies of narrow scales; the next call makes them."""
    module.__dict__.pop(_KEPT, None)


def arguments(module, weight_names):
    """What the operator is told of a module that `require` let pass: the format, scales in float32."""
    blocks = _has_blocks(module)
    first, down = (_float32(module, name, None if blocks else getattr(module, weight).shape[1])
                   for name, weight in zip(scale_names(weight_names), weight_names))
    if blocks:
        first = first.unflatten(1, (2, -1)) if weight_names[0] == "gate_up_proj" else first
    given = {"weight_format": "fp8-block" if blocks else "fp8-channel", "gate_up_scale": first, "down_scale": down}
    if _is_static(module):
        given |= dict(zip(("gate_up_input_scale", "down_input_scale"), (getattr(module, name) for name in STATIC_NAMES)))
    return given


def _float32(module, name, rows):
    """Scales in float32; of `rows` rows that share them, one for each: gate's, then up's."""
    scale = getattr(module, name)
    if scale.dtype == torch.float32 and rows is None:
        return scale
    kept = getattr(module, _KEPT, {}).get(name)
    if kept is not None and torch.compiler.is_compiling():
        return kept[1]
    mark = (scale.data_ptr(), 0 if scale.is_inference() else scale._version, scale.dtype, scale.device)
    if kept is None or kept[0] != mark:
        require_eager()
        with torch.inference_mode(False), torch.no_grad():
            wide = scale.detach().float()
            kept = mark, (wide if rows is None else wide.flatten(1).repeat_interleave(rows // scale.shape[1], 1)).contiguous()
        module.__dict__.setdefault(_KEPT, {})[name] = kept
    return kept[1]
