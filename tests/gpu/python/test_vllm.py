"""The vLLM plug-in over stand-ins of vLLM's classes: which experts a layer gets, and what they compute.

What an activation means is written here as vLLM writes it, apart from the plug-in's own table."""
import copy
import dataclasses
import pathlib
import sys
import tomllib
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[3]
PLUGIN = ROOT / "integrations" / "vllm"
sys.path[:0] = [str(PLUGIN / "src"), str(PLUGIN / "tests")]

import torch
from torch.nn import functional

import fake_vllm
import moe_reference
from cases import one_test_a_case, over

moe_reference.require_operator()
fake_vllm.install()

import tessera
import tessera_vllm
from tessera_vllm import experts as plugin, fp8

Act = fake_vllm.MoEActivation
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
ROW_LIMITS = {torch.float16: 8e-4, torch.bfloat16: 6e-3}  # three roundings; see test_transformers.py
LIMIT, ALPHA, BETA = 2.5, 1.3, 0.5  # of configured clamps


def clamped(gate, up, limit, alpha, beta):
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


def halves(function):
    return lambda x: function(*x.chunk(2, -1))


MEANINGS = {
    Act.SILU: halves(lambda gate, up: functional.silu(gate) * up),
    Act.GELU: halves(lambda gate, up: functional.gelu(gate) * up),
    Act.GELU_TANH: halves(lambda gate, up: functional.gelu(gate, approximate="tanh") * up),
    Act.SWIGLUOAI: lambda x: clamped(x[..., ::2], x[..., 1::2], 7.0, 1.702, 1.0),
    Act.SWIGLUOAI_UNINTERLEAVE: halves(lambda gate, up: clamped(gate, up, LIMIT, ALPHA, BETA)),
    Act.SILU_NO_MUL: functional.silu,
    Act.GELU_NO_MUL: functional.gelu,
    Act.GELU_TANH_NO_MUL: lambda x: functional.gelu(x, approximate="tanh"),
    Act.RELU2_NO_MUL: lambda x: functional.relu(x).square(),
}
SILU_CLAMPED = halves(lambda gate, up: clamped(gate, up, LIMIT, 1.0, 0.0))


def config_of(activation=Act.SILU, dtype=torch.bfloat16, **changes):
    sizes = {"num_experts": 12, "num_local_experts": 12, "experts_per_token": 3, "hidden_dim": 64,
             "intermediate_size": 40, "moe_parallel_config": fake_vllm.FusedMoEParallelConfig()}
    if activation is Act.SWIGLUOAI_UNINTERLEAVE:
        sizes.update(swiglu_limit=LIMIT, swiglu_alpha=ALPHA, swiglu_beta=BETA)
    return fake_vllm.FusedMoEConfig(activation=activation, in_dtype=dtype, **{**sizes, **changes})


@dataclasses.dataclass
class Problem:
    x: torch.Tensor
    w1: torch.Tensor
    w2: torch.Tensor
    b1: torch.Tensor | None
    b2: torch.Tensor | None
    ids: torch.Tensor
    weights: torch.Tensor
    expert_map: torch.Tensor | None = None


