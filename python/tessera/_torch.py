"""What PyTorch adds: the operator torch.ops.tessera.moe, and a short way through a call for plain tensors.

Imported when the first PyTorch tensor shows up, or by hand (`import tessera.torch_ops`) to have the operator before.
"""

import contextlib

import torch

from . import _moe
from ._arrays import View
from ._native import CPU, INPUTS_BYTES, PACK_INPUTS, check, lib, refuse_fork, wrong

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16", torch.int32: "int32",
          torch.int64: "int64", torch.uint8: "uint8", torch.float8_e4m3fn: "float8_e4m3fn"}
if hasattr(torch, "float8_e8m0fnu"):
    _NAMES[torch.float8_e8m0fnu] = "float8_e8m0fnu"
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# Looked up once: a call has microseconds.
_Tensor = torch.Tensor
_is_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_empty, _empty_like, _uint8, _int32, _int64, _float32, _float8 = (
    torch.empty, torch.empty_like, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float8_e4m3fn)
_run = lib.tessera_moe_run
# Active modes (fake tensors, tracing) see operators only.
_num_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_is_in_bad_fork = getattr(torch.cuda, "_is_in_bad_fork", lambda: False)
_plain_dispatch = torch.Tensor.__torch_dispatch__  # that of every class which does not define its own


def _public_stream(index):
    return torch.cuda.current_stream(index).cuda_stream


# The address of PyTorch's current stream of a CUDA device: the short way where this PyTorch has it.
current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _public_stream)


def view(name, tensor, inference=True):
    """The View of a tensor. `inference`: refuse one that requires grad where that would be recorded."""
    if type(tensor).__torch_dispatch__ is not _plain_dispatch:
        raise TypeError(wrong(name, type(tensor).__name__, "a tensor with memory of its own"))
    if tensor.layout is not torch.strided:
        raise TypeError(wrong(name, f"layout {tensor.layout}", "torch.strided"))
    if inference and tensor.requires_grad and _is_grad_enabled():
        refuse_grad(name)
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(wrong(name, f"a tensor on {tensor.device}", "the CPU or a CUDA device"))
    if tensor.is_cuda and _is_in_bad_fork():
        refuse_fork()
    if tensor.is_neg() or tensor.is_conj():
        raise TypeError(wrong(name, "a tensor whose numbers are still to be negated", "tensor.resolve_neg()"))
    try:
        pointer = tensor.data_ptr()
    except RuntimeError:  # what torch.vmap and torch.func hand to a function
        raise TypeError(wrong(name, "a tensor without memory of its own", "a plain tensor: torch.vmap and torch.func "
                                                                          "transform nothing here")) from None
    last = tensor.storage_offset() + sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride()))
    if tensor.numel() and tensor.untyped_storage().nbytes() < (last + 1) * tensor.itemsize:
        raise RuntimeError(wrong(name, "a tensor whose memory was freed", "memory"))
    return View(pointer, tuple(tensor.shape), tensor.stride(), _NAMES.get(tensor.dtype, str(tensor.dtype)),
                tensor.itemsize, tensor.get_device(), True, tensor)


def refuse_grad(name):
    raise RuntimeError(wrong(name, "a tensor that requires grad", "inference only: torch.no_grad() or tensor.detach()"))


def _where(device):
    return torch.device("cpu") if device == CPU else torch.device("cuda", device)


def allocate(device, stream, *wanted):
    """Uninitialised tensors, one for each (shape, name of the type), for work on the stream at this address."""
    on_stream = contextlib.nullcontext()
    if device != CPU and stream != current_stream(device):
        # Memory belongs to the stream that uses it: freed early, it goes to nobody else too soon.
        on_stream = torch.cuda.stream(torch.cuda.ExternalStream(stream, _where(device)))
    with on_stream:
        return [_empty(shape, dtype=_DTYPES[dtype], device=_where(device)) for shape, dtype in wanted]


