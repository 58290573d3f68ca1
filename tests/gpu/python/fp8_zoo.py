"""Small models of real Transformers classes whose experts are Transformers' own FP8Experts, and what they compute by plain
PyTorch: the same quantisation of tokens and intermediate, products in float64."""
import json
import pathlib
import types

import safetensors.torch
import tessera
import torch
import transformers
from transformers.integrations import finegrained_fp8, moe

import model_zoo

BLOCK = 128
HIDDEN = 528  # the last block of a row holds 16 columns
# Of an expert: four blocks of gate rows, and three.
WIDTHS = {"qwen3_moe": 512, "deepseek_v3": 384}
PLAIN = "tessera_test_plain"  # experts_implementation of `plain_forward`
CODES = torch.float8_e4m3fn


def available():
    """Why not, or an empty string."""
    return "" if hasattr(finegrained_fp8, "ALL_FP8_EXPERTS_FUNCTIONS") else (
        f"transformers {transformers.__version__} dispatches no experts of 8-bit weights")


def config_of(name, layers):
    """`layers`: with experts."""
    config = model_zoo.CONFIGS[name]()
    config.hidden_size, config.moe_intermediate_size = HIDDEN, WIDTHS[name]
    config.num_hidden_layers = layers + getattr(config, "first_k_dense_replace", 0)
    return config


def dense_model(name, dtype, layers=2):
    return model_zoo.cast(model_zoo.fill(getattr(transformers, model_zoo.CLASSES[name])(config_of(name, layers))), dtype)


def quantized(weight):
    """(codes, scales) of [.., rows, columns], one grid over all rows, as Transformers keeps it."""
    return tessera.quantize_blocks(weight.float().contiguous())


def build(name, dtype=torch.bfloat16, device="cpu", implementation="tessera", layers=2, **options):
    """A model whose experts alone have 8 bits, those of the model of `model_zoo` that were rounded."""
    model = dense_model(name, dtype, layers)
    given = [(module.gate_up_proj.data, module.down_proj.data) for module in model_zoo.experts_of(model)]
    others = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    settings = transformers.FineGrainedFP8Config(**{"weight_block_size": (BLOCK, BLOCK), **options})
    finegrained_fp8.replace_with_fp8_linear(model, others, settings, pre_quantized=True)
    for module, weights in zip(model_zoo.experts_of(model), given, strict=True):
        put(module.to_empty(device="cpu"), dict(zip(("gate_up_proj", "down_proj"), weights)))
    model.to(device)
    model.set_experts_implementation(implementation)
    return model.train(False)


def quantized_by_tensor(weight, parts):
    """(codes, scales [E, parts, 1]): one scale for each of so many parts of the rows."""
    rows = weight.float().unflatten(1, (parts, -1))
    scales = rows.abs().amax((2, 3)) / 448
    return (rows / scales[:, :, None, None]).to(CODES).flatten(1, 2), scales[:, :, None]


def put(module, weights):
    """Quantises {name: weight} into an FP8Experts module; scales of other shapes stay what they are. Static scales fit the
    tokens of `layer_inputs` but for a few, and differ from expert to expert."""
    for name, weight in weights.items():
        own = getattr(module, name + "_scale_inv")
        codes, scales = quantized(weight) if module.block_size is not None else quantized_by_tensor(weight, own.shape[1])
        getattr(module, name).data.copy_(codes)
        if own.shape == scales.shape:
            own.data.copy_(scales)
    if module.activation_scheme == "static":
        uneven = 1 + torch.arange(module.num_experts) % 4 / 5
        module.gate_up_proj_activation_scale.data.copy_(3 / 448 * uneven)
        module.down_proj_activation_scale.data.copy_(2 / 448 * uneven)


def without_a_gate(intermediate, activation):
    """FP8Experts of one first projection, no multiple of a block wide."""
    make = moe.use_experts_implementation(finegrained_fp8.FP8Experts, has_gate=False,
                                          experts_interface=finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS)
    config = types.SimpleNamespace(hidden_size=HIDDEN, moe_intermediate_size=intermediate, num_experts=6, hidden_act=activation,
                                   _experts_implementation="tessera")
    module = make(config, block_size=(BLOCK, BLOCK), has_gate=False).requires_grad_(False)
    generator = torch.Generator().manual_seed(intermediate)
    put(module, {name: torch.randn(getattr(module, name).shape, generator=generator) / getattr(module, name).shape[2]**0.5
                 for name in ("up_proj", "down_proj")})
    return module


def spread(scales, rows, columns, has_blocks=True):
    """The scale of each element of [.., rows, columns]."""
    if not has_blocks:
        return scales.double().repeat_interleave(rows // scales.shape[-2], -2)
    return scales.double().repeat_interleave(BLOCK, -2)[..., :rows, :].repeat_interleave(BLOCK, -1)[..., :columns]


def rounded_rows(values, group=BLOCK, scale=None):
    """float64 of what each row is once it has 8 bits and a scale each `group` columns, or this static one."""
    values = values.float()
    out = torch.empty_like(values, dtype=torch.float64)
    for begin in range(0, values.shape[-1], group):
        part = values[..., begin:begin + group]
        own = scale
        if scale is None:
            own = part.abs().amax(-1, keepdim=True).clamp(min=1e-10) * torch.tensor(1 / 448, dtype=torch.float32)
        codes = (part * (1 / own)).clamp(-448, 448).to(CODES)
        out[..., begin:begin + group] = codes.double() * own.double()
    return out


def plain_forward(self, hidden_states, top_k_index, top_k_weights):
    """The layer by plain PyTorch, rounded to the type of the tokens where the operator does: rows of experts, the sum."""
    first, down = (getattr(self, name).double() * spread(getattr(self, name + "_scale_inv").float(),
                                                         *getattr(self, name).shape[1:], self.block_size is not None)
                   for name in ("gate_up_proj" if self.has_gate else "up_proj", "down_proj"))
    activation = self._apply_gate if self.has_gate else self.act_fn
    dtype = hidden_states.dtype
    group = BLOCK if self.block_size is not None else hidden_states.shape[-1]
    static = self.activation_scheme == "static"
    out = torch.zeros_like(hidden_states, dtype=torch.float64)
    for slot in range(top_k_index.shape[1]):
        for expert in range(self.num_experts):
            rows = (top_k_index[:, slot] == expert).nonzero().flatten()
            x_scale, h_scale = ((self.gate_up_proj_activation_scale[expert], self.down_proj_activation_scale[expert])
                                if static else (None, None))
            tokens = rounded_rows(hidden_states[rows], group, x_scale)
            intermediate = rounded_rows(activation(tokens @ first[expert].T), BLOCK, h_scale)
            out[rows] += top_k_weights[rows, slot, None].double() * (intermediate @ down[expert].T).to(dtype).double()
    return out.to(dtype)


def register():
    finegrained_fp8.ALL_FP8_EXPERTS_FUNCTIONS.register(PLAIN, plain_forward)


def save_checkpoint(name, folder, scale_dtype=torch.float32):
    """A checkpoint as such models are published: each expert's projections apart, `weight_scale_inv` beside each."""
    model = dense_model(name, torch.bfloat16)
    model.save_pretrained(folder)
    path = pathlib.Path(folder) / "model.safetensors"
    tensors, made = safetensors.torch.load_file(path), {}
    for key, tensor in tensors.items():
        made[key] = tensor
        if ".experts." in key:
            made[key], scales = quantized(tensor)
            made[key + "_scale_inv"] = scales.to(scale_dtype)
    safetensors.torch.save_file(made, path, metadata={"format": "pt"})
    skipped = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                     "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": skipped}
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
