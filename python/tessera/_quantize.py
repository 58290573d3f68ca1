"""Numbers to e4m3 with scales, and scales of checkpoints to those of a layer: for arrays on the CPU."""
import math

import numpy

from . import _native
from ._arrays import kind_of, require_device, require_memory, require_shape, require_type, torch_tensors, view
from ._moe import BLOCK, MAX_EXTENT, choice, half, integer, num_blocks
from ._native import CPU, DTYPES, check, lib, wrong


def quantize(name, array, is_weight, gate_and_up=False, gate_up_order="gate_first", whole_rows=False):
    """(codes, scales) of rows, or of a weight's blocks, made by the array's framework."""
    torch = torch_tensors(array)
    if torch is None and not isinstance(array, numpy.ndarray):
        raise TypeError(wrong(name, kind_of(array), "a NumPy array or a PyTorch tensor"))
    given = view(name, array)
    require_type(name, given, DTYPES)
    require_device(name, given, CPU, "only the CPU quantizes")
    require_memory(name, given, given.itemsize)
    if is_weight:
        if len(given.shape) not in (2, 3):
            raise ValueError(wrong(name, f"shape {list(given.shape)}", "[E, rows, columns] or [rows, columns]"))
        parts = 2 if gate_and_up else 1
        rows = half(name, given.shape[-2], gate_and_up)
        scale_rows = (*given.shape[:-2], *((parts,) if gate_and_up else ()), num_blocks(rows))
    else:
        if len(given.shape) != 3:
            require_shape(name, given, (None, None), "[rows, columns] or [E, rows, columns]")
        scale_rows = given.shape[:-1]
    scale_shape = (*scale_rows, 1 if whole_rows else num_blocks(given.shape[-1]))
    if torch is not None:
        codes, scales = torch.allocate(CPU, 0, (given.shape, "float8_e4m3fn"), (scale_shape, "float32"))
    else:
        codes, scales = numpy.empty(given.shape, numpy.uint8), numpy.empty(scale_shape, numpy.float32)
    results = view("codes", codes).pointer, view("scales", scales).pointer
    if is_weight:
        matrices = given.shape[0] if len(given.shape) == 3 else 1
        order = choice("gate_up_order", gate_up_order, _native.GATE_UP_ORDERS)
        _native.in_background(lambda: check(lib.tessera_quantize_blocks(
            given.pointer, DTYPES[given.dtype], matrices, *given.shape[-2:], int(gate_and_up), order, *results)))
    else:
        make = lib.tessera_quantize_whole_rows if whole_rows else lib.tessera_quantize_rows
        rows = math.prod(given.shape[:-1])
        _native.in_background(lambda: check(make(given.pointer, DTYPES[given.dtype], rows, given.shape[-1], *results)))
    return codes, scales


def convert_scales(scale, shape, gate_and_up, grid, up_offset, gate_up_order):
    """tessera.convert_scales of arguments whose names are checked."""
    torch = torch_tensors(scale)
    if torch is None and not isinstance(scale, numpy.ndarray):
        raise TypeError(wrong("scale", kind_of(scale), "a NumPy array or a PyTorch tensor"))
    if not isinstance(shape, (tuple, list)) or len(shape) not in (2, 3):
        raise TypeError(wrong("shape", repr(shape), "that of the weight: (E, rows, columns) or (rows, columns)"))
    *experts, rows, columns = (integer("shape", extent, 0, MAX_EXTENT) for extent in shape)
    number = choice("grid", grid, (*_native.SCALE_GRIDS, *_native.CHANNEL_GRIDS)) % len(_native.SCALE_GRIDS)
    order = choice("gate_up_order", gate_up_order, _native.GATE_UP_ORDERS)
    offset = integer("up_offset", up_offset, 0, BLOCK - 1)
    given = view("scale", scale, inference=False)
    require_type("scale", given, (*_native.SCALE_TYPES, "uint8"))
    require_device("scale", given, CPU, "only the CPU converts")
    width = half("shape", rows, gate_and_up)
    parts = (2,) if gate_and_up else ()
    if grid in _native.CHANNEL_GRIDS:
        if offset:
            raise ValueError(wrong("up_offset", offset, f"0: {grid} have no blocks"))
        if grid == "halves" and not gate_and_up:
            raise ValueError(wrong("grid", "halves", "rows or matrices: the weight is one projection"))
        own = {"rows": (rows,), "halves": (2,), "matrices": ()}[grid]
        stored = [(*experts, *own), (*experts, *own, 1), (*experts, *own, 1, 1)]
        return _converted(torch, given, stored, f"one of each of {grid}", (*experts, rows), lambda kind, result: (
            lib.tessera_convert_channel_scales(given.pointer, kind, number, math.prod(experts), rows, int(gate_and_up),
                                               order, result)))
    blocks = num_blocks(rows) if grid == "concatenated" else num_blocks(width) * (2 if gate_and_up else 1)
    stored = [(*experts, blocks, num_blocks(columns))]
    if parts and grid != "concatenated":
        split = (num_blocks(width), 2) if grid == "interleaved" else (2, num_blocks(width))
        stored.append((*experts, *split, num_blocks(columns)))
    result_shape = (*experts, *parts, num_blocks(width + offset), num_blocks(columns))
    return _converted(torch, given, stored, f"a block each 128 x 128 of {grid} rows", result_shape, lambda kind, result: (
        lib.tessera_convert_scales(given.pointer, kind, number, experts[0] if experts else 1, rows, columns,
                                   int(gate_and_up), offset, result)))


def _converted(torch, given, stored, words, result_shape, convert):
    """What `convert(type of the scales, pointer of the result)` makes of scales of one of the shapes `stored`."""
    if given.shape not in stored:
        raise ValueError(wrong("scale", f"shape {list(given.shape)}",
                               " or ".join(str(list(one)) for one in stored) + f", {words}"))
    require_memory("scale", given, given.itemsize)
    result = torch.allocate(CPU, 0, (result_shape, "float32"))[0] if torch else numpy.empty(result_shape, numpy.float32)
    kind = _native.SCALE_TYPES.index("float8_e8m0fnu" if given.dtype == "uint8" else given.dtype)
    check(convert(kind, view("scales", result).pointer))
    return result
