"""tessera.transformers around the computation: repacked weights, saving and loading, compilers and CUDA graphs, and
what is refused, each with the words that say why."""
import copy
import os
import sys
import tempfile
import types
import unittest
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers.integrations import moe as transformers_moe

import model_zoo
import moe_reference
from cases import one_test_a_case, over

moe_reference.require_operator()

import tessera.transformers as integration

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
HAVE_GPU = torch.cuda.is_available()


def setUpModule():
    integration.register()


def values(model):
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


@one_test_a_case
class Weights(unittest.TestCase):
    """gpt-oss keeps its experts' weights transposed; they are repacked once and stay what they were."""

    def assert_same_values(self, model, expected):
        for name, parameter in model.named_parameters():
            self.assertEqual(parameter.shape, expected[name].shape)
            self.assertTrue(torch.equal(parameter.detach().cpu(), expected[name]), name)

    def test_repacking_keeps_parameters_and_memory(self):
        for device in DEVICES:
            with self.subTest(device=device):
                model = model_zoo.build("gpt_oss", torch.bfloat16, device)
                before, parameters = values(model), dict(model.named_parameters())
                sizes = {name: p.untyped_storage().nbytes() for name, p in parameters.items()}
                used = torch.cuda.memory_allocated() if device == "cuda" else 0
                self.assertEqual(integration.prepare(model), 2)
                self.assert_same_values(model, before)
                if device == "cuda":
                    self.assertEqual(torch.cuda.memory_allocated(), used)
                for name, parameter in model.named_parameters():
                    self.assertIs(parameter, parameters[name])
                    self.assertEqual(parameter.untyped_storage().nbytes(), sizes[name])
                for module in model_zoo.experts_of(model):
                    for weight in (module.gate_up_proj, module.down_proj):
                        self.assertFalse(weight.is_contiguous())
                        self.assertTrue(weight.transpose(1, 2).is_contiguous())
                pointers = [m.gate_up_proj.data_ptr() for m in model_zoo.experts_of(model)]
                self.assertEqual(integration.prepare(model), 2)  # again: nothing is to be done
                self.assertEqual([m.gate_up_proj.data_ptr() for m in model_zoo.experts_of(model)], pointers)
                self.assertEqual(integration.restore(model), 4)
                self.assert_same_values(model, before)
                self.assertTrue(all(p.is_contiguous() for p in model.parameters()))
                self.assertEqual(integration.restore(model), 0)

    def test_weights_that_lie_right_are_left_alone(self):
        model = model_zoo.build("mixtral")
        pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
        self.assertEqual(integration.prepare(model), 2)
        self.assertEqual({name: p.data_ptr() for name, p in model.named_parameters()}, pointers)

    @over(DEVICES)
    def test_other_implementations_and_copies_work_on(self, device):
        ids = model_zoo.prompts(2, 16)
        model = model_zoo.build("gpt_oss", torch.bfloat16, device)
        names = ("eager", "grouped_mm", "batched_mm")
        before = {}
        for name in names:
            model.set_experts_implementation(name)
            before[name] = model_zoo.logits(model, ids)
        model.set_experts_implementation("tessera")
        ours = model_zoo.logits(model, ids)
        self.assertTrue(torch.equal(model_zoo.logits(copy.deepcopy(model), ids), ours))
        self.assertTrue(torch.equal(model_zoo.logits(model.to("cpu").to(device), ids), ours))
        for name in names:
            with self.subTest(implementation=name):
                model.set_experts_implementation(name)
                errors = model_zoo.row_errors(model_zoo.logits(model, ids), before[name])
                self.assertLess(float(errors.median()), 0.02)

    @over(DEVICES)
    def test_saving_and_loading(self, device):
        ids = model_zoo.prompts(2, 16)
        model = model_zoo.build("gpt_oss", torch.bfloat16, device, implementation="tessera")
        before, said = values(model), model_zoo.logits(model, ids)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)  # of repacked weights
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                folder, experts_implementation="tessera", dtype=torch.bfloat16)
        self.assertEqual(loaded.config._experts_implementation, "tessera")
        self.assert_same_values(loaded, before)
        self.assertTrue(torch.equal(model_zoo.logits(loaded.to(device), ids), said))
        other = model_zoo.build("gpt_oss", torch.bfloat16, device, seed=5, implementation="tessera")
        model_zoo.logits(other, ids)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for assign in (False, True):  # into repacked weights, and in their place
            other.load_state_dict(state, assign=assign)
            self.assertTrue(torch.equal(model_zoo.logits(other, ids), said), f"assign={assign}")

    def test_first_call_in_inference_mode(self):
        model = model_zoo.build("gpt_oss", implementation="tessera")
        ids = model_zoo.prompts(1, 8)
        with torch.inference_mode():
            said = model(ids).logits.clone()
        self.assertFalse(any(parameter.is_inference() for parameter in model.parameters()))
        self.assertTrue(torch.equal(model_zoo.logits(model, ids), said.double().flatten(0, 1)))

    def test_unaligned_weights_are_moved(self):
        for device in DEVICES:
            module = model_zoo.experts_of(model_zoo.build("gpt_oss", torch.bfloat16, device))[0]
            before = values(module)
            for parameter in module.parameters():
                room = torch.empty(parameter.numel() + 1, dtype=parameter.dtype, device=device)
                parameter.data = room[1:].view(parameter.shape).copy_(parameter.data)
                self.assertNotEqual(parameter.data_ptr() % 16, 0)
            integration.prepare(module)
            self.assertTrue(all(parameter.data_ptr() % 16 == 0 for parameter in module.parameters()))
            self.assert_same_values(module, before)


