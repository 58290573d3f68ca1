"""tessera.transformers on Transformers' own FP8Experts in real model classes, on the CPU and on every GPU that is there.

The reference is plain PyTorch with the same quantisation of tokens and intermediate (fp8_zoo). A test that could pass with
a wrong layer has a twin in which an error is planted and must be seen."""
import copy
import os
import tempfile
import unittest
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers.quantizers import quantizer_finegrained_fp8

import model_zoo
import moe_reference
from cases import one_test_a_case, over

moe_reference.require_operator()

import fp8_zoo
import tessera.transformers as integration

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# Of nine rows in ten: a tie of the router moves single ones. Of models whose tokens are quantised again after one layer
# with experts: a relative difference d of two tokens is about sqrt(0.07 d) once both have 8 bits, here 2e-2 of 6e-3.
LOGITS_LIMIT, DEEP_LOGITS_LIMIT = 3e-2, 6e-2
# Of one layer: a code that is rounded the other way weighs the more, the narrower the intermediate is.
ROW_LIMIT, MEDIAN_LIMIT = 5e-2, 6e-3
ROWS_OF_A_MEDIAN = 33  # at least
NARROW = [name for name in ("bfloat16", "float8_e8m0fnu") if hasattr(torch, name)]


def setUpModule():
    if why := fp8_zoo.available():
        raise unittest.SkipTest(why)
    transformers.utils.logging.disable_progress_bar()
    integration.register()
    fp8_zoo.register()


def layer_inputs(module, tokens, dtype, device):
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, fp8_zoo.HIDDEN, generator=generator).to(device, dtype)
    ids = torch.rand(tokens, module.num_experts, generator=generator).topk(4).indices.to(device)
    return x, ids, torch.rand(tokens, 4, generator=generator).softmax(-1).to(device)


def run(module, inputs, implementation="tessera"):
    module.config._experts_implementation = implementation
    with torch.no_grad():
        return module(*inputs)


def narrowed(module, dtype):
    """Makes the scales numbers of the type, kept in it; returns a copy of the module that has the same in float32."""
    wide = copy.deepcopy(module)
    for name in ("gate_up_proj_scale_inv", "down_proj_scale_inv"):
        values = getattr(module, name).data
        if dtype == getattr(torch, "float8_e8m0fnu", None):
            values = values.log2().ceil().exp2()
        setattr(module, name, torch.nn.Parameter(values.to(dtype), requires_grad=False))
        getattr(wide, name).data = values.to(dtype).float()
    return wide


