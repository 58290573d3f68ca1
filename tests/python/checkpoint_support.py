"""Small checkpoints of every family, under the names that the real ones have: config.json, safetensors, an index.

    made = Checkpoint(folder, "qwen3_moe", "fp8-block", num_files=3)
    made.layer(1)["gate_up"]          # what a layer of it is made of, as float64 arrays, e4m3 codes and scales
"""
import json
import struct

import numpy

HIDDEN, WIDTH, EXPERTS, TOP_K = 192, 160, 6, 2
_NAMED, _NUMBERED = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
# model_type: (experts, projections, shared expert, keys of config.json)
FAMILIES = {
    "qwen3_moe": ("mlp.experts", _NAMED, None, {"num_experts": EXPERTS, "moe_intermediate_size": WIDTH,
                                                "intermediate_size": 512, "norm_topk_prob": True}),
    "qwen3_next": ("mlp.experts", _NAMED, "mlp.shared_expert", {
        "num_experts": EXPERTS, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": WIDTH}),
    "mixtral": ("block_sparse_moe.experts", _NUMBERED, None, {"num_local_experts": EXPERTS, "intermediate_size": WIDTH}),
    "olmoe": ("mlp.experts", _NAMED, None, {"num_experts": EXPERTS, "intermediate_size": WIDTH}),
    "deepseek_v3": ("mlp.experts", _NAMED, "mlp.shared_experts", {
        "n_routed_experts": EXPERTS, "moe_intermediate_size": WIDTH, "intermediate_size": 512, "n_shared_experts": 1,
        "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1}),
    "glm4_moe": ("mlp.experts", _NAMED, "mlp.shared_experts", {
        "n_routed_experts": EXPERTS, "moe_intermediate_size": WIDTH, "intermediate_size": 512, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}),
    "gpt_oss": ("mlp.experts", _NAMED, None, {"num_local_experts": EXPERTS, "intermediate_size": WIDTH,
                                              "swiglu_limit": 7.0}),
    "minimax_m2": ("block_sparse_moe.experts", _NUMBERED, None, {"num_local_experts": EXPERTS,
                                                                "intermediate_size": WIDTH}),
}
_TYPES = {"F32": numpy.float32, "F16": numpy.float16, "U8": numpy.uint8, "F8_E4M3": numpy.uint8, "F8_E8M0": numpy.uint8, "BF16": numpy.uint16}
MX_MAGNITUDES = numpy.array([0, .5, 1, 1.5, 2, 3, 4, 6])
MX_VALUES = numpy.concatenate([MX_MAGNITUDES, -MX_MAGNITUDES])


def e4m3_values():
    codes = numpy.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    magnitude = numpy.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * numpy.exp2(exponent - 7.0))
    return numpy.where(codes & 127 == 127, numpy.nan, numpy.where(codes & 128, -magnitude, magnitude))


class Tensor:
    """A tensor of a file: its type by safetensors' name, and an array whose bytes it has."""

    def __init__(self, dtype, array):
        self.dtype, self.array = dtype, numpy.ascontiguousarray(array, _TYPES[dtype])
        self.shape = list(array.shape)


def bf16(values):
    """Numbers that bfloat16 holds exactly -> their bit patterns."""
    return Tensor("BF16", (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16))


def to_bf16(values):
    """Cut off to numbers that bfloat16 holds."""
    bits = numpy.asarray(values, numpy.float32).view(numpy.uint32) & 0xFFFF0000
    return bits.view(numpy.float32).astype(numpy.float64)


def e8m0(values):
    """Powers of two -> their exponents, as bytes."""
    return Tensor("F8_E8M0", numpy.log2(values) + 127)


def dense(dtype, values):
    return {"BF16": bf16, "F8_E8M0": e8m0}.get(dtype, lambda values: Tensor(dtype, values))(values)


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, offset + tensor.array.nbytes]}
        offset += tensor.array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.array.tobytes())


