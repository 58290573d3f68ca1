"""Mixture-of-experts models of Transformers, run by Tessera.

    import tessera.transformers
    tessera.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="tessera")

or, of a model that is already there, ``model.set_experts_implementation("tessera")``. Every class whose experts
Transformers dispatches (``use_experts_implementation``) is served if its layer is one that the library computes: Qwen,
Mixtral, OLMoE, DeepSeek, GLM, MiniMax, gpt-oss, Nemotron-H and many more. What is not raises NotImplementedError that
names the requirement; nothing else is computed in its place. Inference only. Tested with Transformers 5.17 and 5.23; 5.7
is the oldest that takes an implementation by the name it was registered with.

Models of e4m3 weights with a scale each block of 128 x 128 (quantization_config "fp8", as DeepSeek-V3 and Qwen3's FP8
checkpoints have it) or one each projection are served too, where Transformers dispatches their experts (FP8Experts of
5.17): weights are used as they lie, tokens quantised as they come or, beside one scale a projection, by static scales.

Weights that a checkpoint keeps transposed (gpt-oss: [E, H, 2I], [E, I, H]) are repacked once, at the first eager call or
by ``prepare(model)``: the parameter keeps its shape and its values and becomes a strided view, so that the other
implementations, ``state_dict`` and ``save_pretrained`` work as before. ``restore(model)`` undoes it. Call ``prepare``
before ``torch.compile(fullgraph=True)``, ``torch.export`` or the capture of a CUDA graph.
"""

import importlib

try:
    import torch
except ImportError as error:
    raise ImportError("tessera.transformers: got no PyTorch, expected torch to be installed") from error

import tessera
from tessera import _transformers_fp8, _transformers_gate
from tessera._transformers_errors import require_eager
from tessera._transformers_errors import unsupported as _unsupported