def _run_plain(layer, x, topk_ids, topk_weights, shared_weight, out, workspace, stream, x_scale=None):
    """The short way: runs and returns out if every argument is what it nearly always is, else None.

    It accepts nothing that _moe.run would refuse; whatever it does not accept goes there, for the run or the message.
    """
    device, index, pointer = layer.torch_device, layer.device, layer.handle.pointer
    if device is None:
        device = layer.torch_device = _where(index)
        layer.torch_dtype = _DTYPES[layer.dtype]
    if type(x) is not _Tensor or type(topk_ids) is not _Tensor or type(topk_weights) is not _Tensor or not pointer:
        return None
    shape, id_type, weight_type = x.shape, topk_ids.dtype, topk_weights.dtype
    x_type = layer.torch_dtype if x_scale is None else layer.quantizes_tokens and _float8
    if (x.dtype is not x_type or len(shape) != 2 or shape[1] != layer.hidden_size or x.device != device
            or topk_ids.device != device or topk_weights.device != device or not x.is_contiguous()
            or not topk_ids.is_contiguous() or not topk_weights.is_contiguous()
            or id_type is not _int32 and id_type is not _int64
            or weight_type is not _float32 and weight_type is not layer.torch_dtype):
        return None
    num_tokens = shape[0]
    slots = (num_tokens, layer.top_k)
    if topk_ids.shape != slots or topk_weights.shape != slots or not num_tokens:
        return None
    if index < 0 and num_tokens > layer.quick_tokens:  # long enough for Ctrl-C
        return None
    if _is_grad_enabled() and (x.requires_grad or topk_weights.requires_grad or out is not None and out.requires_grad):
        return None
    if stream is None:
        stream = None if index < 0 else current_stream(index)
    elif index < 0 or type(stream) is not int or out is None or workspace is None:
        return None
    scale = 0 if x_scale is None else _plain_pointer(x_scale, (num_tokens, layer.token_groups), _float32, device)
    shared = 0
    if shared_weight is not None:
        shared = layer.has_shared_expert and _plain_pointer(shared_weight, (num_tokens,), _float32, device)
    if x_scale is not None and not scale or shared_weight is not None and not shared:
        return None
    needed = layer.known_workspace_bytes.get(num_tokens) or layer.workspace_bytes(num_tokens)
    if out is None:
        out = _empty_like(x, dtype=layer.torch_dtype)
    elif (type(out) is not _Tensor or out.dtype is not layer.torch_dtype or out.shape != shape or out.device != device
          or not out.is_contiguous()):
        return None
    if workspace is None:
        workspace = _empty(needed, dtype=_uint8, device=device)
    elif (type(workspace) is not _Tensor or workspace.dtype is not _uint8 or workspace.dim() != 1
          or workspace.device != device or not workspace.is_contiguous() or workspace.numel() < needed):
        return None
    if x.is_neg() or topk_weights.is_neg() or out.is_neg():  # memory holds the numbers with the other sign
        return None
    try:
        x_pointer, out_pointer, room = x.data_ptr(), out.data_ptr(), workspace.data_ptr()
        ids_pointer, weights_pointer = topk_ids.data_ptr(), topk_weights.data_ptr()
    except RuntimeError:
        return None
    if (not (x_pointer and out_pointer and room and ids_pointer and weights_pointer)
            or (x_pointer | out_pointer | room) & 15 or ids_pointer & (7 if id_type is _int64 else 3)
            or weights_pointer & (3 if weight_type is _float32 else 1)):
        return None
    inputs = PACK_INPUTS(INPUTS_BYTES, num_tokens, id_type is _int64, x_pointer, ids_pointer, weights_pointer,
                         out_pointer, shared, _NUMBERS[weight_type], scale)
    if index < 0:
        with layer.handle.lock:
            status = _run(pointer, inputs, room, needed, None)
    else:
        status = _run(pointer, inputs, room, needed, stream)
    if status:
        check(status)
    return out


