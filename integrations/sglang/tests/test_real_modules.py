"""The plug-in over SGLang's own modules, as far as they import, on CPU tensors.

  PYTHONPATH=DIR:../src:PYTHON python3 -m unittest test_real_modules    DIR holds the folder sglang/ of an unpacked wheel,
                                                                       PYTHON the package tessera; with what SGLang imports

A module that does not import skips the tests, and the reason says where it stopped."""
import dataclasses
import importlib
import unittest
from unittest import mock

LAYERS = "sglang.srt.layers.moe"


def problem_of(*modules):
    """Why one of these does not import, or empty."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of theirs meets
            return f"{module} stops at {type(error).__name__}: {str(error)[:200]}"
    return ""


PROBLEM = problem_of("torch", "tessera", f"{LAYERS}.moe_runner.base", f"{LAYERS}.moe_runner.triton",
                     f"{LAYERS}.token_dispatcher.standard")
EXPERTS, TOP_K, HIDDEN, WIDTH, TOKENS = 8, 2, 256, 128, 33


def draw(*shape, seed, gain=1.0):
    import torch
    return (gain * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def dispatched(**changes):
    """What SGLang's dispatcher hands to a runner."""
    import torch
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput
    generator = torch.Generator().manual_seed(2)
    ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices.int()
    top = StandardTopKOutput(torch.rand(TOKENS, TOP_K, generator=generator), ids, torch.zeros(TOKENS, EXPERTS))
    return StandardDispatchOutput(**{"hidden_states": draw(TOKENS, HIDDEN, seed=3), "hidden_states_scale": None,
                                     "topk_output": top, **changes})


def quantization(**changes):
    from sglang.srt.layers.moe.moe_runner.triton import TritonMoeQuantInfo
    return TritonMoeQuantInfo(**{"w13_weight": draw(EXPERTS, 2 * WIDTH, HIDDEN, seed=4, gain=0.1),
                                 "w2_weight": draw(EXPERTS, HIDDEN, WIDTH, seed=5, gain=0.1), **changes})


def config(**changes):
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig
    return MoeRunnerConfig(**{"num_experts": EXPERTS, "num_local_experts": EXPERTS, "hidden_size": HIDDEN,
                              "intermediate_size_per_partition": WIDTH, "top_k": TOP_K, **changes})


def expected(given, info, factor=1.0):
    """A layer written in float64."""
    import torch
    x, top = given.hidden_states, given.topk_output
    out = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
    for token in range(TOKENS):
        for slot, expert in enumerate(top.topk_ids[token].tolist()):
            if expert < 0:
                continue
            rows = info.w13_weight[expert].double() @ x[token].double()
            gate, up = (rows if info.b13 is None else rows + info.b13[expert].double()).chunk(2)
            row = info.w2_weight[expert].double() @ (torch.nn.functional.silu(gate) * up)
            row = row if info.b2 is None else row + info.b2[expert].double()
            out[token] += factor * float(top.topk_weights[token, slot]) * row
    return out


class UntouchedError(Exception):
    """What stands in for SGLang's Triton kernels, which want a GPU, says that it was called."""


def theirs(*_):
    raise UntouchedError


@unittest.skipIf(PROBLEM, PROBLEM)
class RealModules(unittest.TestCase):
    def run_ours(self, given, info, settings, function=theirs):
        from tessera_sglang import runner
        with mock.patch.object(runner, "why_unusable", lambda _: ""):
            return runner.around(function)(given, info, settings)

    def check(self, given, info, settings, factor=1.0):
        got = self.run_ours(given, info, settings).hidden_states.double()
        wanted = expected(given, info, factor)
        self.assertLess(float(((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max()), 6e-3)

    def test_unquantized(self):
        self.check(dispatched(), quantization(), config())

    def test_biases_scaling_factor_and_experts_elsewhere(self):
        given = dispatched()
        ids = given.topk_output.topk_ids.clone()
        ids[::3, 1] = -1
        given = given._replace(topk_output=given.topk_output._replace(topk_ids=ids))
        info = quantization(b13=draw(EXPERTS, 2 * WIDTH, seed=6), b2=draw(EXPERTS, HIDDEN, seed=7))
        self.check(given, info, config(routed_scaling_factor=2.5), 2.5)

    def test_fp8_blocks(self):
        import tessera
        import torch
        info = quantization()
        w13, w13_scale = tessera.quantize_blocks(info.w13_weight, gate_and_up=True)
        w2, w2_scale = tessera.quantize_blocks(info.w2_weight)
        fp8 = quantization(w13_weight=w13, w2_weight=w2, use_fp8_w8a8=True, block_shape=[128, 128], w2_scale=w2_scale,
                           w13_scale=w13_scale.reshape(EXPERTS, -1, w13_scale.shape[-1]))
        given = dispatched()
        layer = tessera.MoELayer(w13, w2, top_k=TOP_K, weight_format="fp8-block", gate_up_scale=w13_scale, down_scale=w2_scale)
        torch.testing.assert_close(self.run_ours(given, fp8, config()).hidden_states,
                                   layer(given.hidden_states, given.topk_output.topk_ids, given.topk_output.topk_weights),
                                   rtol=0, atol=0)

    def test_what_stays_theirs(self):
        import torch
        padded = torch.nn.functional.pad(quantization().w2_weight, (0, 128))
        for info, settings in ((quantization(use_int8_w8a8=True), config()), (quantization(w13_zp=torch.zeros(1)), config()),
                               (quantization(w2_weight=padded), config()), (quantization(), config(activation="gelu")),
                               (quantization(), config(is_gated=False)), (quantization(), config(no_combine=True)),
                               (quantization(), config(gemm1_alpha=1.702)), (quantization(), config(swiglu_limit=7.0)),
                               (quantization(), config(apply_router_weight_on_input=True)),
                               (quantization(b2=torch.zeros(EXPERTS, HIDDEN)), config()),
                               (quantization(use_fp8_w8a8=True, block_shape=[64, 128]), config()),
                               (quantization(use_fp8_w8a8=True), config())):
            with self.assertRaises(UntouchedError):
                self.run_ours(dispatched(), info, settings)

    def test_fields_are_theirs(self):
        """A misspelt name would decline nothing."""
        from tessera_sglang import runner
        known = {field.name for of in (type(quantization()), type(config())) for field in dataclasses.fields(of)}
        newer = {"fuse_swiglu_interleaved", "no_combine_keep_router_weight", "silu_mul_keep_fp32", "gemm1_beta", "use_mxfp8"}
        names = {*runner.OTHER_QUANTIZATION, *runner.OTHER_ARRAYS, *runner.OTHER_CONFIG, *runner.OTHER_NUMBERS}
        self.assertLessEqual(names - newer, known)

    def test_enrolled_where_the_runner_looks(self):
        from sglang.srt.layers.moe.moe_runner.base import FusedOpPool
        from tessera_sglang import register, runner
        before = FusedOpPool.get_fused_func(*runner.PLACE)
        self.addCleanup(FusedOpPool._fused_funcs.__setitem__, runner.PLACE, before)
        register()
        ours = FusedOpPool.get_fused_func(*runner.PLACE)
        self.assertTrue(ours.tessera)
        self.assertIs(ours.__wrapped__, before)
        register()
        self.assertIs(FusedOpPool.get_fused_func(*runner.PLACE), ours)


if __name__ == "__main__":
    unittest.main()