def problem_of(config, device, tokens=70, bias=False, sharded=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    experts = config.num_local_experts
    rows = config.intermediate_size * (2 if config.is_act_and_mul else 1)

    def draw(*shape, gain=1.0):
        return (gain * torch.randn(*shape, generator=generator)).to(device, config.in_dtype)
    ids = torch.rand(tokens, config.num_experts, generator=generator).topk(config.experts_per_token).indices.int()
    weights = torch.rand(tokens, config.experts_per_token, generator=generator).softmax(-1)
    expert_map = None
    if sharded:  # every second expert lies on another rank
        expert_map = torch.full((config.num_experts,), -1, dtype=torch.int32)
        expert_map[::2] = torch.arange(experts, dtype=torch.int32)
        expert_map = expert_map.to(device)
    return Problem(draw(tokens, config.hidden_dim), draw(experts, rows, config.hidden_dim, gain=0.4),
                   draw(experts, config.hidden_dim, config.intermediate_size, gain=0.2),
                   draw(experts, rows) if bias else None, draw(experts, config.hidden_dim) if bias else None,
                   ids.to(device), weights.to(device), expert_map)


def expected_rows(p, meaning):
    """The layer in float64, without a rounding."""
    out = torch.zeros(p.x.shape, dtype=torch.float64)
    for token in range(len(p.x)):
        for slot, expert in enumerate(p.ids[token].tolist()):
            local = expert if p.expert_map is None else int(p.expert_map[expert])
            if local < 0:
                continue
            product = p.w1[local].double().cpu() @ p.x[token].double().cpu()
            if p.b1 is not None:
                product = product + p.b1[local].double().cpu()
            row = p.w2[local].double().cpu() @ meaning(product)
            if p.b2 is not None:
                row = row + p.b2[local].double().cpu()
            out[token] += float(p.weights[token, slot]) * row
    return out


def experts_for(config, p):
    quantization = fake_vllm.FusedMoEQuantConfig(w1_bias=p.b1, w2_bias=p.b2)
    return plugin.TesseraExperts(config, quantization)


def apply(experts, p, activation, out=None, **changes):
    """Calls apply as vLLM's kernel does, the output poisoned, the workspaces as small as asked for."""
    meta = (*p.x.shape, experts.moe_config.num_experts)
    shapes = experts.workspace_shapes(meta[0], p.w1.shape[1], meta[1], p.ids.shape[1], meta[2], len(p.w1), None, activation)
    room = [torch.empty(shape, dtype=p.x.dtype, device=p.x.device) for shape in shapes]
    out = torch.full_like(room[2], float("nan")) if out is None else out
    arguments = dict(output=out, hidden_states=p.x, w1=p.w1, w2=p.w2, topk_weights=p.weights, topk_ids=p.ids,
                     activation=activation, global_num_experts=meta[2], expert_map=p.expert_map, a1q_scale=None,
                     a2_scale=None, workspace13=room[0], workspace2=room[1], expert_tokens_meta=None,
                     apply_router_weight_on_input=False)
    result = experts.apply(**{**arguments, **changes})
    assert result is None  # what vLLM takes for: `output` is final
    return out


def worst(got, expected):
    got = got.double().cpu()
    lengths = expected.norm(dim=1)
    empty = lengths == 0
    assert bool((got[empty] == 0).all())
    return float(((got - expected).norm(dim=1) / lengths)[~empty].max())


@one_test_a_case
class Computing(unittest.TestCase):
    def check(self, config, p, meaning):
        got = apply(experts_for(config, p), p, config.activation)
        self.assertLess(worst(got, expected_rows(p, meaning)), ROW_LIMITS[config.in_dtype])

    @over(DEVICES)
    def test_every_activation(self, device):
        for activation, meaning in MEANINGS.items():
            for dtype in ROW_LIMITS:
                with self.subTest(activation=activation, dtype=dtype, device=device):
                    config = config_of(activation, dtype)
                    self.check(config, problem_of(config, device), meaning)
        config = config_of(swiglu_limit=LIMIT)  # DeepSeek-V4's
        self.check(config, problem_of(config, device), SILU_CLAMPED)

    @over(DEVICES)
    def test_biases_and_expert_maps(self, device):
        for activation in (Act.SILU, Act.SWIGLUOAI, Act.RELU2_NO_MUL):
            for changes in ({"bias": True}, {"sharded": True}, {"bias": True, "sharded": True}):
                with self.subTest(activation=activation, device=device, **changes):
                    config = config_of(activation, num_local_experts=6 if "sharded" in changes else 12)
                    p = problem_of(config, device, **changes)
                    self.check(config, p, MEANINGS[activation])

    @over(DEVICES)
    def test_router_weight_on_the_input(self, device):
        config = config_of(experts_per_token=1)
        p = problem_of(config, device)
        p.weights.uniform_(0.2, 0.8)
        weighted = dataclasses.replace(p, x=p.x * p.weights.to(p.x.dtype))
        got = apply(experts_for(config, p), weighted, Act.SILU, apply_router_weight_on_input=True)
        expected = expected_rows(dataclasses.replace(weighted, weights=torch.ones_like(p.weights)), MEANINGS[Act.SILU])
        self.assertLess(worst(got, expected), ROW_LIMITS[torch.bfloat16])

    @over(DEVICES)
    def test_int64_ids_and_one_token(self, device):
        config = config_of()
        for tokens in (1, 2, 33):
            p = problem_of(config, device, tokens=tokens)
            p.ids = p.ids.long()
            self.check(config, p, MEANINGS[Act.SILU])

    def test_planted_errors_are_seen(self):
        config = config_of(Act.SWIGLUOAI)
        p = problem_of(config, "cpu", bias=True)
        self.check(config, p, MEANINGS[Act.SWIGLUOAI])
        for name, wrong in (("order", halves(lambda gate, up: clamped(gate, up, 7.0, 1.702, 1.0))),
                            ("alpha", lambda x: clamped(x[..., ::2], x[..., 1::2], 7.0, 1.65, 1.0)),
                            ("beta", lambda x: clamped(x[..., ::2], x[..., 1::2], 7.0, 1.702, 0.98)),
                            ("limit", lambda x: clamped(x[..., ::2], x[..., 1::2], 6.5, 1.702, 1.0))):
            with self.subTest(planted=name), self.assertRaises(AssertionError):
                self.check(config, p, wrong)
        other = copy.deepcopy(p)
        other.b2[3] = 0
        self.assertGreater(worst(apply(experts_for(config, other), other, Act.SWIGLUOAI),
                                 expected_rows(p, MEANINGS[Act.SWIGLUOAI])), 10 * ROW_LIMITS[torch.bfloat16])

    def test_what_apply_refuses(self):
        config = config_of()
        p = problem_of(config, "cpu")
        for name in ("a1q_scale", "a2_scale"):
            with self.assertRaisesRegex(ValueError, f"{name}: got a scale"):
                apply(experts_for(config, p), p, Act.SILU, **{name: torch.ones(1)})
        hooked = experts_for(config, p)
        hooked.post_gemm2_hook = lambda rows, output: None
        with self.assertRaisesRegex(ValueError, "post_gemm2_hook"):
            apply(hooked, p, Act.SILU)

    @unittest.skipUnless(torch.cuda.is_available(), "no GPU")
    def test_in_a_cuda_graph(self):
        config = config_of()
        p = problem_of(config, "cuda")
        experts, out = experts_for(config, p), torch.empty_like(p.x)
        apply(experts, p, Act.SILU, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            apply(experts, p, Act.SILU, out=out)
        p.x.normal_()
        out.fill_(float("nan"))
        graph.replay()
        self.assertTrue(torch.equal(out, apply(experts, p, Act.SILU)))



@one_test_a_case
class Fp8(unittest.TestCase):
    """Blocks of e4m3: what vLLM hands over comes out as the layer that MoELayer makes of the same codes and scales."""

    def problem(self, device, activation=Act.SILU, width=256, hidden=128, seed=4):
        config = config_of(activation, hidden_dim=hidden, intermediate_size=width)
        p = problem_of(config, "cpu", tokens=33, sharded=False, seed=seed)
        gated = config.is_act_and_mul
        w1, w1_scale = tessera.quantize_blocks(p.w1, gate_and_up=gated)
        w2, w2_scale = tessera.quantize_blocks(p.w2)
        experts = len(w1)
        vllm_scale = w1_scale.reshape(experts, -1, w1_scale.shape[-1])  # [E, 2 ceil(I/128), ceil(K/128)]
        moved = dataclasses.replace(p, x=p.x.to(device), w1=w1.to(device), w2=w2.to(device), ids=p.ids.to(device),
                                    weights=p.weights.to(device))
        quantization = fake_vllm.FusedMoEQuantConfig(w1_scale=vllm_scale.to(device), w2_scale=w2_scale.to(device))
        layer = tessera.MoELayer(moved.w1, moved.w2, top_k=3, weight_format="fp8-block", gate_up_scale=w1_scale.to(device),
                                 down_scale=w2_scale.to(device), **plugin.options_of(activation, plugin_config(config)))
        return config, moved, fp8.TesseraFp8Experts(config, quantization), layer

    @over(DEVICES)
    def test_blocks(self, device):
        for activation, width in ((Act.SILU, 256), (Act.SILU, 144), (Act.SILU_NO_MUL, 256), (Act.GELU, 128)):
            with self.subTest(activation=activation, width=width):
                config, p, experts, layer = self.problem(device, activation, width)
                self.assertTrue(experts.expects_unquantized_inputs)
                got = apply(experts, p, activation)
                torch.testing.assert_close(got, layer(p.x, p.ids, p.weights), rtol=0, atol=0)

    @over(DEVICES)
    def test_tokens_that_are_quantized(self, device):
        config, p, experts, layer = self.problem(device)
        codes, scales = (part.to(device) for part in tessera.quantize_rows(p.x.cpu()))
        out = torch.full_like(p.x, float("nan"))
        got = apply(experts, dataclasses.replace(p, x=codes), Act.SILU, out=out, a1q_scale=scales)
        torch.testing.assert_close(got, layer(p.x, p.ids, p.weights), rtol=0, atol=0)
        with self.assertRaisesRegex(ValueError, "a1q_scale: got none for hidden states of torch.float8_e4m3fn"):
            apply(experts, dataclasses.replace(p, x=codes), Act.SILU, out=out)
        with self.assertRaisesRegex(ValueError, "a2_scale: got a scale"):
            apply(experts, p, Act.SILU, a2_scale=scales)

    @over(DEVICES)
    def test_rows(self, device):
        config = config_of(hidden_dim=128, intermediate_size=96)
        p = problem_of(config, "cpu", tokens=33, seed=6)
        scales = [weight.float().abs().amax(-1, keepdim=True) / 448 for weight in (p.w1, p.w2)]  # [E, rows, 1]
        codes = [(weight / scale).to(torch.float8_e4m3fn) for weight, scale in zip((p.w1, p.w2), scales)]
        p = dataclasses.replace(p, **{name: value.to(device) for name, value in
                                      (("x", p.x), ("w1", codes[0]), ("w2", codes[1]), ("ids", p.ids), ("weights", p.weights))})
        w1_scale, w2_scale = (scale.to(device) for scale in scales)
        experts = fp8.TesseraFp8Experts(config, fake_vllm.FusedMoEQuantConfig(w1_scale=w1_scale, w2_scale=w2_scale))
        layer = tessera.MoELayer(p.w1, p.w2, top_k=3, weight_format="fp8-channel", gate_up_scale=w1_scale.squeeze(-1),
                                 down_scale=w2_scale.squeeze(-1))
        expected = layer(p.x, p.ids, p.weights)
        torch.testing.assert_close(apply(experts, p, Act.SILU), expected, rtol=0, atol=0)
        x_scale = p.x.float().abs().amax(-1, keepdim=True) * (1 / 448)  # [M, 1]
        x = (p.x.float() * (1 / x_scale)).to(torch.float8_e4m3fn)
        out = torch.full_like(p.x, float("nan"))
        got = apply(experts, dataclasses.replace(p, x=x), Act.SILU, out=out, a1q_scale=x_scale)
        self.assertLess(worst(got, expected.double().cpu()), 2e-2)

    def test_scales_of_another_shape(self):
        config, p, experts, layer = self.problem("cpu")
        experts.quant_config.w1_scale = experts.quant_config.w1_scale[:, :-1].contiguous()
        with self.assertRaisesRegex(ValueError, r"w1_scale: got shape \[12, 3, 1\], expected \[12, 4, 1\]"):
            apply(experts, p, Act.SILU)

    def test_what_is_taken(self):
        def taken(config, keys=fp8.BLOCKS):
            return fp8.TesseraFp8Experts.is_supported_config(fp8.TesseraFp8Experts, config, *keys,
                                                             fake_vllm.FusedMoEActivationFormat.Standard)
        with mock.patch.object(plugin.TesseraExperts, "_supports_current_device", staticmethod(lambda: True)):
            good = config_of(hidden_dim=128, intermediate_size=128)
            self.assertEqual(taken(good), (True, None))
            self.assertEqual(taken(good, fp8.ROWS)[0], fp8.HAS_ROWS)
            self.assertEqual(taken(good, (None, None)), (False, "kernel does not support quantization scheme"))
            self.assertIn("intermediate size 136", taken(config_of(hidden_dim=128, intermediate_size=136))[1])
            asked = config_of(hidden_dim=128, intermediate_size=128, moe_backend="triton")
            self.assertIn("a backend that was asked for, triton", taken(asked)[1])

    def test_chosen_before_triton_and_nowhere_else(self):
        oracle = sys.modules["vllm.model_executor.layers.fused_moe.oracle.fp8"]
        with mock.patch.object(oracle, "backend_to_kernel_cls", fake_vllm.backend_to_kernel_cls):
            fp8.enroll()
            fp8.enroll()
            self.assertEqual(oracle.backend_to_kernel_cls(oracle.Fp8MoeBackend.TRITON),
                             [fp8.TesseraFp8Experts, fake_vllm.TritonExperts])
            self.assertEqual(oracle.backend_to_kernel_cls(oracle.Fp8MoeBackend.DEEPGEMM), [fake_vllm.TritonExperts])


class Oldest(unittest.TestCase):
    """vLLM 0.26 has no activation_config, no hook on rows, and fewer fields in its configurations."""

    def test_it_computes_without_them(self):
        config = config_of()
        p = problem_of(config, "cpu")
        experts = experts_for(config, p)
        expected = apply(experts, p, config.activation)
        del experts.activation_config
        with mock.patch.object(fake_vllm.FusedMoEExperts, "_uses_post_gemm2_hook", None):
            torch.testing.assert_close(apply(experts, p, config.activation), expected, rtol=0, atol=0)
        experts.quant_config.gemm1_clamp_limit = LIMIT
        self.assertEqual(plugin.options_of(Act.SILU, plugin.activation_numbers(experts))["limit"], LIMIT)

    def test_configurations_of_fewer_fields(self):
        config = config_of()
        for name in ("swiglu_limit", "swiglu_alpha", "swiglu_beta"):
            delattr(config, name)
        del config.moe_parallel_config.use_passthrough_all2all
        with mock.patch.object(plugin.TesseraExperts, "_supports_current_device", staticmethod(lambda: True)):
            self.assertEqual(plugin.TesseraExperts.is_supported_config(
                plugin.TesseraExperts, config, None, None, fake_vllm.FusedMoEActivationFormat.Standard), (True, None))


def plugin_config(config):
    return plugin.TesseraExperts(config, fake_vllm.FusedMoEQuantConfig()).activation_config


class Choosing(unittest.TestCase):
    def setUp(self):
        tessera_vllm.register()
        if not torch.cuda.is_available():  # the choice is that of a machine whose GPU the library runs on
            for owner, name, value in ((tessera, "why_unusable", ""), (torch.cuda, "current_device", 0)):
                patch = mock.patch.object(owner, name, lambda *_, value=value: value)
                patch.start()
                self.addCleanup(patch.stop)

    def chosen(self, config):
        method = fake_vllm.UnquantizedFusedMoEMethod(config)
        self.assertIsInstance(method, fake_vllm.UnquantizedFusedMoEMethod)
        return method.experts_cls

    def test_entry_point(self):
        project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
        module, _, name = project["entry-points"]["vllm.general_plugins"]["tessera"].partition(":")
        self.assertIs(getattr(sys.modules[module], name), tessera_vllm.register)

    def test_registered_once(self):
        tessera_vllm.register()
        method = fake_vllm.op_registry_oot["UnquantizedFusedMoEMethod"]
        self.assertEqual(method.__name__, "TesseraFusedMoEMethod")
        self.assertEqual(method.name, "unquantized_fused_moe")
        taken = type("Other", (), {"__module__": "somebody.else"})
        fake_vllm.op_registry_oot["UnquantizedFusedMoEMethod"] = taken
        try:
            with self.assertRaisesRegex(RuntimeError, "taken by somebody.else.Other"):
                tessera_vllm.register()
        finally:
            fake_vllm.op_registry_oot["UnquantizedFusedMoEMethod"] = method

    def test_layers_that_run_here(self):
        for activation in MEANINGS:
            for dtype in ROW_LIMITS:
                self.assertIs(self.chosen(config_of(activation, dtype)), plugin.TesseraExperts, activation)

    def test_layers_that_stay_with_vllm(self):
        ranks = fake_vllm.FusedMoEParallelConfig
        declined = [config_of(dtype=torch.float32), config_of(Act.SITU), config_of(Act.SWIGLUSTEP), config_of(Act.RELU2),
                    config_of(hidden_dim=60), config_of(intermediate_size=44), config_of(num_local_experts=1025),
                    config_of(experts_per_token=33), config_of(is_lora_enabled=True), config_of(moe_backend="triton"),
                    config_of(moe_backend="flashinfer_trtllm"), config_of(Act.SWIGLUOAI_UNINTERLEAVE, swiglu_limit=None),
                    config_of(moe_parallel_config=ranks(use_all2all_kernels=True)),
                    config_of(moe_parallel_config=ranks(use_passthrough_all2all=True))]
        for config in declined:
            with self.subTest(config=config):
                self.assertIs(self.chosen(config), fake_vllm.TritonExperts)
        self.assertFalse(plugin.TesseraExperts._supports_quant_scheme("fp8", None))
        batched = fake_vllm.FusedMoEActivationFormat.BatchedExperts
        self.assertFalse(plugin.TesseraExperts.is_supported_config(plugin.TesseraExperts, config_of(), None, None, batched)[0])

    def test_other_devices(self):
        with mock.patch.object(fake_vllm.Platform, "cuda", False):
            self.assertIs(self.chosen(config_of()), fake_vllm.TritonExperts)
        why = "cuda:0 (a GPU): compute capability 10.0, expected 9.0 (Hopper)"
        with mock.patch.object(tessera, "why_unusable", lambda device: why):
            self.assertIs(self.chosen(config_of()), fake_vllm.TritonExperts)
        self.assertIs(self.chosen(config_of()), plugin.TesseraExperts)


if __name__ == "__main__":
    unittest.main()