def _plain_pointer(tensor, shape, dtype, device):
    """The address of a plain contiguous tensor of this shape, or 0 for anything else."""
    if (type(tensor) is not _Tensor or tensor.dtype is not dtype or tensor.shape != shape or tensor.device != device
            or not tensor.is_contiguous() or tensor.requires_grad or tensor.is_neg()):
        return 0
    pointer = tensor.data_ptr()
    return 0 if pointer & (tensor.itemsize - 1) else pointer


def call(owner, x, topk_ids, topk_weights, shared_weight, out, workspace, stream, x_scale):
    """MoELayer.__call__ where weights are tensors: out, or None for a call that needs a closer look."""
    if _is_compiling() or _num_modes():
        dtype = None if x_scale is None else owner._native.dtype
        return _call_operator(x, owner._arrays, topk_ids, topk_weights, shared_weight, owner._options, out, stream,
                              x_scale, dtype)
    grad = _is_grad_enabled()
    for tensor, pointer in owner._tensors:
        if tensor.data_ptr() != pointer or grad and tensor.requires_grad:
            return None
    return _run_plain(owner._native, x, topk_ids, topk_weights, shared_weight, out, workspace, stream, x_scale)


def moe(x, arrays, topk_ids, topk_weights, options, out, workspace, stream, x_scale, dtype):
    """tessera.moe for a tensor x. `arrays` in the order of _moe.ARRAY_NAMES."""
    if _is_compiling() or _num_modes():
        return _call_operator(x, arrays, topk_ids, topk_weights, None, options, out, stream, x_scale, dtype)
    return _moe_now(x, arrays, topk_ids, topk_weights, None, options, out, workspace, stream, x_scale, dtype)


def sees_operators_only():
    """Whether a compiler traces, or a mode (fake tensors, tracing) is active."""
    return _is_compiling() or _num_modes()


def call_router(logits, top_k, kind, bias, num_groups, topk_groups, scale, stream):
    if stream is not None:
        raise ValueError(wrong("stream", stream, "None: a compiled function runs on the current stream"))
    return torch.ops.tessera.route.default(logits, top_k, kind, bias, num_groups, topk_groups, scale)


def _route_operator(logits, top_k, kind="topk_softmax", bias=None, num_groups=1, topk_groups=1, scale=1.0):
    return _moe.route(logits, top_k, kind, bias, num_groups, topk_groups, scale, None)


def _route_fake(logits, top_k, kind="topk_softmax", bias=None, num_groups=1, topk_groups=1, scale=1.0):
    if logits.dim() != 2:
        raise ValueError(wrong("logits", f"shape {list(logits.shape)}", "2 dimensions"))
    if logits.requires_grad and _is_grad_enabled():
        refuse_grad("logits")
    slots = logits.shape[0], top_k
    return (_empty(slots, dtype=_int32, device=logits.device), _empty(slots, dtype=_float32, device=logits.device))


def _call_operator(x, arrays, topk_ids, topk_weights, shared_weight, options, out, stream, x_scale, dtype):
    """The operator allocates its own workspace; one that was given is not needed."""
    if stream is not None:
        raise ValueError(wrong("stream", stream, "None: a compiled function runs on the current stream"))
    gate_up, down, gate_up_bias, down_bias, shared_gate_up, shared_down, expert_map, *scales = arrays
    *scales, gate_up_input_scale, down_input_scale = scales
    *known, weight_format, scale_offsets, round_like_engines = options
    arguments = (x, gate_up, down, topk_ids, topk_weights, gate_up_bias, down_bias, expert_map, *known, shared_gate_up,
                 shared_down, shared_weight, weight_format, *scales, scale_offsets, x_scale, dtype,
                 gate_up_input_scale, down_input_scale, round_like_engines)
    if out is None:
        return torch.ops.tessera.moe.default(*arguments)
    torch.ops.tessera.moe_out.default(*arguments, out=out)
    return out


def _signature(tensor):
    return (type(tensor), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.get_device(),
            tensor.is_neg())


