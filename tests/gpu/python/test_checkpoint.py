"""Layers loaded from what Transformers' own classes save, against what those classes compute, on the CPU and on a GPU."""
import pathlib
import tempfile
import unittest

import tessera
import torch
import transformers

HIDDEN, EXPERTS, TOP_K, TOKENS = 64, 8, 2, 33
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and not tessera.why_unusable(0) else [])
ROW_LIMIT = 1e-2  # two bf16 layers, each rounded at three places
COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
          "vocab_size": 128, "max_position_embeddings": 64, "num_experts_per_tok": TOP_K, "pad_token_id": None,
          "bos_token_id": None, "eos_token_id": None}
WIDE = {"moe_intermediate_size": 48, "intermediate_size": 96}
ROUTED = {**WIDE, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1}
FAMILIES = {
    "qwen3_moe": {**WIDE, "num_experts": EXPERTS},
    "qwen3_next": {**WIDE, "num_experts": EXPERTS, "shared_expert_intermediate_size": 96, "linear_num_key_heads": 2,
                   "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    "mixtral": {"intermediate_size": 48, "num_local_experts": EXPERTS},
    "olmoe": {"intermediate_size": 48, "num_experts": EXPERTS},
    "deepseek_v3": {**ROUTED, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4},
    "glm4_moe": ROUTED,
    "gpt_oss": {"intermediate_size": 64, "num_local_experts": EXPERTS},
    "minimax_m2": {"intermediate_size": 48, "num_local_experts": EXPERTS},
}


def build(family):
    config = {**COMMON, **FAMILIES[family]}
    if family == "deepseek_v3":
        del config["head_dim"]
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **config)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train(False)


def expected_rows(mlp, x, ids, weights):
    """What the experts of a model compute, its shared expert added; and that one's weight for each token, or None."""
    out = mlp.experts(x, ids, weights)
    if hasattr(mlp, "shared_expert_gate"):
        weight = torch.sigmoid(mlp.shared_expert_gate(x))
        return out + mlp.shared_expert(x) * weight, weight.float().squeeze(-1).contiguous()
    return (out + mlp.shared_experts(x), None) if hasattr(mlp, "shared_experts") else (out, None)


class Checkpoints(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        transformers.utils.logging.disable_progress_bar()

    def test_every_family_as_it_is_saved(self):
        known = transformers.CONFIG_MAPPING
        for family in FAMILIES:
            if family not in known:
                continue
            model = build(family)
            mlp = model.model.layers[1].mlp
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
            ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices
            weights = torch.rand(TOKENS, TOP_K, generator=generator)
            with torch.no_grad():
                expected, shared = expected_rows(mlp, x, ids, weights)
            for shard_size in ("100KB", "1GB"):
                with tempfile.TemporaryDirectory() as folder:
                    model.save_pretrained(pathlib.Path(folder), max_shard_size=shard_size)
                    for device in DEVICES:
                        with self.subTest(family=family, files=shard_size, device=device):
                            layer = tessera.load_layer(folder, layer=1, device=device)
                            given = [None if part is None else part.to(device) for part in (x, ids, weights, shared)]
                            got = layer(*given[:3], shared_weight=given[3]).cpu()
                            error = (got - expected).float().norm() / expected.float().norm()
                            self.assertLess(float(error), ROW_LIMIT)


if __name__ == "__main__":
    unittest.main()
