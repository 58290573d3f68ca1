#!/usr/bin/env python3
"""Transformers' models by experts implementation: eager, batched_mm, grouped_mm and Tessera, in one process on one GPU.

  transformers_models.py --json bench/results/transformers_h200.json      about a minute
  transformers_models.py --rehearse          small models on the CPU: the program, not its figures

Whole decoder layers of real widths with random bf16 weights, called as a user calls them, one call between two events on
an idle GPU, launches included, the L2 cache overwritten before: prefill of 4096 tokens, a step of decoding after 512
tokens for 1 and 32 sequences over a static cache; and the experts alone. Implementations take turns, A B C D A B C D;
medians. Checked: every row of every layer's experts, given the same inputs and ids, against eager's (`error`); and what
the timed runs gave, against grouped_mm's by the median row (`far`: loose, because a token at a router's tie may choose
other experts, which changes all that follows). gpt-oss' weights lie for each implementation as it wants them. An
implementation that copies the chosen experts' weights is left out where the copies do not fit. Exit code 1: a result
differs.
"""
import argparse
import copy
import datetime
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm", "tessera")
FLUSH_BYTES = 128 << 20  # more than twice an H100's L2 cache
LEAST_RUNS, MOST_RUNS = 5, 15
CONTEXT = 512  # tokens before a step of decoding
COPY_BYTES = 32 << 30  # an implementation may take so much for copies of weights
ROW_LIMIT = 2e-2  # of the experts: two bf16 layers with the same ids differ by 5e-3 a row, at most 1e-2
FAR_LIMIT = 0.5  # of the median row after a few layers in which tokens at ties chose other experts; a wrong layer gives 1
EXPERTS_GAIN = 1.5  # of the experts' matrices: what they add is about as large as what they add to


class Model(NamedTuple):
    """Widths of a model, and how many of its layers fit beside the copies."""
    config: str
    layers: int
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int


MODELS = {
    "qwen3-30b-a3b": Model("Qwen3MoeConfig", 4, 2048, 768, 128, 8, 32, 4, 128),
    "mixtral-8x7b": Model("MixtralConfig", 2, 4096, 14336, 8, 2, 32, 8, 128),
    "gpt-oss-20b": Model("GptOssConfig", 4, 2880, 2880, 32, 4, 64, 8, 64),
}
PHASES = {"prefill": (1, 4096), "decode-1": (1, 1), "decode-32": (32, 1)}  # sequences, tokens of a call
BLOCKS = {"qwen3-30b-a3b": 16384, "mixtral-8x7b": 4096}  # tokens of the experts alone
TINY = {"qwen3-30b-a3b": Model("Qwen3MoeConfig", 2, 64, 32, 8, 2, 4, 2, 16),
        "mixtral-8x7b": Model("MixtralConfig", 2, 64, 48, 4, 2, 4, 2, 16),
        "gpt-oss-20b": Model("GptOssConfig", 2, 64, 32, 8, 2, 4, 2, 16)}


def copied_bytes(model, tokens):
    """Weights that batched_mm copies for a call: those of the chosen experts, once a slot; one tensor at a time."""
    return tokens * model.top_k * 2 * model.intermediate * model.hidden * 2


def config_of(transformers, model):
    common = {"hidden_size": model.hidden, "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
              "num_key_value_heads": model.kv_heads, "head_dim": model.head_dim, "vocab_size": 1024,
              "num_experts_per_tok": model.top_k, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if model.config == "Qwen3MoeConfig":
        own = {"moe_intermediate_size": model.intermediate, "num_experts": model.experts, "norm_topk_prob": True}
    else:
        own = {"intermediate_size": model.intermediate, "num_local_experts": model.experts}
    if model.config == "GptOssConfig":
        own["layer_types"] = ["full_attention"] * model.layers
    return getattr(transformers, model.config)(**common, **own)


def experts_of(model):
    return [module for module in model.modules() if hasattr(module, "is_transposed") and hasattr(module, "down_proj")]


class Clock:
    """Times one call at a time: between two events on a GPU, by the wall on the CPU."""

    def __init__(self, torch, device):
        self.torch, self.cuda = torch, device == "cuda"
        if self.cuda:
            self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def ms(self, work, before):
        before()
        if not self.cuda:
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        self.flush.zero_()
        self.torch.cuda.synchronize()
        self.begin.record()
        work()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end)


