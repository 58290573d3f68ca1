#!/usr/bin/env python3
"""Whole models in Transformers on one GPU, random weights at true sizes: tokens a second by experts implementation.

  run.py --json models.json --family qwen3-30b-a3b --format bf16 --layers 12        rows that are in the file stay
  run.py --json models.json --family qwen3-30b-a3b --format fp8 --layers 12 --seconds 120
  run.py --json tiny.json --family qwen3-30b-a3b --rehearse                        on the CPU: the program, not its figures

Language model with head, attention sdpa, bf16 but for experts of format fp8 (e4m3 in blocks of 128 x 128). Rows: prefill of
512, 4096 and 16384 tokens, logits of the last; a step of decoding for 1, 8, 32 and 128 sequences after 512 tokens over a
static cache, in a CUDA graph where the implementation never waits for the GPU, else launched (`graph`); `batch`, 64 requests of
256 tokens in and 64 out by Transformers' continuous batching (`generate_batch`), from the first token to the last. Implementations
take turns in one process, A B C A B C; medians between two events, the L2 cache overwritten before; peak memory of a launched call.
Each row is written when it is done, so that a run that is broken off goes on behind it. Rows come in the order of their weight, and
with --seconds no part begins that would likely not end in time.

`deepgemm` is DeepGEMM where Transformers finds it, or else that of an installed vLLM, which has the same functions; its kernels
are compiled by nvcc when first used. Transformers' grouped_mm for FP8 takes a kernel from a hub; where it cannot be fetched the
row says so.

Checked, `greedy`: each implementation continues two prompts by itself; at the first token that differs from the first
implementation's, where both still have the same context, either side's logits of the two tokens must lie within TIE of their
standard deviation (`largest_tie`; `before`: tokens before it). Matrices are drawn as bench/engines/vllm_h200.py says, so that a
rounding stays one. Families whose implementations want weights to lie differently (gpt-oss) are
bench/peers/transformers_models.py's.
"""
import argparse
import contextlib
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / name) for name in ("peers", "engines")]
from model_tables import ORDER
from transformers_models import Clock, experts_of, machine
from vllm_h200 import spread

IMPLEMENTATIONS = {"bf16": ("grouped_mm", "batched_mm", "eager", "tessera"), "fp8": ("grouped_mm", "tessera", "deepgemm")}
CONTEXT = 512  # tokens before a step of decoding
COPY_BYTES = 32 << 30  # batched_mm may take so much for copies of weights
LEAST_RUNS, MOST_RUNS = 5, 15
GREEDY_TOKENS, TIE = 64, 0.2  # standard deviations of the logits between two tokens of which either may be chosen
BROKEN = 4  # exit code of a process that wants to be started anew
REQUESTS = (64, 256, 64)  # of continuous batching: how many, tokens in, tokens out
REHEARSED = [("decode", 4, 1), ("prefill", 1, 64), ("greedy", 0, 0), ("batch", 3, 4), ("decode", 1, 1), ("prefill", 1, 16)]


WEIGHTS = "gate_up_proj", "down_proj"


class Family(NamedTuple):
    config: str
    layers: int
    sizes: dict