@one_test_a_case
class Layers(unittest.TestCase):
    def assert_right(self, module, inputs):
        got, expected = run(module, inputs), run(module, inputs, fp8_zoo.PLAIN)
        self.assertEqual((got.dtype, got.shape, got.device), (inputs[0].dtype, inputs[0].shape, inputs[0].device))
        errors = model_zoo.row_errors(got.double().cpu(), expected.double().cpu())
        self.assertLess(float(errors.max()), ROW_LIMIT)
        if len(errors) >= ROWS_OF_A_MEDIAN:
            self.assertLess(float(errors.median()), MEDIAN_LIMIT)

    @over(fp8_zoo.WIDTHS, DEVICES)
    def test_every_class_and_type(self, name, device):
        module = model_zoo.experts_of(fp8_zoo.build(name, device=device))[-1]
        self.assertEqual(type(module).__name__, "FP8Experts")
        for dtype in integration.DTYPES[device]:
            for tokens in (1, 7, 130):
                with self.subTest(dtype=dtype, tokens=tokens):
                    self.assert_right(module, layer_inputs(module, tokens, dtype, device))

    @over(("dynamic", "static"), DEVICES)
    def test_one_scale_a_projection(self, scheme, device):
        model = fp8_zoo.build("qwen3_moe", device=device, weight_block_size=None, activation_scheme=scheme)
        module = model_zoo.experts_of(model)[-1]
        for tokens in (1, 33, 130):
            with self.subTest(tokens=tokens):
                self.assert_right(module, layer_inputs(module, tokens, torch.bfloat16, device))
        inputs = layer_inputs(module, 130, torch.bfloat16, device)
        expected = run(module, inputs, fp8_zoo.PLAIN).double()
        names = ["gate_up_proj_scale_inv", "down_proj_scale_inv"]
        if scheme == "static":
            names += ["gate_up_proj_activation_scale", "down_proj_activation_scale"]
        for name in names:  # too small: what it scales saturates, or is small itself
            wrong = copy.deepcopy(module)
            scale = getattr(wrong, name).data
            factors = 0.125**(torch.arange(len(scale), device=device) % 2).reshape(-1, *[1] * (scale.dim() - 1))
            scale.mul_(factors)
            integration.prepare(wrong)
            errors = model_zoo.row_errors(run(wrong, inputs).double(), expected)
            self.assertGreater(float(errors.median()), 2 * MEDIAN_LIMIT, name)

    @over(("relu2", "gelu"), DEVICES)
    def test_without_a_gate(self, activation, device):
        module = fp8_zoo.without_a_gate(208, activation).to(device)
        self.assert_right(module, layer_inputs(module, 65, torch.bfloat16, device))

    def test_planted_errors_are_seen(self):
        module = model_zoo.experts_of(fp8_zoo.build("qwen3_moe"))[0]
        inputs = layer_inputs(module, 130, torch.bfloat16, "cpu")
        expected = run(module, inputs, fp8_zoo.PLAIN).double()

        def swap_halves(scale):  # up's before gate's
            scale.copy_(scale.roll(scale.shape[1] // 2, 1))

        def shift_columns(scale):  # the neighbour's
            scale.copy_(scale.roll(1, 2))

        for name, plant in (("gate_up_proj_scale_inv", swap_halves), ("gate_up_proj_scale_inv", shift_columns),
                            ("down_proj_scale_inv", shift_columns)):
            with self.subTest(planted=plant.__name__, scales=name):
                wrong = copy.deepcopy(module)
                plant(getattr(wrong, name).data)
                errors = model_zoo.row_errors(run(wrong, inputs).double(), expected)
                self.assertGreater(float(errors.median()), 2 * MEDIAN_LIMIT)

    @over(NARROW, DEVICES)
    def test_narrow_scales_are_converted_exactly(self, dtype, device):
        module = model_zoo.experts_of(fp8_zoo.build("qwen3_moe", device=device))[0]
        wide = narrowed(module, getattr(torch, dtype))
        inputs = layer_inputs(module, 33, torch.bfloat16, device)
        before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in module.named_parameters()}
        self.assertTrue(torch.equal(run(module, inputs), run(wide, inputs)))
        self.assertEqual({name: (tensor.data_ptr(), tensor.dtype) for name, tensor in module.named_parameters()}, before)
        changes = ((lambda scale: scale, 2), (lambda scale: scale.data, 4))  # the second is seen by prepare only
        for into, factor in changes:
            with torch.no_grad():
                for scale in (module.down_proj_scale_inv, wide.down_proj_scale_inv):
                    into(scale).copy_(scale.float() * factor)
            if factor == 4:
                integration.prepare(module)
            self.assertTrue(torch.equal(run(module, inputs), run(wide, inputs)))

    @over(DEVICES)
    def test_weights_are_used_as_they_lie(self, device):
        model = fp8_zoo.build("qwen3_moe", device=device)
        before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
        used = torch.cuda.memory_allocated() if device == "cuda" else 0
        self.assertEqual(integration.prepare(model), 2)
        if device == "cuda":
            self.assertEqual(torch.cuda.memory_allocated(), used)
        model_zoo.logits(model, model_zoo.prompts(1, 8))
        self.assertEqual({name: parameter.data_ptr() for name, parameter in model.named_parameters()}, before)

    @over(DEVICES)
    def test_sentinel_ids_add_nothing(self, device):
        module = model_zoo.experts_of(fp8_zoo.build("qwen3_moe", device=device))[0]
        x, ids, weights = layer_inputs(module, 20, torch.bfloat16, device)
        ids[:, 2] = module.num_experts
        self.assert_right(module, (x, ids, weights))
        ids[:] = module.num_experts
        self.assertTrue(torch.equal(run(module, (x, ids, weights)), torch.zeros_like(x)))

    @over(DEVICES)
    def test_without_a_graph_break(self, device):
        for dtype in (torch.float32, torch.bfloat16):
            module = model_zoo.experts_of(fp8_zoo.build("deepseek_v3", device=device))[0]
            narrowed(module, dtype)
            inputs = layer_inputs(module, 9, torch.bfloat16, device)
            integration.prepare(module)
            expected = run(module, inputs)
            torch._dynamo.reset()
            compiled = torch.compile(lambda *tensors: integration.experts_forward(module, *tensors), fullgraph=True,
                                     backend="aot_eager")
            with torch.no_grad():
                self.assertTrue(torch.equal(compiled(*inputs), expected), dtype)

    @unittest.skipUnless(torch.cuda.is_available(), "no GPU")
    def test_in_a_cuda_graph(self):
        module = model_zoo.experts_of(fp8_zoo.build("qwen3_moe", device="cuda"))[0]
        inputs = layer_inputs(module, 7, torch.bfloat16, "cuda")
        integration.prepare(module)
        run(module, inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            out = module(*inputs)
        inputs[0].normal_()
        out.fill_(float("nan"))
        graph.replay()
        self.assertTrue(torch.equal(out, run(module, inputs)))


@one_test_a_case
class Models(unittest.TestCase):
    def assert_logits(self, model, ids, limit=DEEP_LOGITS_LIMIT):
        model.set_experts_implementation("tessera")
        ours = model_zoo.logits(model, ids)
        model.set_experts_implementation(fp8_zoo.PLAIN)
        errors = model_zoo.row_errors(ours, model_zoo.logits(model, ids))
        self.assertLess(float(errors.quantile(0.9)), limit)
        return ours

    @over(fp8_zoo.WIDTHS, DEVICES)
    def test_logits_after_one_layer(self, name, device):
        for dtype in integration.DTYPES[device]:
            with self.subTest(dtype=dtype):
                self.assert_logits(fp8_zoo.build(name, dtype, device, layers=1), model_zoo.prompts(4, 24), LOGITS_LIMIT)

    @over(fp8_zoo.WIDTHS, DEVICES)
    def test_logits(self, name, device):
        for dtype in integration.DTYPES[device]:
            with self.subTest(dtype=dtype):
                self.assert_logits(fp8_zoo.build(name, dtype, device), model_zoo.prompts(4, 24))

    def test_planted_errors_are_seen_in_logits(self):
        model = fp8_zoo.build("qwen3_moe", torch.float32)
        ids = model_zoo.prompts(4, 24)
        right = self.assert_logits(model, ids)
        for module in model_zoo.experts_of(model):
            scale = module.gate_up_proj_scale_inv.data
            scale.copy_(scale.roll(scale.shape[1] // 2, 1))
        model.set_experts_implementation("tessera")
        self.assertGreater(float(model_zoo.row_errors(model_zoo.logits(model, ids), right).median()), 2 * DEEP_LOGITS_LIMIT)

    @over(fp8_zoo.WIDTHS, ("float32", "bfloat16"), DEVICES)
    def test_a_checkpoint_as_they_are_published(self, name, scale_dtype, device):
        # Loaded by Transformers' own code. Its look at the machine, which would have weights turned into bfloat16 where no
        # GPU is, and asks for a package that nothing here uses, is left out.
        keeps = mock.patch.object(quantizer_finegrained_fp8.FineGrainedFP8HfQuantizer, "validate_environment",
                                  lambda *_, **__: None)
        with tempfile.TemporaryDirectory() as folder, keeps:
            fp8_zoo.save_checkpoint(name, folder, getattr(torch, scale_dtype))
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="tessera",
                                                                      dtype=torch.bfloat16).to(device)
        experts = model_zoo.experts_of(model)
        self.assertTrue(all(module.gate_up_proj.dtype == fp8_zoo.CODES for module in experts))
        kept = {module.down_proj_scale_inv.dtype for module in experts}  # versions after 5.17 load them as float32
        self.assertLessEqual(kept, {getattr(torch, scale_dtype), torch.float32})
        ids = model_zoo.prompts(4, 24)
        loaded = self.assert_logits(model, ids)
        if scale_dtype == "float32":
            self.assertTrue(torch.equal(loaded, model_zoo.logits(fp8_zoo.build(name, device=device), ids)))


class Refusals(unittest.TestCase):
    """What is not computed says which attribute or tensor it is, before anything runs."""

    def refuse(self, module, words):
        inputs = layer_inputs(module, 3, torch.bfloat16, "cpu")
        for call in (lambda: integration.prepare(module), lambda: integration.experts_forward(module, *inputs)):
            with torch.no_grad(), self.assertRaisesRegex(NotImplementedError, words + ".*use a different experts_imp"):
                call()

    def experts(self, **options):
        return model_zoo.experts_of(fp8_zoo.build("qwen3_moe", **options))[0]

    def test_other_blocks(self):
        module = self.experts()
        module.block_size = (64, 128)
        self.refuse(module, r"block_size: got \[64, 128\], expected \[128, 128\]")

    def test_static_scales_beside_blocks(self):
        self.refuse(self.experts(activation_scheme="static"), "activation_scheme: got 'static', expected 'dynamic'")
        module = self.experts(weight_block_size=None, activation_scheme="static")
        module.down_proj_activation_scale.data = module.down_proj_activation_scale.data[:1].clone()
        self.refuse(module, r"down_proj_activation_scale: got shape \(1,\), expected \(16,\)")
        module = self.experts(weight_block_size=None)
        module.gate_up_proj_scale_inv.data = module.gate_up_proj_scale_inv.data[:, :1].clone()
        self.refuse(module, r"gate_up_proj_scale_inv: got shape \(16, 1, 1\), expected \(16, 2, 1\)")

    def test_a_block_across_gate_and_up(self):
        with mock.patch.dict(fp8_zoo.WIDTHS, {"qwen3_moe": 192}):
            self.refuse(self.experts(), "gate_up_proj_scale_inv: got blocks of 128 rows over gate and up rows together, "
                        "192 each.*expected an intermediate size that is a multiple of 128")

    def test_grids_and_types(self):
        module = self.experts()
        module.down_proj_scale_inv.data = module.down_proj_scale_inv.data[:, :1].contiguous()
        self.refuse(module, r"down_proj_scale_inv: got shape \(16, 1, 4\), expected \(16, 5, 4\)")
        module = self.experts()
        module.gate_up_proj_scale_inv.data = module.gate_up_proj_scale_inv.data.double()
        self.refuse(module, "gate_up_proj_scale_inv: got torch.float64, expected torch.float32 or torch.bfloat16")
        module = self.experts()
        module.down_proj_scale_inv = None
        self.refuse(module, "down_proj_scale_inv: got NoneType, expected a plain tensor")
        module = self.experts()
        packed = torch.zeros(module.down_proj.shape, dtype=torch.int8)  # e2m1 codes in pairs
        module.down_proj = torch.nn.Parameter(packed, requires_grad=False)
        self.refuse(module, "down_proj: got torch.int8 on cpu, expected .*float8_e4m3fn")

    def test_tokens_of_other_types(self):
        module = self.experts()
        x, ids, weights = layer_inputs(module, 3, torch.bfloat16, "cpu")
        integration.prepare(module)
        with torch.no_grad(), self.assertRaisesRegex(NotImplementedError, "hidden_states: got torch.float64 on cpu"):
            integration.experts_forward(module, x.double(), ids, weights)


if __name__ == "__main__":
    unittest.main()
