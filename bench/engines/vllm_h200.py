#!/usr/bin/env python3
"""A model with random weights in vLLM on one GPU, offline, with the plug-in and without: throughput, latency, tokens.

  vllm_h200.py --json vllm.json --format bf16 --layers 48         Qwen3-30B-A3B; each side in a process of its own
  vllm_h200.py --json vllm.json --format fp8 --layers 48

Needs vLLM (0.26.0 takes torch 2.11), this package and integrations/vllm installed; no network: weights are vLLM's dummy load
format, the tokenizer and config.json are written by this program. Rows: output tokens a second of 64 requests of 512 tokens in
and 128 out (offline throughput); seconds of a batch of 1, 8 and 32 requests, 128 in and 128 out (latency), medians of three
after a warm-up. Greedy tokens of both sides are compared position by position up to the first that differs; `same_prefix` is
the share of tokens before it. Which experts ran is read from the engine's log of its choice. Exit code 1: a side failed, its
message is in the file.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {"hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_experts": 128,
         "num_experts_per_tok": 8, "norm_topk_prob": True, "num_attention_heads": 32, "num_key_value_heads": 4,
         "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "hidden_act": "silu", "decoder_sparse_step": 1, "mlp_only_layers": [],
         "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
REQUESTS, LATENCY_BATCHES, REPEATS = (64, 512, 128), (1, 8, 32), 3
SEED = 7


def write_model(folder, layers, form):
    """config.json and a tokenizer of whole words, enough for an engine that is given token ids."""
    config = {**SIZES, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": layers}
    if form == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                                         "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, SIZES["vocab_size"])}}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>",
                                                              "bos_token": "<s>", "eos_token": "</s>"}))


def prompts(count, tokens):
    import random
    draw = random.Random(SEED)
    return [{"prompt_token_ids": [draw.randrange(3, SIZES["vocab_size"]) for _ in range(tokens)]} for _ in range(count)]


def side(arguments):
    """One side, in this process: prints one JSON object on its last line."""
    import vllm
    engine = vllm.LLM(model=arguments.folder, load_format="dummy", dtype="bfloat16", seed=SEED, max_model_len=2048,
                      gpu_memory_utilization=0.85, enable_prefix_caching=False)
    count, tokens_in, tokens_out = REQUESTS
    found = {"vllm": vllm.__version__, "latency": {}}

    def generate(requests, out):
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=out, min_tokens=out, ignore_eos=True)
        start = time.perf_counter()
        outputs = engine.generate(requests, sampling, use_tqdm=False)
        return time.perf_counter() - start, [list(output.outputs[0].token_ids) for output in outputs]

    generate(prompts(4, 128), 16)  # kernels are loaded and compiled
    seconds, found["tokens"] = generate(prompts(count, tokens_in), tokens_out)
    found["throughput"] = count * tokens_out / seconds
    for batch in LATENCY_BATCHES:
        found["latency"][batch] = statistics.median(generate(prompts(batch, 128), 128)[0] for _ in range(REPEATS))
    print("\n" + json.dumps(found), flush=True)


def run_side(folder, plugins):
    """(what it found or None, its log)"""
    command = [sys.executable, __file__, "--folder", str(folder)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          env={**os.environ, "VLLM_PLUGINS": plugins, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})
    lines = done.stdout.strip().splitlines()
    try:
        return (json.loads(lines[-1]) if done.returncode == 0 else None), done.stdout
    except (ValueError, IndexError):
        return None, done.stdout


def same_prefix(first, second):
    """The share of tokens before the first that differs."""
    total = equal = 0
    for ours, theirs in zip(first, second, strict=True):
        total += len(theirs)
        differing = [i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]]
        equal += differing[0] if differing else len(theirs)
    return equal / total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--format", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of one side
    arguments = parser.parse_args()
    if arguments.folder:
        return side(arguments)
    if arguments.json is None:
        parser.error("--json: got none, expected a file")
    sides = {}
    with tempfile.TemporaryDirectory() as name:
        write_model(pathlib.Path(name), arguments.layers, arguments.format)
        for plugin, plugins in (("tessera", "tessera"), ("vllm", "")):
            sides[plugin], log = run_side(name, plugins)
            choices = [line.strip() for line in log.splitlines() if "backend" in line.lower() and "moe" in line.lower()
                       or "tessera_vllm" in line]
            if sides[plugin] is None:
                sides[plugin] = {"failed": log.splitlines()[-40:]}
            sides[plugin]["choices"] = choices[:8]
    tokens = [found.pop("tokens", None) for found in sides.values()]
    rows = {"format": arguments.format, "layers": arguments.layers, "sides": sides,
            "same_prefix": same_prefix(*tokens) if all(tokens) else None}
    known = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    arguments.json.write_text(json.dumps([*known, rows], indent=1) + "\n")
    print(json.dumps(rows, indent=1))
    return 0 if all(tokens) else 1


if __name__ == "__main__":
    sys.exit(main())