COMMON = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "qwen3-30b-a3b": Family("qwen3_moe", 48, {
        "hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 151936, "max_position_embeddings": 40960}),
    "olmoe-1b-7b": Family("olmoe", 16, {
        "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 50304, "max_position_embeddings": 32768}),
    "qwen3-next-80b-a3b": Family("qwen3_next", 24, {
        "hidden_size": 2048, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "num_experts": 512,
        "num_experts_per_tok": 10, "norm_topk_prob": True, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 256, "vocab_size": 151936, "max_position_embeddings": 40960}),
    "deepseek-v3": Family("deepseek_v3", 4, {
        "hidden_size": 7168, "moe_intermediate_size": 2048, "intermediate_size": 18432, "n_routed_experts": 256,
        "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "first_k_dense_replace": 1,
        "max_position_embeddings": 40960}),
}
TINY = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 128, "num_experts": 8, "n_routed_experts": 64,
        "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 256}


class Rows:
    """The JSON file: rows by key, each written as soon as it is there."""

    def __init__(self, path, head):
        self.path, self.rows = path, []
        if path.exists():
            found = json.loads(path.read_text())
            same = ("gpu", "torch", "transformers", "tessera")
            if any(found.get(name) != head[name] for name in same):
                raise SystemExit(f"{path}: got rows of {[found.get(name) for name in same]}, expected those of this machine, "
                                 f"{[head[name] for name in same]}: take another file")
            self.rows = found["rows"]
        self.head = head

    def has(self, key):
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def add(self, row):
        self.rows.append(row)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n")
        os.replace(partial, self.path)
        print("  ".join(f"{name} {value}" for name, value in row.items() if value is not None), flush=True)


def build(torch, transformers, family, layers, form, device, tiny):
    sizes = {name: TINY.get(name, value) for name, value in family.sizes.items()} if tiny else family.sizes
    config = transformers.AutoConfig.for_model(family.config, **{**COMMON, **sizes, "num_hidden_layers": layers})
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.train(False)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 or "experts" in name and weight.dim() == 3:
            weight.data.normal_(std=spread(name, weight.shape[-1], layers))
    if form == "fp8":
        quantize(torch, transformers, model, device)
    return model


def quantize(torch, transformers, model, device):
    """Experts alone become Transformers' FP8Experts; of a layer at a time both forms are there."""
    from transformers.integrations import finegrained_fp8
    others = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    given = []
    for module in experts_of(model):
        given.append([blocks_of(torch, getattr(module, name).data) for name in WEIGHTS])
        module.to("meta")
    settings = transformers.FineGrainedFP8Config(weight_block_size=(128, 128))
    finegrained_fp8.replace_with_fp8_linear(model, others, settings, pre_quantized=True)
    for module, weights in zip(experts_of(model), given, strict=True):
        module.to_empty(device=device)
        for name, (codes, scales) in zip(WEIGHTS, weights):
            getattr(module, name).data.copy_(codes)
            getattr(module, name + "_scale_inv").data.copy_(scales)
        weights.clear()


def blocks_of(torch, weight):
    """(e4m3 codes, float32 scales) of weights [E, rows, columns], multiples of 128: the largest of a block becomes 448."""
    codes, scales = torch.empty_like(weight, dtype=torch.float8_e4m3fn), []
    for expert, coded in zip(weight, codes):
        blocks = expert.float().unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        coded.copy_((blocks / scale).flatten(2).flatten(0, 1))
        scales.append(scale[:, 0, :, 0])
    return codes, torch.stack(scales)


class Calls:
    """Calls of one model: prefill, and a step of decoding in a graph where that can be captured."""

    def __init__(self, torch, transformers, model, device):
        self.torch, self.transformers, self.model, self.device = torch, transformers, model, device
        self.generator = torch.Generator(device).manual_seed(1)

    def ids(self, sequences, tokens):
        return self.torch.randint(3, self.model.config.vocab_size, (sequences, tokens), generator=self.generator,
                                  device=self.device)

    def prefill(self, tokens):
        ids = self.ids(1, tokens)
        return lambda: self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits, lambda: None, False

    def filled_cache(self, sequences, context):
        """A cache for all implementations: what is in it does not change the time."""
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=context + 1)
        self.model.set_experts_implementation("tessera")
        self.model(input_ids=self.ids(sequences, context), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def decode(self, sequences, context, cache):
        """(call, what to do before it, whether it is a graph) of the implementation that was chosen."""
        ids = self.ids(sequences, 1)

        def before():
            for layer in cache.layers:
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length.fill_(context)

        def step():
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        if self.device != "cuda":
            return step, before, False
        return self.captured(step, before)

    def captured(self, step, before):
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                before()
                step()
        torch.cuda.current_stream().wait_stream(side)
        before()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:  # it reads counts on the host, say; a capture that fails would leave its traces
            print(f"no graph: {str(error).splitlines()[0][:120]}", flush=True)
            return step, before, False
        finally:
            torch.cuda.set_sync_debug_mode("default")
        before()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step()

        def replay(kept=step):  # the graph reads what the step refers to, such as its ids
            graph.replay()
            return logits
        return replay, before, True


def why_left_out(form, implementation, family, tokens, tiny):
    sizes = family.sizes
    if implementation == "batched_mm" and not tiny:
        width = sizes.get("moe_intermediate_size", sizes.get("intermediate_size", 2048))
        needed = tokens * sizes.get("num_experts_per_tok", 8) * 2 * width * sizes.get("hidden_size", 7168) * 2
        if needed > COPY_BYTES:
            return f"copies of the chosen experts' weights take {needed / 1e9:.0f} GB"
    return ""


def measure(torch, clock, calls, budget_ms):
    """{implementation: (median ms, runs, peak bytes beyond what was allocated)}."""
    times = {name: [] for name in calls}
    peaks = {name: None if is_graph else 0 for name, (*_, is_graph, _) in calls.items()}  # a graph has its memory beforehand
    spent = 0.0
    for call, before, _, choose in calls.values():
        choose()
        clock.ms(call, before)  # libraries load and choose their kernels
        spent += clock.ms(call, before)
    for _ in range(min(max(int(budget_ms / max(spent, 1e-6)), LEAST_RUNS), MOST_RUNS)):
        for name, (call, before, _, choose) in calls.items():
            choose()
            if clock.cuda:
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            times[name].append(clock.ms(call, before))
            if clock.cuda and peaks[name] is not None:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() - held)
    return {name: (statistics.median(found), len(found), peaks[name]) for name, found in times.items()}


def greedy(torch, model, choose, implementations, device, out_tokens):
    """{implementation: (tokens before the first difference, tokens, largest tie, checked)} against the first."""
    generator = torch.Generator(device).manual_seed(5)
    prompt = torch.randint(3, model.config.vocab_size, (2, 32), generator=generator, device=device)
    found, reference = {}, None
    for name in implementations:
        choose(name)
        whole = model.generate(prompt, max_new_tokens=out_tokens, min_new_tokens=out_tokens, do_sample=False,
                               return_dict_in_generate=True, output_logits=True)
        tokens, logits = whole.sequences[:, prompt.shape[1]:], torch.stack(whole.logits, 1).float()
        reference = (tokens, logits) if reference is None else reference
        found[name] = first_differences(tokens, logits, *reference)
    return found


def first_differences(tokens, logits, their_tokens, their_logits):
    """(tokens before the first difference of each sequence, tokens, largest distance there, whether all are ties)"""
    before, largest = 0, 0.0
    for ours, theirs, our_logits, their in zip(tokens, their_tokens, logits, their_logits):
        differing = (ours != theirs).nonzero().flatten().tolist()
        before += differing[0] if differing else len(ours)
        if differing:
            pair = [int(ours[differing[0]]), int(theirs[differing[0]])]
            for row in (our_logits[differing[0]], their[differing[0]]):
                largest = max(largest, float((row[pair[0]] - row[pair[1]]).abs() / row[row.isfinite()].std()))
    return before, tokens.numel(), largest, largest <= TIE


def batch(torch, transformers, model, requests, tokens_in, tokens_out):
    """Tokens a second of requests by continuous batching, from the first token that is out to the last."""
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randint(3, model.config.vocab_size, (requests, tokens_in), generator=generator).tolist()
    settings = transformers.GenerationConfig(max_new_tokens=tokens_out, do_sample=False, eos_token_id=-1, pad_token_id=0)
    on_gpu = model.device.type == "cuda"
    sizes = None if on_gpu else transformers.ContinuousBatchingConfig(max_memory_percent=0.01)  # else it fills the whole memory
    done = model.generate_batch(inputs, generation_config=settings, continuous_batching_config=sizes, record_timestamps=True,
                                warmup=on_gpu)
    stamps = sorted(stamp for output in done.values() for stamp in output.timestamps)
    if len(stamps) != requests * tokens_out:
        raise RuntimeError(f"generate_batch gave {len(stamps)} tokens, expected {requests * tokens_out}")
    return (len(stamps) - 1) / max(stamps[-1] - stamps[0], 1e-9)


class Plan:
    """The parts of a run that are not in the file yet, as long as there is time for them."""

    def __init__(self, arguments, rows, common, names):
        self.start, self.arguments, self.longest = time.monotonic(), arguments, 0.0
        order = [part for part in (REHEARSED if arguments.rehearse else ORDER) if not arguments.only or part[0] in arguments.only]
        self.todo = [part for part in order
                     if not all(rows.has({**common, **key_of(part), "implementation": name}) for name in names)]

    def parts(self):
        """Each in turn; the time that the longest took so far must be left."""
        while self.todo:
            begin = time.monotonic()
            if self.arguments.seconds and begin - self.start + self.longest > self.arguments.seconds:
                print(f"no time is left for {self.todo}", flush=True)
                return
            yield self.todo[0]
            self.todo.pop(0)
            self.longest = max(self.longest, time.monotonic() - begin)


def key_of(part):
    return {"phase": part[0], "sequences": part[1], "tokens": part[2]}


class Run:
    """What the parts share."""

    def __init__(self, arguments, torch, transformers, rows, common, names):
        self.arguments, self.torch, self.transformers, self.rows, self.common = arguments, torch, transformers, rows, common
        self.tiny, self.device = arguments.rehearse, "cpu" if arguments.rehearse else "cuda"
        self.chosen = ""
        self.names, self.family, self.clock = names, FAMILIES[arguments.family], Clock(torch, self.device)
        self.model = build(torch, transformers, self.family, common["layers"], common["format"], self.device, self.tiny)
        sys.modules["tessera.transformers"].prepare(self.model)
        self.usable = usable_implementations(torch, self.model, names, self.device)

    def do(self, part):
        """False: an implementation broke, and with it perhaps the device for this process."""
        phase, sequences, tokens = part
        row, good = {**self.common, **key_of(part)}, []
        for name in self.names:
            if self.rows.has({**row, "implementation": name}):  # it broke before
                continue
            width = sequences * (REQUESTS[1] if phase == "batch" else tokens)
            reason = self.usable[name] or why_left_out(self.common["format"], name, self.family, width, self.tiny)
            if reason:
                self.rows.add({**row, "implementation": name, "ms": None, "left_out": reason})
            else:
                good.append(name)
        try:
            {"greedy": self.greedy, "batch": self.batch}.get(phase, self.timed)(row, good)
        except RuntimeError as error:
            words = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            print(f"== {self.chosen} broke: {words}", flush=True)
            self.rows.add({**row, "implementation": self.chosen, "left_out": words})
            return False
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
        return True

    def choose(self, name):
        self.chosen = name  # whose work it is, if that breaks
        self.model.set_experts_implementation(name)

    def greedy(self, row, names):
        for name, (before, tokens, tie, checked) in greedy(self.torch, self.model, self.choose, names, self.device,
                                                           8 if self.tiny else GREEDY_TOKENS).items():
            self.rows.add({**row, "implementation": name, "before": before, "of": tokens, "largest_tie": round(tie, 4),
                           "checked": checked})

    def batch(self, row, names):
        for name in names:
            self.choose(name)
            try:
                found = batch(self.torch, self.transformers, self.model, row["sequences"], 8 if self.tiny else REQUESTS[1],
                              row["tokens"])
                self.rows.add({**row, "implementation": name, "tokens_per_s": round(found, 1)})
            except Exception as error:  # continuous batching has demands of its own
                if "CUDA error" in str(error):
                    raise
                self.rows.add({**row, "implementation": name, "left_out": f"{type(error).__name__}: {str(error)[:160]}"})

    def timed(self, row, names):
        maker, calls = Calls(self.torch, self.transformers, self.model, self.device), {}
        sequences, tokens = row["sequences"], row["tokens"]
        context = 16 if self.tiny else CONTEXT
        cache = None if row["phase"] == "prefill" else maker.filled_cache(sequences, context)
        for name in names:
            self.choose(name)
            call = maker.prefill(tokens) if cache is None else maker.decode(sequences, context, cache)
            calls[name] = (*call, lambda name=name: self.choose(name))
        if not calls:
            return
        for name, (ms, runs, peak) in measure(self.torch, self.clock, calls, self.arguments.row_seconds * 1e3).items():
            self.rows.add({**row, "implementation": name, "ms": round(ms, 4), "runs": runs, "graph": calls[name][2],
                           "tokens_per_s": round(sequences * tokens / ms * 1e3, 1), "peak_bytes": peak})


def run(arguments, torch, transformers):
    import tessera.transformers as integration
    integration.register()
    lend_deepgemm()
    tiny, device = arguments.rehearse, "cpu" if arguments.rehearse else "cuda"
    layers = arguments.layers or (2 if tiny else FAMILIES[arguments.family].layers)
    rows = Rows(arguments.json, machine(torch, transformers, device) | {"method": " ".join(__doc__.split("\n\n")[2].split())})
    names = arguments.implementations or [name for name in IMPLEMENTATIONS[arguments.format]
                                          if not (tiny and name in ("deepgemm", "grouped_mm") and arguments.format == "fp8")]
    common = {"family": arguments.family, "format": arguments.format, "layers": layers}
    plan = Plan(arguments, rows, common, names)
    if plan.todo:
        whole = Run(arguments, torch, transformers, rows, common, names)
        for part in plan.parts():
            if not whole.do(part):
                return BROKEN
    return 1 if any(row.get("checked") is False for row in rows.rows) else 0


def lend_deepgemm():
    """Transformers takes DeepGEMM from a hub; without a network it may have vLLM's, the same library."""
    with contextlib.suppress(ImportError, AssertionError):  # no vLLM; no CUDA compiler
        from transformers.integrations import deepgemm, hub_kernels
        if deepgemm.is_kernels_available():
            return
        from vllm.third_party import deep_gemm
        hub_kernels._KERNEL_MODULE_MAPPING["deep-gemm"] = deep_gemm
        deepgemm.is_kernels_available = lambda: True


def usable_implementations(torch, model, names, device):
    """{implementation: why it cannot run here, or empty}, found out by a few tokens."""
    found = {}
    for name in names:
        try:
            model.set_experts_implementation(name)
            model(input_ids=torch.full((1, 8), 3, device=device), use_cache=False)
            found[name] = ""
        except Exception as error:  # a kernel that is not installed, not loaded, or of another GPU
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}" if str(error) else type(error).__name__
            print(f"{name} is left out: {found[name]}", flush=True)
    return found


def supervise(arguments):
    """The run in a process of its own, started anew without an implementation that broke: a device may not survive one."""
    start = time.monotonic()
    while True:
        left = ["--seconds", str(arguments.seconds - (time.monotonic() - start))] if arguments.seconds else []
        code = subprocess.run([sys.executable, __file__, *sys.argv[1:], *left, "--child"], check=False).returncode
        if code != BROKEN or arguments.seconds and time.monotonic() - start > arguments.seconds:
            return code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, required=True, help="rows; goes on where it was broken off")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--format", choices=IMPLEMENTATIONS, default="bf16")
    parser.add_argument("--layers", type=int, default=0, help="of the model; 0: all, or what the family's entry says")
    parser.add_argument("--implementations", nargs="+", help="other than those of the format")
    parser.add_argument("--only", nargs="+", choices=("prefill", "decode", "greedy", "batch"))
    parser.add_argument("--seconds", type=float, default=0, help="of the whole run, 0: as long as it takes")
    parser.add_argument("--row-seconds", type=float, default=2.0, help="of measuring a row")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child:
        return supervise(arguments)
    import torch
    import transformers
    transformers.utils.logging.set_verbosity_error()
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("no GPU: --rehearse runs a tiny model on the CPU")
    with torch.no_grad():
        return run(arguments, torch, transformers)


if __name__ == "__main__":
    sys.exit(main())