class Bench:
    def __init__(self, torch, transformers, integration, device, models, seconds):
        self.torch, self.transformers, self.integration = torch, transformers, integration
        self.device, self.models, self.clock, self.seconds, self.rows = device, models, Clock(torch, device), seconds, []

    def build(self, model):
        """(model for the others, model for ours): two where their weights lie differently."""
        torch = self.torch
        torch.manual_seed(0)
        with torch.device(self.device):
            theirs = self.transformers.AutoModel.from_config(config_of(self.transformers, model), dtype=torch.bfloat16)
        theirs.train(False)
        transposed = False
        for module in experts_of(theirs):
            transposed = module.is_transposed
            for weight in (module.gate_up_proj, module.down_proj):
                weight.data.normal_(std=EXPERTS_GAIN * weight.shape[1 if transposed else 2]**-0.5)
        ours = copy.deepcopy(theirs) if transposed else theirs
        self.integration.prepare(ours)
        return theirs, ours

    def measure(self, name, phase, works, tokens, judge):
        """Rows of one comparison. works: implementation -> (call, what to do before it); a text says why it is left out.
        judge(implementation, outputs) -> (what is found, whether that is right)."""
        outputs, times = {}, {implementation: [] for implementation in works if not isinstance(works[implementation], str)}
        for _ in range(2):  # libraries load and choose their kernels
            for implementation in times:
                self.clock.ms(*works[implementation])
        round_ms = sum(self.clock.ms(*works[implementation]) for implementation in times)
        runs = min(max(int(self.seconds * 1e3 / round_ms), LEAST_RUNS), MOST_RUNS)
        for _ in range(runs):
            for implementation in times:
                work, before = works[implementation]

                def keep(work=work, implementation=implementation):
                    outputs[implementation] = work()
                times[implementation].append(self.clock.ms(keep, before))
        for implementation in works:
            row = {"model": name, "phase": phase, "tokens": tokens, "implementation": implementation}
            if implementation in times:
                ms = statistics.median(times[implementation])
                found, right = judge(implementation, outputs)
                row.update(ms=round(ms, 4), ms_min=round(min(times[implementation]), 4),
                           ms_max=round(max(times[implementation]), 4), runs=runs, tokens_per_s=round(tokens / ms * 1e3, 1),
                           **{key: value if math.isfinite(value) else None for key, value in found.items()}, checked=right)
            else:
                row.update(ms=None, tokens_per_s=None, checked=None, left_out=works[implementation])
            self.rows.append(row)
            print("  ".join(f"{key} {row[key]}" for key in ("model", "phase", "implementation", "ms", "error", "far", "checked",
                                                            "left_out") if row.get(key) is not None), flush=True)

    def row_errors(self, got, expected):
        got, expected = (rows.float().flatten(0, -2) for rows in (got, expected))
        return ((got - expected).norm(dim=1) / expected.norm(dim=1)).nan_to_num(math.inf)

    def experts_errors(self, theirs, ours, work, implementations):
        """Implementation -> largest error of a row of any layer's experts, all given the inputs of one run."""
        inputs = []
        hooks = [module.register_forward_hook(lambda module, given, out: inputs.append(given))
                 for module in experts_of(theirs)]
        work[1]()
        work[0]()
        for hook in hooks:
            hook.remove()
        errors = dict.fromkeys(implementations, 0.0)
        for number, given in enumerate(inputs):
            theirs.set_experts_implementation("eager")
            expected = experts_of(theirs)[number](*given)
            for implementation in implementations:
                model = ours if implementation == "tessera" else theirs
                model.set_experts_implementation(implementation)
                got = experts_of(model)[number](*given)
                errors[implementation] = max(errors[implementation], float(self.row_errors(got, expected).max()))
        assert len(inputs) == len(hooks)
        return errors

    def call_of(self, model, implementation, phase, size, context):
        """(call, what to do before it) of one implementation of a model in one phase."""
        torch, (sequences, tokens) = self.torch, PHASES[phase]
        sequences, tokens = min(sequences, size), min(tokens, size)
        generator = torch.Generator(self.device).manual_seed(1)
        x = torch.randn(sequences, tokens, model.config.hidden_size, generator=generator, device=self.device,
                        dtype=torch.bfloat16)
        if phase == "prefill":
            def prefill():
                return model(inputs_embeds=x, use_cache=False).last_hidden_state
            return prefill, lambda: model.set_experts_implementation(implementation)
        cache = self.transformers.StaticCache(config=model.config, max_cache_len=context + 1)
        before_it = torch.randn(sequences, context, model.config.hidden_size, generator=generator, device=self.device,
                                dtype=torch.bfloat16)
        model.set_experts_implementation("tessera" if implementation == "tessera" else "grouped_mm")
        model(inputs_embeds=before_it, past_key_values=cache, use_cache=True)

        def before():
            model.set_experts_implementation(implementation)
            for layer in cache.layers:
                layer.cumulative_length.fill_(context)

        def step():
            return model(inputs_embeds=x, past_key_values=cache, use_cache=True).last_hidden_state
        return step, before

    def whole_layers(self, name, size, context):
        widths = self.models[name]
        theirs, ours = self.build(widths)
        for phase, (sequences, tokens) in PHASES.items():
            sequences, tokens = min(sequences, size), min(tokens, size)
            works = {}
            for implementation in IMPLEMENTATIONS:
                needed = copied_bytes(widths, sequences * tokens)
                if implementation == "batched_mm" and needed > COPY_BYTES:
                    works[implementation] = f"copies of the chosen experts' weights take {needed / 1e9:.0f} GB"
                else:
                    works[implementation] = self.call_of(ours if implementation == "tessera" else theirs, implementation,
                                                         phase, size, context)
            run = [implementation for implementation in works if not isinstance(works[implementation], str)]
            errors = self.experts_errors(theirs, ours, works["grouped_mm"], run)

            def judge(implementation, outputs):
                far = float(self.row_errors(outputs[implementation], outputs["grouped_mm"]).median())
                return ({"error": errors[implementation], "far": far},
                        errors[implementation] <= ROW_LIMIT and far <= FAR_LIMIT)
            self.measure(name, phase, works, sequences * tokens, judge)

    def experts_alone(self, name, tokens):
        torch, widths = self.torch, self.models[name]
        model, _ = self.build(widths._replace(layers=1))
        experts = model.layers[0].mlp.experts
        generator = torch.Generator(self.device).manual_seed(2)
        x = torch.randn(tokens, widths.hidden, generator=generator, device=self.device, dtype=torch.bfloat16)
        ids = torch.rand(tokens, widths.experts, generator=generator, device=self.device).topk(widths.top_k).indices
        weights = torch.rand(tokens, widths.top_k, generator=generator, device=self.device).softmax(-1).bfloat16()
        works = {}
        for implementation in IMPLEMENTATIONS:
            needed = copied_bytes(widths, tokens)
            if implementation == "batched_mm" and needed > COPY_BYTES:
                works[implementation] = f"copies of the chosen experts' weights take {needed / 1e9:.0f} GB"
            else:
                works[implementation] = (lambda: experts(x, ids, weights),
                                         lambda name=implementation: model.set_experts_implementation(name))

        def judge(implementation, outputs):
            error = float(self.row_errors(outputs[implementation], outputs["eager"]).max())
            return {"error": error}, error <= ROW_LIMIT
        self.measure(name, "experts", works, tokens, judge)

    def planted_error_is_seen(self, name):
        """The checks refuse our layer with gate and up taken for each other."""
        theirs, ours = self.build(self.models[name])
        for module in experts_of(ours):
            gate = getattr(module, self.integration._GATE)
            setattr(module, self.integration._GATE, (*gate[:5], "up_first"))
        work = self.call_of(theirs, "grouped_mm", "prefill", 64, 16)
        return self.experts_errors(theirs, ours, work, ["tessera"])["tessera"] > ROW_LIMIT