class Registration(unittest.TestCase):
    def test_twice(self):
        integration.register()
        integration.register()
        self.assertIs(transformers_moe.ALL_EXPERTS_FUNCTIONS["tessera"], integration.experts_forward)

    def test_without_transformers_or_with_an_old_one(self):
        cases = {"got no transformers": {"transformers": None},
                 "no ALL_EXPERTS_FUNCTIONS": {"transformers": types.SimpleNamespace(__version__="4.57.1"),
                                              "transformers.integrations.moe": None},
                 "takes no registered": {"transformers": types.SimpleNamespace(__version__="5.6.2")}}
        for words, modules in cases.items():
            with self.subTest(words), mock.patch.dict(sys.modules, modules):
                with self.assertRaisesRegex(ImportError, words + ".*5.7 or newer"):
                    integration.register()


class Refusals(unittest.TestCase):
    """A layer that cannot run says what is missing, and computes nothing."""

    def refuse(self, module, words):
        x, ids, weights = torch.zeros(3, 64), torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2)
        for call in (lambda: integration.prepare(module), lambda: integration.experts_forward(module, x, ids, weights)):
            with torch.no_grad(), self.assertRaisesRegex(NotImplementedError, words + ".*use a different experts_imp"):
                call()

    def lone(self, name="glm4_moe", **attributes):
        return model_zoo.lone_experts(name, **attributes)

    def test_unknown_gates(self):
        class Beyond(torch.nn.Module):
            def forward(self, x):
                return torch.tanh(x)

        class WithWeights(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.linspace(1, 1.01, 40))

            def forward(self, x):
                return torch.nn.functional.silu(x) * self.scale

        for function in (Beyond(), WithWeights(), lambda x: x / 0, lambda x: x[..., :-1]):
            module = self.lone()
            module.__dict__.pop("act_fn", None)
            module._modules.pop("act_fn", None)
            module.__dict__["act_fn"] = function
            self.refuse(module, "_apply_gate: got a function of its own")
        module = self.lone(hidden_act="silu")
        module._apply_gate = lambda product: torch.nn.functional.silu(product[..., :40]) * product[..., 40:] * 1.001
        self.refuse(module, "_apply_gate")
        self.refuse(self.lone("nemotron_h", mlp_hidden_act="mish"), "act_fn")

    def test_clamps_other_than_said(self):
        module = self.lone("deepseek_v4")
        module._apply_gate = lambda product: torch.nn.functional.silu(product[..., :40].clamp(max=2.0)) * product[..., 40:]
        self.refuse(module, "_apply_gate")  # up is not clamped

    def test_sizes_norms_and_types(self):
        self.refuse(self.lone(moe_intermediate_size=44), "intermediate size 44, expected a positive multiple of 8")
        self.refuse(self.lone(hidden_size=60), "hidden size 60")
        module = self.lone()
        module.has_post_expert_norm = True
        self.refuse(module, "has_post_expert_norm")
        self.refuse(self.lone().double(), "torch.float64 on cpu, expected")
        self.refuse(self.lone().to("meta"), "device meta")
        module = self.lone()
        module.num_experts = 5
        self.refuse(module, "num_experts: got 5")
        module = self.lone()
        module.down_proj.data = module.down_proj.data.bfloat16()
        self.refuse(module, "down_proj: got torch.bfloat16")
        module = self.lone()
        module.gate_up_proj.data = module.gate_up_proj.data[:, :-8]
        self.refuse(module, "gate_up_proj: got shape")

    def test_weights_that_are_not_plain(self):
        class Special(torch.nn.Parameter):
            pass

        module = self.lone()
        module.down_proj = Special(module.down_proj.data)
        self.refuse(module, "down_proj: got Special, expected a plain tensor")
        module = self.lone("openai_privacy_filter")
        weight = module._parameters.pop("down_proj").data
        module.__dict__["down_proj"] = weight
        self.refuse(module, "a parameter of the module")

    def test_training(self):
        for device in DEVICES:
            model = model_zoo.build("mixtral", torch.bfloat16, device, implementation="tessera")
            with self.assertRaisesRegex(RuntimeError, "require grad.*torch.no_grad"):
                model(model_zoo.prompts(1, 4).to(device))
            model.requires_grad_(False)
            model(model_zoo.prompts(1, 4).to(device))

    def test_a_model_without_experts(self):
        with self.assertRaisesRegex(ValueError, "without experts"):
            integration.prepare(torch.nn.Linear(8, 8))

    def test_too_many_experts_a_token(self):
        module = self.lone()
        inputs = torch.zeros(3, 64), torch.zeros(3, 33, dtype=torch.long), torch.zeros(3, 33)
        with torch.no_grad(), self.assertRaisesRegex(NotImplementedError, "33 experts a token, expected at most 32"):
            integration.experts_forward(module, *inputs)

    @unittest.skipUnless(HAVE_GPU, "no GPU")
    def test_float32_on_a_gpu(self):
        model = model_zoo.build("mixtral", torch.bfloat16, "cuda", implementation="tessera")
        ids = model_zoo.prompts(1, 4)
        model_zoo.logits(model, ids)
        with self.assertRaisesRegex(NotImplementedError, "torch.float32 on cuda, expected torch.float16 or"):
            model_zoo.logits(model.float(), ids)  # looked at before, cast since