def _moe_now(x, arrays, topk_ids, topk_weights, shared_weight, options, out, workspace, stream, x_scale, dtype):
    try:
        key = (x.dtype, dtype, topk_ids.shape[-1], options, *[None if a is None else _signature(a) for a in arrays])
        layer = _moe.CACHE.find(key, x.get_device() < 0)
    except (AttributeError, TypeError, IndexError, RuntimeError):  # something is not what it should be: say what
        key = layer = None
    if layer is not None:
        if _is_grad_enabled():
            for tensor in arrays:
                if tensor is not None and tensor.requires_grad:
                    layer = None
                    break
    if layer is not None:
        done = _run_plain(layer, x, topk_ids, topk_weights, shared_weight, out, workspace, stream, x_scale)
        if done is not None:
            return done
    return _moe.moe(x, arrays, topk_ids, topk_weights, shared_weight, options, out, workspace, stream, x_scale, dtype,
                    key)


def _moe_operator(x, gate_up, down, topk_ids, topk_weights, gate_up_bias=None, down_bias=None, expert_map=None,
                  activation="silu", alpha=1.0, beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first",
                  first_expert=0, shared_gate_up=None, shared_down=None, shared_weight=None, weight_format="dense",
                  gate_up_scale=None, down_scale=None, shared_gate_up_scale=None, shared_down_scale=None,
                  scale_offsets=(0, 0, 0), x_scale=None, dtype=None, gate_up_input_scale=None, down_input_scale=None,
                  round_like_engines=False, out=None):
    arrays = (gate_up, down, gate_up_bias, down_bias, shared_gate_up, shared_down, expert_map, gate_up_scale,
              down_scale, shared_gate_up_scale, shared_down_scale, gate_up_input_scale, down_input_scale)
    options = (activation, alpha, beta, limit, gated, gate_up_order, first_expert, weight_format, tuple(scale_offsets),
               round_like_engines)
    return _moe_now(x, arrays, topk_ids, topk_weights, shared_weight, options, out, None, None, x_scale, dtype)


def _moe_out_operator(*arguments, **named):
    _moe_operator(*arguments, **named)


def _moe_fake(x, gate_up, down, topk_ids, topk_weights, gate_up_bias=None, down_bias=None, expert_map=None,
              activation="silu", alpha=1.0, beta=0.0, limit=0.0, gated=True, gate_up_order="gate_first",
              first_expert=0, shared_gate_up=None, shared_down=None, shared_weight=None, weight_format="dense",
              gate_up_scale=None, down_scale=None, shared_gate_up_scale=None, shared_down_scale=None,
              scale_offsets=(0, 0, 0), x_scale=None, dtype=None, gate_up_input_scale=None, down_input_scale=None,
              round_like_engines=False, out=None):
    """What a call gives, without one; sizes that the call would refuse are refused here where they are known."""
    layer_type = x.dtype if x_scale is None else _DTYPES[dtype or "bfloat16"]
    _check_fake_tensors(weight_format, layer_type, {
        "x": x, "gate_up": gate_up, "down": down, "topk_ids": topk_ids, "topk_weights": topk_weights,
        "gate_up_bias": gate_up_bias, "down_bias": down_bias, "expert_map": expert_map, "shared_gate_up": shared_gate_up,
        "shared_down": shared_down, "shared_weight": shared_weight, "gate_up_scale": gate_up_scale,
        "down_scale": down_scale, "shared_gate_up_scale": shared_gate_up_scale,
        "shared_down_scale": shared_down_scale, "x_scale": x_scale, "gate_up_input_scale": gate_up_input_scale,
        "down_input_scale": down_input_scale, "out": out})
    for name, tensor, dims in (("x", x, 2), ("gate_up", gate_up, 3), ("down", down, 3), ("topk_ids", topk_ids, 2)):
        if tensor.dim() != dims:
            raise ValueError(wrong(name, f"shape {list(tensor.shape)}", f"{dims} dimensions"))
    torch._check(topk_ids.shape[0] == x.shape[0], lambda: wrong("topk_ids", list(topk_ids.shape), "x's T rows"))
    torch._check(topk_weights.shape == topk_ids.shape,
                 lambda: wrong("topk_weights", list(topk_weights.shape), f"{list(topk_ids.shape)}, as topk_ids"))
    hidden = x.shape[1]
    torch._check(hidden == gate_up.shape[2] or hidden == gate_up.shape[1],
                 lambda: wrong("gate_up", list(gate_up.shape), f"[E, 2I, H] with x's H = {hidden}"))
    if out is not None:
        torch._check(out.shape == x.shape, lambda: wrong("out", list(out.shape), f"{list(x.shape)}, as x"))
    return _empty_like(x, dtype=layer_type, memory_format=torch.contiguous_format)


