#!/usr/bin/env python3
"""A Qwen3-MoE model of Transformers with its experts run by Tessera: one line changes.

  python3 examples/transformers_qwen3_moe.py      on a Hopper GPU if there is one, else on the CPU

Random weights, made here: nothing is downloaded. The logits must agree with Transformers' own experts."""
import sys

import torch
import transformers

import tessera.transformers

ROW_ERROR = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # median of the rows; a token at a router's tie may choose anew


def build(device, dtype, experts_implementation):
    config = transformers.Qwen3MoeConfig(
        vocab_size=4096, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
        intermediate_size=1024, moe_intermediate_size=256, num_experts=32, num_experts_per_tok=4, norm_topk_prob=True)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation=experts_implementation)
    return model.train(False).to(device, dtype)


def main():
    tessera.transformers.register()
    on_gpu = torch.cuda.is_available() and not tessera.why_unusable(torch.cuda.current_device())
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    ids = torch.randint(4096, (2, 128), generator=torch.Generator().manual_seed(1)).to(device)
    logits = {}
    with torch.inference_mode():
        for implementation in ("grouped_mm", "tessera"):
            model = build(device, dtype, experts_implementation=implementation)  # <- the line that changes
            logits[implementation] = model(ids).logits.float().flatten(0, 1)
    expected = logits["grouped_mm"]
    error = float(((logits["tessera"] - expected).norm(dim=1) / expected.norm(dim=1)).median())
    same = float((logits["tessera"].argmax(1) == expected.argmax(1)).float().mean())
    print(f"{dtype} on {device}: {ids.numel()} tokens, relative difference of the logits {error:.1e} (median), "
          f"the same next token for {same:.1%}")
    return 0 if error <= ROW_ERROR[dtype] else 1


if __name__ == "__main__":
    sys.exit(main())