@one_test_a_case
class Compilers(unittest.TestCase):
    NAMES = "qwen3_moe", "gpt_oss"

    def block(self, name, device):
        model = model_zoo.build(name, torch.bfloat16, device, implementation="tessera")
        return model, model.model.layers[1].mlp

    @over(NAMES, DEVICES)
    def test_without_a_graph_break(self, name, device):
        model, block = self.block(name, device)
        integration.prepare(model)
        torch._dynamo.reset()
        backend = "aot_eager" if device == "cpu" else "inductor"
        compiled = torch.compile(block, fullgraph=True, backend=backend)
        for tokens in (5, 17):
            x = torch.randn(1, tokens, 64, device=device, dtype=torch.bfloat16)
            with torch.no_grad():
                got, expected = compiled(x), block(x)
            got, expected = (y[0] if isinstance(y, tuple) else y for y in (got, expected))
            errors = model_zoo.row_errors(got[0].double(), expected[0].double())
            self.assertLess(float(errors.max()), 0.02)

    @over(NAMES)
    def test_unprepared_under_a_compiler(self, name):
        _, block = self.block(name, "cpu")
        torch._dynamo.reset()
        x = torch.randn(1, 5, 64, dtype=torch.bfloat16)
        with torch.no_grad(), self.assertRaisesRegex(Exception, r"tessera.transformers.prepare\(model\)"):
            torch.compile(block, fullgraph=True, backend="eager")(x)
        torch._dynamo.reset()
        with torch.no_grad():  # where a graph may break, the eager call prepares
            torch.compile(block, backend="eager")(x)
        self.assertTrue(hasattr(block.experts, integration._GATE))

    @unittest.skipUnless(HAVE_GPU, "no GPU")
    @over(NAMES)
    def test_in_a_cuda_graph(self, name):
        model, block = self.block(name, "cuda")
        with torch.no_grad():
            experts = block.experts
            x = torch.randn(7, 64, device="cuda", dtype=torch.bfloat16)
            ids = torch.rand(7, experts.num_experts, device="cuda").topk(4).indices
            weights = torch.rand(7, 4, device="cuda").bfloat16()
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            with self.assertRaisesRegex(RuntimeError, r"prepare\(model\)"):
                with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
                    experts(x, ids, weights)
            torch.cuda.synchronize()
            integration.prepare(model)
            experts(x, ids, weights)
            with torch.cuda.graph(graph, stream=stream):
                out = experts(x, ids, weights)
            x.normal_()
            ids.copy_(torch.rand(7, experts.num_experts, device="cuda").topk(4).indices)
            out.fill_(float("nan"))
            graph.replay()
            self.assertTrue(torch.equal(out, experts(x, ids, weights)))


if __name__ == "__main__":
    unittest.main()
