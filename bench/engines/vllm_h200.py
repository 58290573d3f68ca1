#!/usr/bin/env python3
"""A model with random weights in vLLM on one GPU, offline, with the plug-in and without: throughput, latency, tokens.

  vllm_h200.py --json vllm.json --format bf16                     Qwen3-30B-A3B; each side in a process of its own
  vllm_h200.py --json vllm.json --format fp8 --layers 24 --start graphs
  vllm_h200.py --json smoke.json --format bf16 fp8 --layers 2 --start eager --smoke --together     does it run at all?

Needs vLLM (0.26.0 takes torch 2.11), this package and integrations/vllm installed; no network: config.json, the tokenizer and
the weights are made here, the same for every side. The engine runs in the side's own process; prefix caching is off.
--start: `compiled` is vLLM's default, torch.compile and CUDA graphs; `graphs` leaves torch.compile out; `eager` both.

Rows: output tokens a second of 64 requests of 512 tokens in and 128 out; seconds of a batch of 1, 8 and 32 requests of 128 in
and 128 out; --repeats of each after a warm-up. With FP8 weights (e4m3 in blocks of 128 x 128) the dense layers are vLLM's
CUTLASS kernels on both sides (VLLM_USE_DEEP_GEMM=0). `experts` counts the classes that compute the layers' experts in the
engine.

Greedy tokens are compared by the first difference of each request, where both sides still have the same context: there each
side must give the two tokens log-probabilities that lie within TIE of each other. `largest_tie` is the largest such distance,
`largest_difference` that of the log-probabilities of tokens before. `alone` says the same of one side against itself, requests
one by one instead of together: what a change of the batch alone does to it.

What a side found is written after each measurement; a side that fails or takes longer than --seconds leaves the stage it was in
and the end of its log. Exit code 1: a side did not end, or the plug-in's experts did not run; 3: a difference was no tie.
"""
import argparse
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

MODEL = "Qwen3-30B-A3B"
SIZES = {"hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_experts": 128,
         "num_experts_per_tok": 8, "norm_topk_prob": True, "num_attention_heads": 32, "num_key_value_heads": 4,
         "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "hidden_act": "silu", "decoder_sparse_step": 1, "mlp_only_layers": [],
         "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
REQUESTS, LATENCY_BATCHES = (64, 512, 128), (1, 8, 32)
CHECKED = (16, 64, 32)  # requests, tokens in, tokens out
ALONE = 4               # of these one by one
TIE = 0.25              # nats between two tokens of which either may be chosen
CACHE_BYTES = 6 << 30   # 64 requests of 640 tokens take 4 GiB in 48 layers; given, vLLM does not measure what is free, and two
                        # engines may start at once (gpu_memory_utilization: what must be free at the start)
SEED = 7
EXPERTS_GAIN = 1.5      # as bench/peers/transformers_models.py: what the experts add is about as large as what they add to
ROUTER_GAIN = 3.0       # of eight experts the last then has about a fiftieth of the weight
CODES = 64.0            # standard deviation of e4m3 codes, of at most 448
CHOICE = re.compile(r"Using .*(MoE|attention) backend")
SIDES = {"tessera": "tessera", "vllm": ""}  # what VLLM_PLUGINS names
STARTS = {"compiled": {}, "graphs": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}, "eager": None}


def write_model(folder, layers, form):
    """config.json and a tokenizer of whole words, enough for an engine that is given token ids."""
    config = {**SIZES, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": layers}
    if form == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                                         "weight_block_size": [128, 128], "modules_to_not_convert": [
                                             "lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(layers))]}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, SIZES["vocab_size"])}}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<pad>"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}))


def spread(name, fan_in, layers):
    """Standard deviation of a matrix of this name. A row keeps its size; what a layer adds is small beside what it adds to, and
    the last of a token's experts weighs little, as in trained models: else a rounding is another token after 48 layers."""
    std = fan_in**-0.5
    if "embed" in name:
        return 1.0
    if name.endswith("mlp.gate.weight"):
        return ROUTER_GAIN * std
    if "experts" in name:
        std *= EXPERTS_GAIN
    return 0.5 * std * (2 * layers)**-0.5 if any(part in name for part in ("o_proj", "w2_weight", "down_proj")) else std


