"""Small models of real Transformers classes with weights that make them behave: activations, router scores and logits
of order one, clamps reached, every expert used."""
import importlib
import types

import torch
import transformers

VOCABULARY = 128
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
          "eos_token_id": None, "tie_word_embeddings": False}
torch.set_num_threads(1)  # models this small gain nothing from threads, and lose much where other programs run
LOGIT_SCALE = 3.0  # standard deviation of the logits, about


def qwen3_moe():
    return transformers.Qwen3MoeConfig(**COMMON, head_dim=16, moe_intermediate_size=48, num_experts=16,
                                       num_experts_per_tok=4, norm_topk_prob=True, intermediate_size=96,
                                       decoder_sparse_step=1, mlp_only_layers=[])


def mixtral():
    return transformers.MixtralConfig(**COMMON, intermediate_size=112, num_local_experts=8, num_experts_per_tok=2)


def olmoe():
    return transformers.OlmoeConfig(**COMMON, intermediate_size=40, num_experts=16, num_experts_per_tok=4,
                                    norm_topk_prob=False)


def deepseek_v3():
    return transformers.DeepseekV3Config(**{**COMMON, "num_key_value_heads": 4, "num_hidden_layers": 3},
                                         intermediate_size=96, moe_intermediate_size=32, n_routed_experts=16,
                                         num_experts_per_tok=4, n_group=4, topk_group=2, n_shared_experts=1,
                                         first_k_dense_replace=1, kv_lora_rank=32, q_lora_rank=48, qk_rope_head_dim=16,
                                         qk_nope_head_dim=16, v_head_dim=16, routed_scaling_factor=2.5)


def gpt_oss():
    return transformers.GptOssConfig(**COMMON, head_dim=16, intermediate_size=48, num_local_experts=8,
                                     num_experts_per_tok=4, sliding_window=64)


CONFIGS = {"qwen3_moe": qwen3_moe, "mixtral": mixtral, "olmoe": olmoe, "deepseek_v3": deepseek_v3, "gpt_oss": gpt_oss}
CLASSES = {"qwen3_moe": "Qwen3MoeForCausalLM", "mixtral": "MixtralForCausalLM", "olmoe": "OlmoeForCausalLM",
           "deepseek_v3": "DeepseekV3ForCausalLM", "gpt_oss": "GptOssForCausalLM"}


def fill(model, seed=0):
    """Random weights in place: matrices of gain one, norms about one, biases about a third."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor):
        return torch.randn(tensor.shape, generator=generator).to(tensor)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if not parameter.is_floating_point() or "inv_freq" in name:
                continue
            if "norm" in name and parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * draw(parameter))
            elif parameter.dim() <= 1 or name.endswith("_bias") or "sinks" in name:
                parameter.copy_(0.3 * draw(parameter))
            elif parameter.dim() == 3:
                transposed = "gpt_oss" in type(model).__module__ or getattr(model, "is_transposed", False)
                fan_in = parameter.shape[1 if transposed else 2]
                gain = torch.full((len(parameter), 1, 1), 1.5)
                if "gate_up" in name:  # some experts below, some well beyond the clamps at 7
                    gain = torch.linspace(0.5, 4.0, len(parameter))[:, None, None]
                parameter.copy_(gain.to(parameter) * fan_in**-0.5 * draw(parameter))
            elif "embed" in name:
                parameter.copy_(draw(parameter))
            else:
                gain = LOGIT_SCALE if "lm_head" in name else 1.0
                parameter.copy_(gain * parameter.shape[1]**-0.5 * draw(parameter))
    return model.train(False)


def build(name, dtype=torch.float32, device="cpu", seed=0, implementation="eager"):
    """A model whose weights are those of the float32 model of this seed, rounded."""
    model = cast(fill(getattr(transformers, CLASSES[name])(CONFIGS[name]()), seed), dtype, device)
    model.set_experts_implementation(implementation)
    return model


def cast(model, dtype, device="cpu"):
    """The model in that type, but for the frequencies of positions: from_pretrained leaves them in float32."""
    frequencies = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    model.to(device=device, dtype=dtype)
    for name, buffer in frequencies.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, buffer.to(device))
    return model


def experts_of(model):
    """Its experts modules."""
    return [module for module in model.modules() if hasattr(module, "is_transposed") and hasattr(module, "down_proj")]


def prompts(rows, tokens, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=generator)


def logits(model, ids):
    """[rows * tokens, vocabulary] float64 on the CPU."""
    with torch.no_grad():
        out = model(ids.to(model.device), use_cache=False).logits
    return out.double().cpu().flatten(0, 1)


def row_errors(got, expected):
    """Relative error of each row."""
    return (got - expected).norm(dim=1) / expected.norm(dim=1)


# Experts modules of other classes, for their gates and layouts: (module path, class, configuration's attributes).
_SIZES = {"hidden_size": 64, "num_local_experts": 6, "num_experts": 6, "n_routed_experts": 6, "hidden_act": "silu"}
LONE_EXPERTS = {
    "nemotron_h": ("NemotronHExperts", {"moe_intermediate_size": 40, "moe_latent_size": None, "mlp_hidden_act": "relu2"}),
    "openai_privacy_filter": ("OpenAIPrivacyFilterExperts", {"intermediate_size": 40, "swiglu_alpha": 1.702,
                                                             "swiglu_limit": 7.0}),
    "minimax_m3_vl": ("MiniMaxM3VLExperts", {"intermediate_size": 40, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}),
    "deepseek_v4": ("DeepseekV4Experts", {"intermediate_size": 40, "swiglu_limit": 2.0}),
    "gemma4": ("Gemma4TextExperts", {"moe_intermediate_size": 40, "hidden_activation": "gelu_pytorch_tanh"}),
    "phimoe": ("PhimoeExperts", {"intermediate_size": 40, "hidden_act": "gelu"}),
    "glm4_moe": ("Glm4MoeExperts", {"moe_intermediate_size": 40, "hidden_act": "relu"}),
}


def lone_experts(name, **attributes):
    """An experts module without its model, in float32 on the CPU."""
    class_name, own = LONE_EXPERTS[name]
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    config = types.SimpleNamespace(**{**_SIZES, **own, **attributes}, _experts_implementation="eager")
    return fill(getattr(module, class_name)(config))