def machine(torch, transformers, device):
    import tessera
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "tessera": tessera.__version__,
             "date": datetime.date.today().isoformat(), "method": " ".join(__doc__.split("\n\n")[2].split())}
    if device == "cpu":
        return {"gpu": None, "driver": None, "clocks": None, **found}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"]
    listing = subprocess.run(query, text=True, stdout=subprocess.PIPE, check=False).stdout.splitlines()
    driver, clock, highest, power = (listing[0] if listing else "unknown, unknown, unknown, unknown").split(", ")
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver,
            "clocks": {"sm_at_end": clock, "sm_max": highest, "power_limit": power}, **found}


def speed_table(rows):
    """Milliseconds by implementation, as a table for the documents; "-" where one was left out or its result was wrong."""
    table = []
    for model, phase in dict.fromkeys((row["model"], row["phase"]) for row in rows):
        found = {row["implementation"]: row for row in rows if (row["model"], row["phase"]) == (model, phase)}
        ms = {name: row["ms"] for name, row in found.items() if row["checked"]}
        gain = f"{ms['grouped_mm'] / ms['tessera']:.2f}" if {"grouped_mm", "tessera"} <= set(ms) else "-"
        table.append([model, phase, found["tessera"]["tokens"],
                      *(f"{ms[name]:.2f}" if name in ms else "-" for name in IMPLEMENTATIONS), gain])
    return {"columns": ["model", "what", "tokens", *(f"{name}, ms" for name in IMPLEMENTATIONS), "grouped_mm / tessera"],
            "rows": table}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go")
    parser.add_argument("--models", default=",".join(MODELS), help="some of " + ",".join(MODELS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of a model and phase, as long as there are "
                        f"{LEAST_RUNS} to {MOST_RUNS} runs")
    parser.add_argument("--rehearse", action="store_true", help="small models on the CPU")
    options = parser.parse_args()
    names = options.models.split(",")
    if not set(names) <= set(MODELS):
        parser.error(f"--models: got '{options.models}', expected some of {','.join(MODELS)}")
    import torch  # late: --help needs neither
    import transformers
    import tessera.transformers as integration
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("no GPU here, expected a Hopper GPU; --rehearse runs small models on the CPU")
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    integration.register()
    device, models = ("cpu", TINY) if options.rehearse else ("cuda", MODELS)
    bench = Bench(torch, transformers, integration, device, models, options.seconds)
    for name in names:
        bench.whole_layers(name, 64 if options.rehearse else 1 << 30, 16 if options.rehearse else CONTEXT)
        if name in BLOCKS:
            bench.experts_alone(name, 256 if options.rehearse else BLOCKS[name])
        if device == "cuda":
            torch.cuda.empty_cache()
    if options.json:
        document = {**machine(torch, transformers, device), "table": speed_table(bench.rows), "rows": bench.rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.rehearse and not all(bench.planted_error_is_seen(name) for name in names):
        sys.exit("transformers_models.py: a planted error was not seen")
    wrong = [row for row in bench.rows if row["checked"] is False]
    print(f"{len(bench.rows)} rows, {len(wrong)} wrong")
    return 1 if wrong or not bench.rows else 0


if __name__ == "__main__":
    sys.exit(main())