def fill(torch, name, weight, layers):
    """Random values, by the parameter's name the same on every side; e4m3 codes and their scales together are what a matrix of
    16 bits would be. vLLM's own dummy values, of at most 1e-3, would let no expert reach the logits, and be zeros in e4m3."""
    generator = torch.Generator(weight.device).manual_seed(zlib.crc32(name.encode()))
    if weight.dim() < 2:
        weight.fill_(1.0 if "norm" in name or "scale" in name else 0.0)
    elif "scale" in name:
        weight.uniform_(0.7, 1.3, generator=generator).mul_(spread(name, weight.shape[-1] * 128, layers) / CODES)
    elif weight.dtype == torch.float8_e4m3fn:
        for part in weight.split(max(1, (1 << 28) // weight[0].numel())):
            part.copy_((torch.randn(part.shape, generator=generator, device=weight.device) * CODES).clamp(-448, 448))
    else:
        for part in weight.split(max(1, (1 << 28) // weight[0].numel())):
            part.normal_(std=spread(name, weight.shape[-1], layers), generator=generator)


def register_loader():
    """The load format `random_by_name`."""
    import torch
    from vllm.model_executor.model_loader import DummyModelLoader, register_model_loader

    class RandomByName(DummyModelLoader):
        def load_weights(self, model, model_config):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    fill(torch, name, weight.data, model_config.hf_config.num_hidden_layers)

    register_model_loader("random_by_name")(RandomByName)


def prompts(count, tokens):
    draw = random.Random(SEED)
    return [{"prompt_token_ids": [draw.randrange(3, SIZES["vocab_size"]) for _ in range(tokens)]} for _ in range(count)]


def experts_of(model):
    """{class that computes a layer's experts: layers}"""
    kernels = {}
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernels[id(kernel)] = type(kernel.fused_experts).__name__
    names = list(kernels.values())
    return {name: names.count(name) for name in set(names)}


class Found:
    """What a side has found: written after each stage."""

    def __init__(self, path):
        self.path, self.rows, self.start = pathlib.Path(path), {}, time.perf_counter()

    def stage(self, name, **more):
        """From here on the side does this."""
        self.rows |= {"stage": name, **more}
        self.rows.setdefault("stages", {})[name] = round(time.perf_counter() - self.start, 1)
        self.path.write_text(json.dumps(self.rows))
        print(f"STAGE {name} at {self.rows['stages'][name]} s", flush=True)


@contextlib.contextmanager
def alone(lock):
    """One side at a time."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Side:
    """One side's engine, in this process."""

    def __init__(self, arguments, found):
        found.stage("import")
        import vllm
        self.vllm = vllm
        register_loader()
        import torch
        found.stage("engine", vllm=vllm.__version__, torch=torch.__version__, gpu=torch.cuda.get_device_name())
        compilation = STARTS[arguments.start]
        sizes = {"cudagraph_capture_sizes": sorted({1, 8, 16, 32, REQUESTS[0]})}
        options = {"enforce_eager": True} if compilation is None else {"compilation_config": {**compilation, **sizes}}
        self.engine = vllm.LLM(model=str(arguments.folder), load_format="random_by_name", dtype="bfloat16", seed=SEED,
                               max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=8192,
                               kv_cache_memory_bytes=CACHE_BYTES, gpu_memory_utilization=0.1, enable_prefix_caching=False,
                               **options)
        found.stage("warm-up", experts=self.engine.apply_model(experts_of)[0])
        self.generate(prompts(4, 128), 16)

    def generate(self, requests, out, logprobs=None):
        """(seconds, outputs)"""
        sampling = self.vllm.SamplingParams(temperature=0.0, max_tokens=out, min_tokens=out, ignore_eos=True, logprobs=logprobs)
        start = time.perf_counter()
        outputs = self.engine.generate(requests, sampling, use_tqdm=False)
        return time.perf_counter() - start, [output.outputs[0] for output in outputs]

    def tokens(self, requests):
        """Of each request [[token, {token: log-probability of the best few}] a position]."""
        outputs = self.generate(requests, CHECKED[2], logprobs=5)[1]
        return [[[token, {known: value.logprob for known, value in best.items()}]
                 for token, best in zip(output.token_ids, output.logprobs, strict=True)] for output in outputs]


def wait_for(path):
    while not path.exists():
        time.sleep(0.05)


def side(arguments):
    """One side, in this process."""
    found = Found(arguments.found)
    engine = Side(arguments, found)
    count, tokens_in, tokens_out = REQUESTS
    found.stage("wait for the others")
    wait_for(arguments.go)
    with alone(arguments.lock):
        found.stage("tokens")
        checked = prompts(*CHECKED[:2])
        tokens = engine.tokens(checked)
        found.stage("tokens one by one", tokens=tokens)
        own = [engine.tokens([request])[0] for request in checked[:ALONE]]
        found.stage("throughput", alone=own)
        if not arguments.smoke:
            requests = prompts(count, tokens_in)
            engine.generate(requests, 4)
            times = [engine.generate(requests, tokens_out)[0] for _ in range(arguments.repeats)]
            found.stage("latency", throughput=[round(count * tokens_out / seconds, 1) for seconds in times])
            latency = {}
            for batch in LATENCY_BATCHES:
                requests = prompts(batch, 128)
                engine.generate(requests, 4)
                latency[batch] = [round(engine.generate(requests, 128)[0], 4) for _ in range(arguments.repeats)]
                found.stage("latency", latency=latency)
        if arguments.profile:
            found.stage("profile")
            profile(engine)
        found.stage("end")
    sys.stdout.flush()
    os._exit(0)  # an engine's threads may keep a process from ending


def profile(engine):
    """Prints the kernels of steps of one kind: microseconds a step, calls a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record
    for name, requests, out in (("a prefill of 8192 tokens", prompts(16, 512), 1),
                                ("steps of 64 sequences", prompts(64, 8), 17), ("steps of 1 sequence", prompts(1, 8), 17)):
        engine.generate(requests, out)
        with record(activities=[ProfilerActivity.CUDA]) as recorded:
            seconds = engine.generate(requests, out)[0]
        rows = sorted(recorded.key_averages(), key=lambda row: -row.self_device_time_total)
        whole = sum(row.self_device_time_total for row in rows)
        print(f"PROFILE {name}: {seconds * 1e3:.2f} ms, kernels {whole / 1e3:.2f} ms, of them a step, in us:", flush=True)
        for row in rows[:32]:
            print(f"PROFILE {row.self_device_time_total / out:10.1f} {row.count / out:8.1f} x  {row.key[:110]}", flush=True)


def compare(ours, theirs):
    """Of two sides' tokens of the same requests: {positions before the first difference, ties, ..., checked}."""
    total = same = ties = 0
    largest_tie = largest_difference = 0.0
    odd = []
    for number, (one, other) in enumerate(zip(ours, theirs)):
        total += len(one)
        for position, ((a, best_a), (b, best_b)) in enumerate(zip(one, other, strict=True)):
            best_a, best_b = ({int(token): value for token, value in best.items()} for best in (best_a, best_b))
            if a == b:
                same += 1
                largest_difference = max(largest_difference, abs(best_a[a] - best_b[b]))
                continue
            gaps = [abs(best[a] - best[b]) if a in best and b in best else float("inf") for best in (best_a, best_b)]
            if max(gaps) <= TIE:
                ties += 1
                largest_tie = max(largest_tie, *gaps)
            else:
                odd.append([number, position, *(None if gap == float("inf") else round(gap, 4) for gap in gaps)])
            break
    return {"requests": len(theirs), "positions": total, "before_difference": same, "ties": ties,
            "largest_tie": round(largest_tie, 4), "largest_difference": round(largest_difference, 4), "no_ties": odd,
            "checked": not odd}


class Process:
    """One side as a process."""

    def __init__(self, name, folder, arguments, form):
        self.start = time.monotonic()
        self.name, self.found, self.log = name, folder / f"{name}.json", arguments.logs / f"vllm_{form}_{name}.log"
        command = [sys.executable, __file__, "--folder", str(folder), "--found", str(self.found), "--start", arguments.start,
                   "--lock", str(arguments.work / "lock"), "--go", str(arguments.work / "go"),
                   "--repeats", str(arguments.repeats),
                   *(f"--{name}" for name in ("smoke", "profile") if getattr(arguments, name))]
        environment = {**os.environ, "VLLM_PLUGINS": SIDES[name], "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
                       "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                       "VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_DEEP_GEMM": "0", "VLLM_HOST_IP": "127.0.0.1",
                       "TOKENIZERS_PARALLELISM": "false", "PYTHONFAULTHANDLER": "1"}
        if arguments.together:  # in turn they share what is compiled
            cache, known = folder / f"cache_{name}", pathlib.Path.home() / ".cache" / "vllm" / "modelinfos"
            environment["VLLM_CACHE_ROOT"] = str(cache)
            if known.exists():  # it takes a process of vLLM's own to find this out
                shutil.copytree(known, cache / "modelinfos")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def is_ready(self):
        """Whether it waits for the others, or has ended."""
        if self.process.poll() is not None:
            return True
        with contextlib.suppress(OSError, ValueError):  # it may just be writing
            return json.loads(self.found.read_text())["stage"] == "wait for the others"
        return False

    def end(self, deadline):
        """{what it found}, with `failed` where it did not come to its end."""
        try:
            code = self.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # its stacks go into the log
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
            self.process.wait()
            code = "out of time"
        found = json.loads(self.found.read_text()) if self.found.exists() else {"stage": "start"}
        lines = self.log.read_text(errors="replace").splitlines()
        found["choices"] = [line.strip()[:200] for line in lines if "tessera_vllm" in line or CHOICE.search(line)][:6]
        if code != 0 or found["stage"] != "end":
            found["failed"] = f"{self.name}: exit {code} in stage '{found['stage']}'"
            found["log_end"] = [line[:300] for line in lines[-40:]]
            errors = [line.strip()[:300] for line in lines if "Error" in line and "Traceback" not in line]
            print(f"== {found['failed']}; errors: {errors[:4]}\n" + "\n".join(found["log_end"]), flush=True)
        return found


def formats(arguments):
    """(format, {side: what returns its Process}); with --together the processes are there already."""
    for form in arguments.format:
        folder = arguments.work / form
        folder.mkdir()
        write_model(folder, arguments.layers, form)
        sides = {name: functools.partial(Process, name, folder, arguments, form) for name in SIDES}
        if arguments.together:
            sides = {name: functools.partial(lambda process: process, start()) for name, start in sides.items()}
        yield form, sides


def start_when_ready(processes, arguments):
    """Nobody measures while another one still loads, compiles or captures graphs."""
    deadline = time.monotonic() + arguments.seconds
    while time.monotonic() < deadline and not all(process.is_ready() for process in processes):
        time.sleep(0.1)
    (arguments.work / "go").touch()


def report_side(form, name, found):
    latency = "  ".join(f"{batch}: {statistics.median(seconds)} s" for batch, seconds in found.get("latency", {}).items())
    print(f"{form:5} {name:8} stage {found['stage']:18} experts {found.get('experts')}  "
          f"{found.get('throughput', '-')} tokens/s  latency {latency or '-'}  stages {found.get('stages')}", flush=True)


def row_of(arguments, form, sides):
    """The row of one format, without the tokens themselves."""
    tokens = {name: found.pop("tokens", None) for name, found in sides.items()}
    row = {"model": MODEL, "format": form, "layers": arguments.layers, "start": arguments.start, "tie": TIE,
           "date": time.strftime("%Y-%m-%d"), "sides": sides}
    for name, found in sides.items():
        own = found.pop("alone", None)
        if own and tokens[name]:
            found["alone"] = compare(own, tokens[name][:len(own)])
    if all(tokens.values()):
        row["tokens"] = compare(tokens["tessera"], tokens["vllm"])
    plugged = any(name.startswith("Tessera") for name in sides["tessera"].get("experts") or {})
    ran = plugged and not any("failed" in found for found in sides.values())
    row["code"] = 1 if not ran else 0 if row["tokens"]["checked"] else 3
    return row


def write_row(path, row):
    known = json.loads(path.read_text()) if path.exists() else []
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([*known, row], indent=1) + "\n")
    os.replace(partial, path)
    print(f"{row['format']} code {row['code']}  tokens {row.get('tokens')}", flush=True)
    for name, found in row["sides"].items():
        print(f"  {name}: alone {found.get('alone')}  choices {found['choices'][:3]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="rows are added to it")
    parser.add_argument("--format", nargs="+", choices=("bf16", "fp8"), default=["bf16"])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--start", choices=STARTS, default="compiled")
    parser.add_argument("--smoke", action="store_true", help="tokens alone, nothing is timed")
    parser.add_argument("--together", action="store_true", help="all sides start at once and measure one at a time")
    parser.add_argument("--seconds", type=float, default=240, help="of a side at most; with --together of all")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("."), help="folder of the sides' logs")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement")
    parser.add_argument("--profile", action="store_true", help="kernels and their times into the logs, measured last")
    for name in ("--folder", "--found", "--lock", "--go"):
        parser.add_argument(name, type=pathlib.Path, help=argparse.SUPPRESS)  # of one side
    arguments = parser.parse_args()
    if arguments.folder:
        return side(arguments)
    if arguments.json is None:
        parser.error("--json: got none, expected a file")
    arguments.logs.mkdir(parents=True, exist_ok=True)
    codes = []
    with tempfile.TemporaryDirectory() as name:
        arguments.work = pathlib.Path(name)
        chosen = formats(arguments)
        if arguments.together:
            chosen = list(chosen)
            start_when_ready([start() for _, sides in chosen for start in sides.values()], arguments)
        else:
            (arguments.work / "go").touch()
        for form, sides in chosen:
            found = {}
            for side_name, start in sides.items():
                process = start()
                found[side_name] = process.end(process.start + arguments.seconds)
                report_side(form, side_name, found[side_name])
            row = row_of(arguments, form, found)
            write_row(arguments.json, row)
            codes.append(row["code"])
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