def blocks(extent):
    return -(-extent // 128)


class Checkpoint:
    """`form`: BF16, F16, F32, fp8-block, fp8-channel, fp8-tensor, mxfp4. `fused`: tensors of all experts. `scale_type`: of
    fp8's scales. `exponents`: of MXFP4, a function of a shape. Written by `write`, so that a test can break it before."""

    def __init__(self, folder, family="qwen3_moe", form="BF16", *, fused=False, num_files=1, num_layers=2, scale_type="F32",
                 exponents=None, seed=3):
        self.folder, self.family, self.form, self.fused, self.num_files = folder, family, form, fused, num_files
        self.random, self.scale_type = numpy.random.default_rng(seed), scale_type
        self.exponents = exponents or (lambda shape: self.random.integers(118, 128, shape))
        self.experts_name, self.projections, self.shared_name, keys = FAMILIES[family]
        self.config = {"model_type": family, "hidden_size": HIDDEN, "num_hidden_layers": num_layers, "hidden_act": "silu",
                       "num_experts_per_tok": TOP_K, **keys}
        if form.startswith("fp8-block"):
            self.config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                                  "weight_block_size": [128, 128]}
        self.tensors, self.layers = {}, {}
        for layer in range(self.config.get("first_k_dense_replace", 0), num_layers):
            self._make_layer(layer)
        self.tensors["model.norm.weight"] = bf16(numpy.ones(HIDDEN))
        self.index = None  # made by write; a test may set its own

    def prefix(self, layer):
        return f"model.layers.{layer}.{self.experts_name}."

    def write(self):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        names = list(self.tensors)
        if self.num_files == 1 and self.index is None:
            write_safetensors(self.folder / "model.safetensors", self.tensors)
            return self.folder
        files = [f"model-{i + 1:05}-of-{self.num_files:05}.safetensors" for i in range(self.num_files)]
        where = {name: files[i % self.num_files] for i, name in enumerate(names)}
        for file in files:
            write_safetensors(self.folder / file, {name: self.tensors[name] for name in names if where[name] == file})
        index = self.index if self.index is not None else {"metadata": {"total_size": 1}, "weight_map": where}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return self.folder

    # What layers are made of

    def _weight(self, *shape):
        return to_bf16(self.random.standard_normal(shape) * shape[-1]**-0.5)

    def _make_layer(self, layer):
        if self.family == "gpt_oss":
            return self._make_gpt_oss(layer)
        made = self.layers[layer] = {}
        fp8 = self.form.startswith("fp8")
        make = self._fp8 if fp8 else self._dense
        gate, gate_scale = make(EXPERTS, WIDTH, HIDDEN)
        up, up_scale = make(EXPERTS, WIDTH, HIDDEN)
        down, down_scale = make(EXPERTS, HIDDEN, WIDTH)
        made["gate_up"], made["down"] = numpy.concatenate([gate, up], 1), down
        if fp8:
            made["gate_up_scale"], made["down_scale"] = numpy.stack([gate_scale, up_scale], 1), down_scale
        prefix = self.prefix(layer)
        if self.fused:
            self._put_fused(prefix, made)
        else:
            for expert in range(EXPERTS):
                for name, weight, scale in zip(self.projections, (gate, up, down), (gate_scale, up_scale, down_scale)):
                    self._put(f"{prefix}{expert}.{name}", weight[expert], None if scale is None else scale[expert])
        if self.shared_name:
            shared = f"model.layers.{layer}.{self.shared_name}."
            parts = [make(1, WIDTH, HIDDEN), make(1, WIDTH, HIDDEN), make(1, HIDDEN, WIDTH)]
            for name, (weight, scale) in zip(_NAMED, parts):
                self._put(shared + name, weight[0], None if scale is None else scale[0])
            made["shared_gate_up"], made["shared_down"] = numpy.concatenate([parts[0][0][0], parts[1][0][0]]), parts[2][0][0]
            if fp8:
                made["shared_gate_up_scale"] = numpy.stack([parts[0][1][0], parts[1][1][0]])
                made["shared_down_scale"] = parts[2][1][0]

    def _dense(self, *shape):
        return self._weight(*shape), None

    def _fp8(self, experts, rows, columns):
        codes = self.random.integers(0, 127, (experts, rows, columns)) | self.random.integers(0, 2, (experts, rows, columns)) << 7
        shape = {"fp8-block": (experts, blocks(rows), blocks(columns)), "fp8-channel": (experts, rows, 1),
                 "fp8-tensor": (experts, 1)}[self.form]
        return codes.astype(numpy.uint8), self._scales(shape)

    def _scales(self, shape):
        scales = self.random.random(shape) * 2e-4 + 1e-4
        return numpy.exp2(numpy.round(numpy.log2(scales))) if self.scale_type == "F8_E8M0" else to_bf16(scales)

    def _put(self, name, weight, scale):
        self.tensors[name + ".weight"] = (Tensor("F8_E4M3", weight) if scale is not None else dense(self.form, weight))
        if scale is not None:
            ending = "weight_scale_inv" if self.form == "fp8-block" else "weight_scale"
            self.tensors[f"{name}.{ending}"] = dense(self.scale_type, scale)

    def _put_fused(self, prefix, made):
        if self.form != "fp8-block":
            self.tensors[prefix + "gate_up_proj"] = dense(self.form, made["gate_up"])
            self.tensors[prefix + "down_proj"] = dense(self.form, made["down"])
            return
        # A grid that counts through gate and up: where I is no multiple of 128 a block has rows of both.
        counted = self._scales((EXPERTS, blocks(2 * WIDTH), blocks(HIDDEN)))
        offset = WIDTH % 128
        gate = counted[:, :blocks(WIDTH)]
        up = counted[:, WIDTH // 128:WIDTH // 128 + blocks(WIDTH + offset)]
        rows = max(gate.shape[1], up.shape[1])
        made["gate_up_scale"] = numpy.zeros((EXPERTS, 2, rows, blocks(HIDDEN)))
        made["gate_up_scale"][:, 0, :gate.shape[1]], made["gate_up_scale"][:, 1, :up.shape[1]] = gate, up
        made["scale_offsets"] = (0, offset, 0)
        self.tensors[prefix + "gate_up_proj"] = Tensor("F8_E4M3", made["gate_up"])
        self.tensors[prefix + "gate_up_proj_scale_inv"] = dense(self.scale_type, counted)
        self.tensors[prefix + "down_proj"] = Tensor("F8_E4M3", made["down"])
        self.tensors[prefix + "down_proj_scale_inv"] = dense(self.scale_type, made["down_scale"])

    def _make_gpt_oss(self, layer):
        made, prefix = self.layers.setdefault(layer, {}), self.prefix(layer)
        for name, rows, columns in (("gate_up", 2 * WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)):
            if self.form == "mxfp4":
                codes = self.random.integers(0, 16, (EXPERTS, rows, columns))
                exponents = self.exponents((EXPERTS, rows, columns // 32))
                pairs = codes[..., 0::2] | codes[..., 1::2] << 4
                self.tensors[f"{prefix}{name}_proj_blocks"] = Tensor("U8", pairs.reshape(EXPERTS, rows, columns // 32, 16))
                self.tensors[f"{prefix}{name}_proj_scales"] = Tensor("U8", exponents)
                made[name] = MX_VALUES[codes] * numpy.exp2(numpy.repeat(exponents, 32, 2) - 127.0)
            else:
                made[name] = self._weight(EXPERTS, rows, columns)
                self.tensors[f"{prefix}{name}_proj"] = dense(self.form, made[name].transpose(0, 2, 1))
            made[f"{name}_bias"] = to_bf16(self.random.standard_normal((EXPERTS, rows)))
            self.tensors[f"{prefix}{name}_proj_bias"] = bf16(made[f"{name}_bias"])
