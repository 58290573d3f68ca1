"""tessera.transformers on real model classes with random weights, on the CPU and on every kind of GPU that is there.

The reference is Transformers' own eager code in float64 or float32. A test that could pass with a wrong layer has a twin
in which an error is planted and must be seen."""
import copy
import os
import unittest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

import model_zoo
import moe_reference
from cases import one_test_a_case, over

moe_reference.require_operator()

import tessera.transformers as integration

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# Largest error of a row of one layer against float64: three roundings (intermediate, experts' rows, output) and the
# weights' sum; the other implementations, which also round the first product, reach 8e-3 in bfloat16.
ROW_LIMITS = {torch.float32: 2e-6, torch.float16: 8e-4, torch.bfloat16: 6e-3}
HALVES = (torch.bfloat16, torch.float16)
FLOAT32_LOGITS = 1e-5  # relative error of a row of logits between implementations in float32
QUANTILES = (0.25, 0.5, 0.75, 0.9)  # of the rows' errors; the last tenth holds tokens whose experts differ at a tie
WORSE_THAN_OTHERS = 1.25  # our quantiles over the larger of eager's and grouped_mm's
NOISE = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-6}  # of a tie; bfloat16's logits are off by 1e-2
DRAWS = 128
PLANTED_IN_LAYERS = {"gpt_oss": ({"gate_up_order": "gate_first"}, {"alpha": 1.65}, {"limit": 6.5}, {"beta": 0.99}),
                     "qwen3_moe": ({"gate_up_order": "up_first"}, {"gate_up_order": "interleaved"},
                                   {"activation": "gelu_tanh"})}
PLANTED_IN_LOGITS = {"gpt_oss": ({"alpha": 1.0}, {"gate_up_order": "gate_first"}), "mixtral": ({"gate_up_order": "up_first"},)}
PLANTED_IN_GENERATION = {"gpt_oss": {"beta": 0.0}, "qwen3_moe": {"gate_up_order": "up_first"}}


def dtypes_of(device):
    return integration.DTYPES[device]


def setUpModule():
    integration.register()


