"""The plug-in over vLLM's own modules, as far as they import without its compiled parts, on CPU tensors.

  PYTHONPATH=DIR:../src:PYTHON python3 -m unittest test_real_modules     DIR holds the folder vllm/ of an unpacked wheel, PYTHON
                                                                        the package tessera; with what vLLM imports installed

A module that does not import skips its tests, and the reason says where it stopped."""
import importlib
import unittest
from unittest import mock

LAYERS = "vllm.model_executor.layers.fused_moe"


def problem_of(*modules):
    """Why one of these does not import, or empty."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of theirs meets
            return f"{module} stops at {type(error).__name__}: {str(error)[:200]}"
    return ""


NO_EXPERTS = problem_of("torch", "tessera", f"{LAYERS}.modular_kernel", f"{LAYERS}.config")
NO_FP8 = NO_EXPERTS or problem_of(f"{LAYERS}.oracle.fp8")
NO_METHOD = NO_EXPERTS or problem_of(f"{LAYERS}.unquantized_fused_moe_method")
EXPERTS, TOP_K, HIDDEN, WIDTH, TOKENS = 8, 2, 256, 128, 33


def make_config(**changes):
    import torch
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    return config.FusedMoEConfig(**{
        "num_experts": EXPERTS, "experts_per_token": TOP_K, "hidden_dim": HIDDEN, "intermediate_size": WIDTH,
        "num_local_experts": EXPERTS, "num_logical_experts": EXPERTS, "activation": MoEActivation.SILU, "device": "cpu",
        "routing_method": config.RoutingMethodType.Renormalize, "in_dtype": torch.bfloat16,
        "moe_parallel_config": config.FusedMoEParallelConfig.make_no_parallel(), **changes})


def inputs():
    import torch
    generator = torch.Generator().manual_seed(2)

    def draw(*shape, gain=1.0):
        return (gain * torch.randn(*shape, generator=generator)).bfloat16()
    ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices.int()
    return (draw(TOKENS, HIDDEN), draw(EXPERTS, 2 * WIDTH, HIDDEN, gain=0.1), draw(EXPERTS, HIDDEN, WIDTH, gain=0.1), ids,
            torch.rand(TOKENS, TOP_K, generator=generator))


def apply(experts, x, w1, w2, ids, weights, **changes):
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    out = torch.full((TOKENS, HIDDEN), float("nan"), dtype=torch.bfloat16)
    experts.apply(**{**dict(
        output=out, hidden_states=x, w1=w1, w2=w2, topk_weights=weights, topk_ids=ids, activation=MoEActivation.SILU,
        global_num_experts=EXPERTS, expert_map=None, a1q_scale=None, a2_scale=None, workspace13=None, workspace2=None,
        expert_tokens_meta=None, apply_router_weight_on_input=False), **changes})
    return out


@unittest.skipIf(NO_EXPERTS, NO_EXPERTS)
class RealExperts(unittest.TestCase):
    def test_unquantized(self):
        import torch
        from tessera_vllm.experts import TesseraExperts
        from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
        experts = TesseraExperts(make_config(), FUSED_MOE_UNQUANTIZED_CONFIG)
        x, w1, w2, ids, weights = inputs()
        got = apply(experts, x, w1, w2, ids, weights).double()
        expected = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
        for token in range(TOKENS):
            for slot, expert in enumerate(ids[token].tolist()):
                gate, up = (w1[expert].double() @ x[token].double()).chunk(2)
                row = w2[expert].double() @ (torch.nn.functional.silu(gate) * up)
                expected[token] += float(weights[token, slot]) * row
        self.assertLess(float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max()), 6e-3)

    def test_support(self):
        import vllm.model_executor.layers.fused_moe.modular_kernel as mk
        from tessera_vllm.experts import TesseraExperts
        with mock.patch.object(TesseraExperts, "_supports_current_device", staticmethod(lambda: True)):
            standard = mk.FusedMoEActivationFormat.Standard
            self.assertEqual(TesseraExperts.is_supported_config(TesseraExperts, make_config(), None, None, standard), (True, None))
            declined = TesseraExperts.is_supported_config(TesseraExperts, make_config(hidden_dim=100), None, None, standard)
            self.assertEqual(declined, (False, "kernel does not support hidden size 100"))


@unittest.skipIf(NO_FP8, NO_FP8)
class RealFp8(unittest.TestCase):
    def test_blocks(self):
        import tessera
        import torch
        from tessera_vllm.fp8 import TesseraFp8Experts
        from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config
        x, w1, w2, ids, weights = inputs()
        w1, w1_scale = tessera.quantize_blocks(w1, gate_and_up=True)
        w2, w2_scale = tessera.quantize_blocks(w2)
        quantization = fp8_w8a8_moe_quant_config(w1_scale=w1_scale.reshape(EXPERTS, -1, w1_scale.shape[-1]), w2_scale=w2_scale,
                                                 block_shape=[128, 128])
        experts = TesseraFp8Experts(make_config(), quantization)
        layer = tessera.MoELayer(w1, w2, top_k=TOP_K, weight_format="fp8-block", gate_up_scale=w1_scale, down_scale=w2_scale)
        torch.testing.assert_close(apply(experts, x, w1, w2, ids, weights), layer(x, ids, weights), rtol=0, atol=0)

    def test_chosen_by_the_real_choice(self):
        import vllm.model_executor.layers.fused_moe.oracle.fp8 as oracle
        from tessera_vllm import fp8
        theirs = oracle.backend_to_kernel_cls
        self.addCleanup(setattr, oracle, "backend_to_kernel_cls", theirs)
        fp8.enroll()
        with mock.patch.object(fp8.TesseraFp8Experts, "_supports_current_device", staticmethod(lambda: True)), \
                mock.patch.object(oracle, "_get_priority_backends", lambda *_: [oracle.Fp8MoeBackend.TRITON, *oracle.Fp8MoeBackend]):
            chosen = oracle.select_fp8_moe_backend(config=make_config(), weight_key=fp8.BLOCKS[0], activation_key=fp8.BLOCKS[1])
        self.assertEqual(chosen, (oracle.Fp8MoeBackend.TRITON, fp8.TesseraFp8Experts))


@unittest.skipIf(NO_METHOD, NO_METHOD)
class RealMethod(unittest.TestCase):
    def test_enrolled(self):
        from tessera_vllm import method
        from vllm.model_executor.custom_op import op_registry_oot
        self.addCleanup(op_registry_oot.pop, "UnquantizedFusedMoEMethod", None)
        method.enroll()
        self.assertIs(op_registry_oot["UnquantizedFusedMoEMethod"], method.TesseraFusedMoEMethod)


if __name__ == "__main__":
    unittest.main()