def _check_fake_tensors(weight_format, layer_type, tensors):
    x = tensors["x"]
    types = {"topk_ids": (_int32, _int64), "topk_weights": (_float32, layer_type), "expert_map": (_int32,),
             "shared_weight": (_float32,), "x_scale": (_float32,), "gate_up_input_scale": (_float32,),
             "down_input_scale": (_float32,)}
    if tensors["x_scale"] is not None:
        types["x"] = (_float8, _uint8)
    if weight_format != "dense":
        weights = ("gate_up", "down", "shared_gate_up", "shared_down")
        types.update({name: (_float8, _uint8) for name in weights})
        types.update({f"{name}_scale": (_float32,) for name in weights})
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.requires_grad and _is_grad_enabled():
            refuse_grad(name)
        if tensor.device != x.device:
            raise ValueError(wrong(name, tensor.device, f"{x.device}, as x is"))
        if tensor.dtype not in types.get(name, (layer_type,)):
            raise TypeError(wrong(name, tensor.dtype, " or ".join(map(str, types.get(name, (layer_type,))))))


def _moe_out_fake(*arguments, **named):
    _moe_fake(*arguments, **named)


def _define():
    """The operators. tessera::moe_out writes into `out` instead of returning a tensor."""
    arguments = ("Tensor x, Tensor gate_up, Tensor down, Tensor topk_ids, Tensor topk_weights, "
                 "Tensor? gate_up_bias=None, Tensor? down_bias=None, Tensor? expert_map=None, "
                 'str activation="silu", float alpha=1.0, float beta=0.0, float limit=0.0, bool gated=True, '
                 'str gate_up_order="gate_first", int first_expert=0, Tensor? shared_gate_up=None, '
                 'Tensor? shared_down=None, Tensor? shared_weight=None, str weight_format="dense", '
                 "Tensor? gate_up_scale=None, Tensor? down_scale=None, Tensor? shared_gate_up_scale=None, "
                 "Tensor? shared_down_scale=None, int[] scale_offsets=[0, 0, 0], Tensor? x_scale=None, str? dtype=None, "
                 "Tensor? gate_up_input_scale=None, Tensor? down_input_scale=None, bool round_like_engines=False")
    # Strides as in eager mode: a compiler that chose others would make arrays that the library must refuse.
    tags = [getattr(torch.Tag, name) for name in ("needs_exact_strides", "pt2_compliant_tag")
            if hasattr(torch.Tag, name)]
    library = torch.library.Library("tessera", "DEF")
    library.define(f"moe({arguments}) -> Tensor", tags=tags)
    library.define(f"moe_out({arguments}, *, Tensor(a!) out) -> ()", tags=tags)
    library.define('route(Tensor logits, int top_k, str kind="topk_softmax", Tensor? bias=None, int num_groups=1, '
                   "int topk_groups=1, float scale=1.0) -> (Tensor, Tensor)", tags=tags)
    for key in ("CPU", "CUDA"):
        library.impl("moe", _moe_operator, key)
        library.impl("moe_out", _moe_out_operator, key)
        library.impl("route", _route_operator, key)
    torch.library.register_fake("tessera::moe", _moe_fake, lib=library)
    torch.library.register_fake("tessera::moe_out", _moe_out_fake, lib=library)
    torch.library.register_fake("tessera::route", _route_fake, lib=library)
    return library


_LIBRARY = _define()  # the operators live as long as this object