def layer_inputs(module, tokens, top_k, dtype, device, seed=3):
    """(x, ids, weights) with an expert that nobody chose and tokens that chose one expert twice."""
    generator = torch.Generator().manual_seed(seed)
    hidden = module.down_proj.shape[2 if module.is_transposed else 1]
    x = torch.randn(tokens, hidden, generator=generator)
    scores = torch.rand(tokens, module.num_experts, generator=generator)
    scores[:, 1] = -1
    ids = scores.topk(top_k).indices
    ids[: tokens // 8, 1] = ids[: tokens // 8, 0]
    weights = torch.rand(tokens, top_k, generator=generator).softmax(-1)
    return x.to(device, dtype), ids.to(device), weights.to(device, dtype)


def in_float64(module, x, ids, weights):
    """What the module's own eager code computes in float64, in a copy of it."""
    other = copy.deepcopy(module).double()
    other.config = copy.deepcopy(module.config)
    other.config._experts_implementation = "eager"
    with torch.no_grad():
        return other(x.double(), ids.long(), weights.double()).cpu()


def run(module, *inputs, implementation="tessera"):
    module.config._experts_implementation = implementation
    with torch.no_grad():
        return module(*inputs)


def replant(module, **changes):
    """Makes the module's gate another than it is."""
    gate = integration._transformers_gate.Gate(*getattr(module, integration._GATE))
    setattr(module, integration._GATE, tuple(gate._replace(**changes)))


def experts(name, dtype=torch.float32, device="cpu"):
    return model_zoo.experts_of(model_zoo.build(name, dtype, device))[-1]


@one_test_a_case
class Layers(unittest.TestCase):
    """One experts module against its own eager code in float64."""

    def check(self, module, inputs):
        got = run(module, *inputs)
        self.assertEqual((got.dtype, got.shape, got.device.type),
                         (inputs[0].dtype, inputs[0].shape, inputs[0].device.type))
        errors = model_zoo.row_errors(got.double().cpu(), in_float64(module, *inputs))
        self.assertLess(float(errors.max()), ROW_LIMITS[inputs[0].dtype])

    @over(model_zoo.CONFIGS, DEVICES)
    def test_every_class_and_type(self, name, device):
        for dtype in dtypes_of(device):
            with self.subTest(dtype=dtype):
                module = experts(name, dtype, device)
                self.check(module, layer_inputs(module, 257, 4, dtype, device))

    @over(DEVICES)
    def test_other_gates_and_layouts(self, device):
        dtype = dtypes_of(device)[-1]
        for name in model_zoo.LONE_EXPERTS:
            with self.subTest(model=name):
                module = model_zoo.lone_experts(name).to(device, dtype)
                self.check(module, layer_inputs(module, 65, 2, dtype, device))

    @over(DEVICES)
    def test_sizes_of_the_batch(self, device):
        dtype = dtypes_of(device)[-1]
        module = experts("qwen3_moe", dtype, device)
        for tokens in (1, 2, 8, 63, 64, 65, 700):
            with self.subTest(tokens=tokens):
                self.check(module, layer_inputs(module, tokens, 4, dtype, device))
        empty = layer_inputs(module, 8, 4, dtype, device)
        self.assertEqual(run(module, *(tensor[:0] for tensor in empty)).shape, (0, 64))

    def test_types_of_ids_and_weights_and_strides(self):
        for device in DEVICES:
            dtype = dtypes_of(device)[-1]
            module = experts("mixtral", dtype, device)
            x, ids, weights = layer_inputs(module, 33, 2, dtype, device)
            self.check(module, (x, ids.int(), weights.float()))
            self.check(module, (x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T))
            expected = run(module, x, ids, weights)
            wide = run(module, x.float(), ids, weights)  # as under autocast: values of another type than the weights
            self.assertEqual(wide.dtype, torch.float32)
            self.assertTrue(torch.equal(wide.to(dtype), expected))

    def test_sentinel_ids_add_nothing(self):
        for device in DEVICES:
            dtype = dtypes_of(device)[-1]
            module = experts("gpt_oss", dtype, device)
            module._is_expert_parallel = True  # newer versions mask sentinels only where it is set
            x, ids, weights = layer_inputs(module, 40, 4, dtype, device)
            ids[:, 2], weights[:, 2] = module.num_experts, 0
            others = run(module, x, ids, weights, implementation="grouped_mm").double().cpu()
            got = run(module, x, ids, weights)
            self.assertLess(float(model_zoo.row_errors(got.double().cpu(), others).max()), 0.02)
            ids[:, :] = module.num_experts
            self.assertTrue(torch.equal(run(module, x, ids, weights), torch.zeros_like(x)))

    @over(PLANTED_IN_LAYERS)
    def test_planted_errors_are_seen(self, name):
        module = experts(name, torch.bfloat16)
        inputs = layer_inputs(module, 257, 4, torch.bfloat16, "cpu")
        self.check(module, inputs)
        for change in PLANTED_IN_LAYERS[name]:
            with self.subTest(planted=change):
                wrong = copy.deepcopy(module)
                replant(wrong, **change)
                with self.assertRaises(AssertionError):
                    self.check(wrong, inputs)
        wrong = copy.deepcopy(module)
        reference = in_float64(module, *inputs)
        wrong.down_proj.data[3] = 0  # an expert is dropped
        errors = model_zoo.row_errors(run(wrong, *inputs).double(), reference)
        self.assertGreater(float(errors.max()), 10 * ROW_LIMITS[torch.bfloat16])


def quantiles(model, implementation, ids, reference):
    model.set_experts_implementation(implementation)
    errors = model_zoo.row_errors(model_zoo.logits(model, ids), reference)
    return torch.quantile(errors, torch.tensor(QUANTILES, dtype=errors.dtype))


@one_test_a_case
class Models(unittest.TestCase):
    """Whole models: logits, and greedy generation."""

    def check_logits(self, model, ids, reference):
        ours = quantiles(model, "tessera", ids, reference)
        others = torch.maximum(*(quantiles(model, name, ids, reference) for name in ("eager", "grouped_mm")))
        self.assertTrue(bool((ours <= WORSE_THAN_OTHERS * others).all()), f"{ours} against {others}")

    @over(model_zoo.CONFIGS)
    def test_logits_in_float32(self, name):
        ids = model_zoo.prompts(4, 64)
        model = model_zoo.build(name)
        expected = model_zoo.logits(model, ids)
        self.assertGreater(float(expected.std()), 1.0)  # logits that say something
        model.set_experts_implementation("tessera")
        errors = model_zoo.row_errors(model_zoo.logits(model, ids), expected)
        self.assertLess(float(errors.max()), FLOAT32_LOGITS)

    @over(model_zoo.CONFIGS, HALVES)
    def test_logits_in_half_precision(self, name, dtype):
        ids = model_zoo.prompts(4, 64)
        reference = model_zoo.logits(model_zoo.build(name, dtype).float(), ids)
        for device in DEVICES:
            with self.subTest(device=device):
                self.check_logits(model_zoo.build(name, dtype, device), ids, reference)

    @over(PLANTED_IN_LOGITS)
    def test_planted_errors_reach_the_logits(self, name):
        ids = model_zoo.prompts(4, 64)
        reference = model_zoo.logits(model_zoo.build(name, torch.bfloat16).float(), ids)
        for change in PLANTED_IN_LOGITS[name]:
            with self.subTest(planted=change):
                model = model_zoo.build(name, torch.bfloat16)
                integration.prepare(model)
                replant(model_zoo.experts_of(model)[0], **change)
                with self.assertRaises(AssertionError):
                    self.check_logits(model, ids, reference)

    def is_tie(self, reference, prefix, tokens, noise):
        """Whether the float32 reference says each of the two tokens for some draw of noise on its embeddings."""
        embedded = reference.get_input_embeddings()(prefix[None]).expand(DRAWS, -1, -1)
        generator = torch.Generator().manual_seed(11)
        scale = 1 + noise * torch.randn(embedded.shape, generator=generator)
        with torch.no_grad():
            said = reference(inputs_embeds=embedded * scale, use_cache=False).logits[:, -1].argmax(-1)
        return set(tokens) <= set(said.tolist())

    def check_generation(self, model, name, dtype, rows=4):
        """64 tokens as grouped_mm says them; a row may part from it at a tie only."""
        ids = model_zoo.prompts(rows, 8).to(model.device)
        said = {}
        for implementation in ("grouped_mm", "tessera"):
            model.set_experts_implementation(implementation)
            said[implementation] = model.generate(ids, max_new_tokens=64, do_sample=False).cpu()
            self.assertEqual(said[implementation].shape, (rows, 72))
        theirs, ours = said["grouped_mm"], said["tessera"]
        self.assertTrue(all(len(set(row.tolist())) > 10 for row in ours), "generation that repeats itself")
        reference = None
        for row in range(rows):
            differs = (ours[row] != theirs[row]).nonzero().flatten().tolist()
            if not differs:
                continue
            reference = reference or model_zoo.build(name, dtype).float()
            at = differs[0]
            tokens = int(ours[row, at]), int(theirs[row, at])
            self.assertTrue(self.is_tie(reference, ours[row, :at], tokens, NOISE[dtype]),
                            f"row {row}: token {at}: got {tokens[0]}, grouped_mm {tokens[1]}, and that is no tie")

    @over(model_zoo.CONFIGS, [(torch.float32, "cpu")] + [(torch.bfloat16, device) for device in DEVICES])
    def test_greedy_generation(self, name, where):
        dtype, device = where
        self.check_generation(model_zoo.build(name, dtype, device), name, dtype)

    @over(PLANTED_IN_GENERATION)
    def test_planted_errors_change_what_is_generated(self, name):
        model = model_zoo.build(name, torch.bfloat16)
        integration.prepare(model)
        for module in model_zoo.experts_of(model):
            replant(module, **PLANTED_IN_GENERATION[name])
        with self.assertRaises(AssertionError):
            self.check_generation(model, name, torch.bfloat16)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    unittest.main()