NAME = "tessera"
OLDEST_TRANSFORMERS = (5, 7)  # the first that takes the name of a registered implementation
DTYPES = {"cpu": (torch.float32, torch.float16, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
LIMITS = tessera.moe_limits()
_GATE = "_tessera_gate"  # attribute of an experts module that was looked at: its Gate


def register() -> None:
    """Adds experts_implementation="tessera" to Transformers, for experts of 8-bit weights too where it dispatches them.
    Calling it again does nothing.

    ImportError without Transformers 5.7 or newer.
    """
    wanted = "expected transformers 5.7 or newer"
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(f"tessera.transformers.register: got no transformers, {wanted}") from error
    got = f"tessera.transformers.register: got transformers {transformers.__version__}"
    try:
        functions = importlib.import_module("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{got}, which has no ALL_EXPERTS_FUNCTIONS, {wanted}") from error
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise ImportError(f"{got}, which takes no registered implementations, {wanted}")
    importlib.import_module("tessera.torch_ops")  # a compiler may see the operator before any tensor does
    functions.register(NAME, experts_forward)
    try:  # a registry of its own, in versions that have one
        fp8 = importlib.import_module("transformers.integrations.finegrained_fp8")
    except ImportError:
        return
    functions = getattr(fp8, "ALL_FP8_EXPERTS_FUNCTIONS", None)
    if functions is not None:
        functions.register(NAME, experts_forward)


def prepare(model: torch.nn.Module) -> int:
    """Looks at every experts module of the model and repacks transposed weights. Returns how many there are.

    NotImplementedError if one cannot run, ValueError if there is none. Repacking needs the memory of one weight tensor
    more while it lasts and none afterwards.
    """
    found = [module for module in model.modules() if _is_experts(module)]
    if not found:
        raise ValueError(f"tessera.transformers.prepare: model: got {type(model).__name__} without experts that "
                         "Transformers dispatches, expected at least one such module")
    for module in found:
        _look_at(module)
    return len(found)


def restore(model: torch.nn.Module) -> int:
    """Gives repacked weights their contiguous form again, for code that needs it. Returns how many were repacked."""
    count = 0
    for module in model.modules():
        if not _is_experts(module):
            continue
        module.__dict__.pop(_GATE, None)
        for name in _weight_names(module):
            weight = module._parameters.get(name)
            if weight is not None and not weight.is_contiguous():
                _replace(weight, weight.data.contiguous)
                count += 1
    return count


def experts_forward(self, hidden_states, top_k_index, top_k_weights):
    """What Transformers calls for each layer: [T, H], ids [T, K], weights [T, K] -> [T, H]. An id of no expert, such as
    the sentinel of expert parallelism, adds nothing. Values of another type than the weights' (autocast) are cast as
    grouped_mm casts them; beside weights of 8 bits they are what the layer works in."""
    gate = getattr(self, _GATE, None)
    if gate is None:
        gate = _look_at(self)
    gate_up, down = _rows(self)
    if not (gate_up.is_contiguous() and down.is_contiguous()):  # loaded or assigned since it was looked at
        gate = _look_at(self)
        gate_up, down = _rows(self)
    fp8 = gate_up.dtype == _transformers_fp8.DTYPE
    dtype = hidden_states.dtype if fp8 else gate_up.dtype
    if dtype not in DTYPES.get(gate_up.device.type, ()):
        _require_types(self)
        raise _unsupported(self, "hidden_states", f"{dtype} on {gate_up.device.type}",
                           " or ".join(map(str, DTYPES[gate_up.device.type])))
    if top_k_index.shape[-1] > LIMITS.max_top_k:
        raise _unsupported(self, "top_k_index", f"{top_k_index.shape[-1]} experts a token", f"at most {LIMITS.max_top_k}")
    biases, scales = (None, None), {}
    if fp8:
        scales = _transformers_fp8.arguments(self, _weight_names(self))
    elif self.has_bias:
        biases = tuple(getattr(self, name) for name in _tensor_names(self)[2:])
    if torch.is_grad_enabled():
        _require_no_grad(self, hidden_states, top_k_weights, gate_up, down, *biases,
                         *(tensor for name, tensor in scales.items() if name != "weight_format"))
    x, weights = hidden_states.to(dtype).contiguous(), top_k_weights.contiguous()
    if weights.dtype not in (torch.float32, dtype):
        weights = weights.float()
    activation, alpha, beta, limit, gated, order = gate
    ids = top_k_index.contiguous()
    if torch.compiler.is_compiling():
        out = torch.ops.tessera.moe(x, gate_up, down, ids, weights, *biases, None, activation, alpha, beta, limit, gated,
                                    order, 0, **scales)
    else:  # the same, without the operator's dispatch
        out = tessera.moe(x, gate_up, down, ids, weights, gate_up_bias=biases[0], down_bias=biases[1],
                          activation=activation, alpha=alpha, beta=beta, limit=limit, gated=gated, gate_up_order=order,
                          **scales)
    return out.to(hidden_states.dtype)


def _is_experts(module):
    return all(hasattr(module, name) for name in ("is_transposed", "has_bias", "_apply_gate", "down_proj"))


def _first_name(module):
    return "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"


def _weight_names(module):
    return _first_name(module), "down_proj"


def _tensor_names(module):
    names = _weight_names(module)
    return (*names, names[0] + "_bias", "down_proj_bias") if module.has_bias else names


def _rows(module):
    """The weights as the operator takes them: gate_up [E, 2I, H] (or [E, I, H]) and down [E, H, I]."""
    gate_up, down = getattr(module, _first_name(module)), module.down_proj
    return (gate_up.transpose(1, 2), down.transpose(1, 2)) if module.is_transposed else (gate_up, down)


def _require_no_grad(module, *tensors):
    if any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"tessera.transformers: {type(module).__name__}: got tensors that require grad, expected "
                           "inference; call the model under torch.no_grad() or torch.inference_mode(), or use a "
                           "different experts_implementation for training")


def _require_types(module):
    names = _tensor_names(module)
    first = getattr(module, names[0])
    for name in names:
        weight = getattr(module, name, None)
        if type(weight) not in (torch.Tensor, torch.nn.Parameter):
            raise _unsupported(module, name, type(weight).__name__, "a plain tensor")
        known = DTYPES.get(weight.device.type)
        if known is None:
            raise _unsupported(module, name, f"device {weight.device}", "the CPU or a CUDA device")
        if weight.dtype not in (*known, _transformers_fp8.DTYPE):
            raise _unsupported(module, name, f"{weight.dtype} on {weight.device.type}",
                               " or ".join(map(str, (*known, _transformers_fp8.DTYPE))))
        if weight.dtype != first.dtype or weight.device != first.device:
            raise _unsupported(module, name, f"{weight.dtype} on {weight.device}",
                               f"{first.dtype} on {first.device} as {names[0]}")
    if first.is_cuda and (why := tessera.why_unusable(first.device.index)):
        raise _unsupported(module, names[0], why, "a GPU that the library runs on")


def _require_shapes(module):
    """(I, columns of the first projection)."""
    name = _first_name(module)
    first, down = getattr(module, name), module.down_proj
    if first.dim() != 3 or down.dim() != 3:
        raise _unsupported(module, name, f"shapes {tuple(first.shape)}, {tuple(down.shape)}", "three dimensions")
    experts, hidden, intermediate = down.transpose(1, 2).shape if module.is_transposed else down.shape
    width = 2 * intermediate if name == "gate_up_proj" else intermediate
    expected = (experts, hidden, width) if module.is_transposed else (experts, width, hidden)
    if tuple(first.shape) != expected:
        raise _unsupported(module, name, f"shape {tuple(first.shape)}", f"{expected} beside down_proj {tuple(down.shape)}")
    if getattr(module, "num_experts", experts) != experts or not 1 <= experts <= LIMITS.max_experts:
        raise _unsupported(module, "num_experts", getattr(module, "num_experts", experts),
                           f"{experts} as down_proj and at most {LIMITS.max_experts}")
    multiple = _transformers_fp8.WIDTH_MULTIPLE if first.dtype == _transformers_fp8.DTYPE else LIMITS.width_multiple
    for what, size in (("hidden size", hidden), ("intermediate size", intermediate)):
        if size % multiple or not size:
            raise _unsupported(module, name, f"{what} {size}", f"a positive multiple of {multiple}")
    if module.has_bias:
        for bias, shape in ((name + "_bias", (experts, width)), ("down_proj_bias", (experts, hidden))):
            if tuple(getattr(module, bias).shape) != shape:
                raise _unsupported(module, bias, f"shape {tuple(getattr(module, bias).shape)}", shape)
    return width


def _look_at(module):
    """The Gate of an experts module, kept in it; its weights as the operator reads them. Eager only."""
    require_eager()
    return torch.compiler.disable(_look_now)(module)


def _look_now(module):
    _require_types(module)
    if getattr(module, "has_post_expert_norm", False):
        raise _unsupported(module, "has_post_expert_norm", True, "no norm after each expert")
    width = _require_shapes(module)
    names = _tensor_names(module)
    if getattr(module, names[0]).dtype == _transformers_fp8.DTYPE:
        _transformers_fp8.require(module, _weight_names(module), width)
        names += _transformers_fp8.tensor_names(module, _weight_names(module))
    gate = _transformers_gate.identify(module, width)
    if gate is None:
        activation = type(getattr(module, "act_fn", None)).__name__
        raise _unsupported(module, "_apply_gate" if getattr(module, "has_gate", True) else "act_fn",
                           f"a function of its own (act_fn: {activation})",
                           "silu, gelu, relu or the identity of the gate times up, or clamped SwiGLU; without a gate one "
                           "of these or relu squared")
    for name in names:
        _pack(module, name)
    _transformers_fp8.forget(module)
    if len(names) > len(_tensor_names(module)):
        _transformers_fp8.arguments(module, _weight_names(module))  # made now: a compiler may come next
    setattr(module, _GATE, tuple(gate))
    return tuple(gate)


def _pack(module, name):
    """Makes the rows that the operator reads contiguous and aligned, where they are not."""
    weight = getattr(module, name)
    swapped = module.is_transposed and weight.dim() == 3
    rows = weight.transpose(1, 2) if swapped else weight
    if rows.is_contiguous() and rows.data_ptr() % LIMITS.alignment == 0:
        return
    if module._parameters.get(name) is not weight:
        raise _unsupported(module, name, f"strides {tuple(weight.stride())} of something computed",
                           "a parameter of the module, which can be repacked")

    def packed():
        copy = rows.detach().clone(memory_format=torch.contiguous_format)
        return copy.transpose(1, 2) if swapped else copy
    _replace(weight, packed)


def _replace(parameter, make):
    """Gives a parameter other memory with the same values. Work of any stream that reads the old memory is over when
    that is given back, and the new memory is written when any stream may read it."""
    with torch.inference_mode(False), torch.no_grad():
        data = make()
        if data.is_cuda:
            torch.cuda.synchronize(data.device)
        parameter.data = data
