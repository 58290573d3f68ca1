#!/usr/bin/env python3
"""The full-size classifier in PyTorch at its best, on one GPU or several: what Tessera's is to be measured against.

  torch_classifier.py --json bench/results/torch_classifier_h100.json
  torch_classifier.py --gpus 4 --modes embeddings,ids --seconds 3      a process a GPU, all at once
  torch_classifier.py --self-test          the arithmetic alone: needs neither torch nor a GPU

fp16 throughout but for the router's softmax; the four convolutions as channels-last conv2d with cuDNN's benchmark mode.
Measured: fp32 embeddings from pinned host memory (two copies in flight on a stream of their own, one pass of conversion and
transposition), 16,384 sentences once and for some seconds; compute alone on embeddings that lie on the GPU; token ids
through an embedding lookup. Beside them, in the same run, what the machine allows: the host-to-device rate, and a
cuBLAS product. Random normal data and weights.
"""
import argparse
import datetime
import json
import multiprocessing
import pathlib
import queue
import statistics
import subprocess
import sys
import time

CHANNELS, POSITIONS, FILTERS, WIDTHS = 4096, 16, 1024, (3, 5, 7, 9)
EXPERTS, EXPERT_WIDTH, HEAD, VOCABULARY = 4, 2048, (2048, 1024, 512, 2), 21635
SENTENCES, CHUNK, COMPUTE_BATCHES = 16384, 1024, (256, 1024, 4096)
MODES = ("limits", "embeddings", "compute", "ids")
LAUNCHED_AHEAD_SECONDS = 0.25
WAIT_SECONDS = 300  # for the slowest of several processes


def flops_per_sentence():
    """Of the products; the weighted sum of the experts is not counted."""
    convolutions = sum(2 * FILTERS * CHANNELS * width * (POSITIONS - width + 1) for width in WIDTHS)
    features = FILTERS * len(WIDTHS)
    router, experts = 2 * features * EXPERTS, 2 * features * EXPERT_WIDTH * EXPERTS
    head = sum(2 * a * b for a, b in zip(HEAD, HEAD[1:]))
    return convolutions + router + experts + head


def build_model(torch):
    nn, functional = torch.nn, torch.nn.functional

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.ModuleList(nn.Conv2d(CHANNELS, FILTERS, (1, width)) for width in WIDTHS)
            self.router = nn.Linear(FILTERS * len(WIDTHS), EXPERTS)
            self.experts = nn.Linear(FILTERS * len(WIDTHS), EXPERTS * EXPERT_WIDTH)  # all four in one product
            self.head = nn.ModuleList(nn.Linear(a, b) for a, b in zip(HEAD, HEAD[1:]))

        def forward(self, x):  # [N, channels, 1, positions], channels last
            features = torch.cat([functional.relu(conv(x)).amax((-1, -2)) for conv in self.convolutions], 1)
            share = torch.softmax(self.router(features).float(), 1).to(features.dtype)
            outputs = self.experts(features).view(-1, EXPERTS, EXPERT_WIDTH)
            h = torch.einsum("ne,new->nw", share, outputs)
            for layer in self.head[:-1]:
                h = functional.relu(layer(h))
            return self.head[-1](h)

    return Classifier().cuda().half().train(False).to(memory_format=torch.channels_last)


class Bench:
    """One GPU's part of the measurements. `meet` returns when every GPU's process has called it."""

    def __init__(self, torch, seconds, sentences, meet):
        self.torch, self.seconds, self.sentences, self.meet = torch, seconds, sentences, meet
        self.model = build_model(torch)
        self.host = None

    def embeddings_in_host_memory(self):
        if self.host is None:  # made on the GPU, which is faster at it
            self.host = self.torch.empty(self.sentences, CHANNELS, POSITIONS, pin_memory=True)
            for rows in self.host.split(CHUNK):
                rows.copy_(self.torch.randn(rows.shape, device="cuda"))
        return self.host

    def seconds_of(self, work, repetitions=9):
        """Median over runs, each between two events, after two that warm up."""
        times = []
        for n in range(repetitions + 2):
            if n == 2:
                self.meet()
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            self.torch.cuda.synchronize()
            if n >= 2:
                times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def sustained_rate(self, work, amount, seconds_once):
        """Of `amount` a run, for self.seconds or three runs, whichever is longer."""
        rounds = max(3, round(self.seconds / seconds_once))
        ahead = max(1, round(LAUNCHED_AHEAD_SECONDS / seconds_once))
        self.meet()
        begin = time.monotonic()
        for n in range(1, rounds + 1):
            work()
            if n % ahead == 0:
                self.torch.cuda.synchronize()
        self.torch.cuda.synchronize()
        return rounds * amount / (time.monotonic() - begin)

    def limits(self):
        torch, host = self.torch, self.embeddings_in_host_memory()
        target = torch.empty(min(4096, self.sentences), CHANNELS, POSITIONS, device="cuda")
        copy_s = self.seconds_of(lambda: target.copy_(host[:target.shape[0]], non_blocking=True))
        a, b = (torch.randn(8192, 8192, device="cuda").half() for _ in range(2))
        product_s = self.seconds_of(lambda: torch.mm(a, b.t()))
        rate = target.numel() * 4 / copy_s
        return {"host_to_device_bytes_per_second": rate, "sentences_per_second": rate / (CHANNELS * POSITIONS * 4),
                "fp16_product_flops_per_second": 2 * 8192**3 / product_s}

    def pipeline(self):
        """All sentences of `host` to logits, copies beside products."""
        torch, copies, host = self.torch, self.torch.cuda.Stream(), self.embeddings_in_host_memory()
        staged = [torch.empty(CHUNK, CHANNELS, POSITIONS, device="cuda") for _ in range(2)]
        logits = torch.empty(self.sentences, HEAD[-1], device="cuda")

        def run():
            done = []
            copies.wait_stream(torch.cuda.current_stream())
            for chunk in range(self.sentences // CHUNK):
                rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                with torch.cuda.stream(copies):
                    if chunk >= 2:
                        copies.wait_event(done[chunk - 2])
                    staged[chunk % 2].copy_(host[rows], non_blocking=True)
                    ready = torch.cuda.Event()
                    ready.record(copies)
                torch.cuda.current_stream().wait_event(ready)
                x = staged[chunk % 2].half().unsqueeze(2).contiguous(memory_format=torch.channels_last)
                logits[rows] = self.model(x).float()
                done.append(torch.cuda.Event())
                done[-1].record()
        return run

    def embeddings(self):
        run = self.pipeline()
        once = self.seconds_of(run)
        return {"seconds_for_16384": once, "sentences_per_second": self.sentences / once,
                "sustained_sentences_per_second": self.sustained_rate(run, self.sentences, once)}

    def compute(self):
        torch, rates = self.torch, {}
        for batch in COMPUTE_BATCHES:
            x = torch.randn(batch, CHANNELS, 1, POSITIONS, device="cuda").half()
            x = x.contiguous(memory_format=torch.channels_last)
            once = self.seconds_of(lambda x=x: self.model(x))
            rates[str(batch)] = {"sentences_per_second": batch / once,
                                 "flops_per_second": batch / once * flops_per_sentence(),
                                 "sustained_sentences_per_second":
                                     self.sustained_rate(lambda x=x: self.model(x), batch, once)}
        return rates

    def ids(self):
        torch = self.torch
        table = torch.randn(VOCABULARY, CHANNELS, device="cuda").half()
        ids = torch.randint(VOCABULARY, (4096, POSITIONS), device="cuda")

        def run():  # a gathered [N, positions, channels] is channels last already
            self.model(table[ids].permute(0, 2, 1).unsqueeze(2))
        once = self.seconds_of(run)
        return {"sentences_per_second": ids.shape[0] / once,
                "sustained_sentences_per_second": self.sustained_rate(run, ids.shape[0], once)}


def measure(torch, gpu, gpus, modes, seconds, meet):
    torch.cuda.set_device(gpu)
    torch.set_grad_enabled(False)
    torch.manual_seed(1 + gpu)
    torch.backends.cudnn.benchmark = True
    bench = Bench(torch, seconds, SENTENCES // gpus, meet)
    return {mode: getattr(bench, mode)() for mode in modes}


def serve(gpu, gpus, modes, seconds, barrier, results):
    """The process of one of several GPUs."""
    import torch
    try:
        results.put((gpu, measure(torch, gpu, gpus, modes, seconds, lambda: barrier.wait(WAIT_SECONDS))))
    except Exception as error:  # reported by the first process, which ends the run
        barrier.abort()
        results.put((gpu, f"{type(error).__name__}: {error}"))


def together(parts):
    """The figures of GPUs that worked at the same time: rates add up, the time of all is that of the slowest."""
    if isinstance(parts[0], dict):
        return {key: max(part[key] for part in parts) if key.startswith("seconds_") else
                together([part[key] for part in parts]) for key in parts[0]}
    return sum(parts)


def measure_on_all(gpus, modes, seconds):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(gpus), context.Queue()
    processes = [context.Process(target=serve, args=(gpu, gpus, modes, seconds, barrier, results))
                 for gpu in range(gpus)]
    for process in processes:
        process.start()
    parts = {}
    try:
        for _ in processes:
            gpu, part = results.get(timeout=2 * WAIT_SECONDS)
            parts[gpu] = part
    except queue.Empty:
        sys.exit(f"torch_classifier.py: no answer from GPUs {sorted(set(range(gpus)) - set(parts))}")
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    failed = {gpu: part for gpu, part in parts.items() if isinstance(part, str)}
    if failed:
        sys.exit(f"torch_classifier.py: {failed}")
    return together([parts[gpu] for gpu in sorted(parts)])


def machine(torch):
    listing = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"], text=True,
                             stdout=subprocess.PIPE, check=False).stdout.splitlines()
    driver, power = (listing[0] if listing else "unknown, unknown").split(", ")
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver, "power_limit": power, "torch": torch.__version__,
            "cuda": torch.version.cuda, "date": datetime.date.today().isoformat()}


def expect(what, got, expected):
    if got != expected:
        sys.exit(f"torch_classifier.py: {what}: got {got}, expected {expected}")


def self_test():
    # Positions x taps of the four widths: 14*3 + 12*5 + 10*7 + 8*9 = 244; everything behind them by hand.
    expect("FLOPs a sentence", flops_per_sentence(),
           2 * 244 * 4096 * 1024 + 2 * 4096 * 4 * 2049 + 2 * (2048 * 1024 + 1024 * 512 + 512 * 2))
    parts = [{"embeddings": {"seconds_for_16384": 2.0, "sentences_per_second": 10}, "compute": {"256": {"rate": 1}}},
             {"embeddings": {"seconds_for_16384": 3.0, "sentences_per_second": 20}, "compute": {"256": {"rate": 5}}}]
    expect("two GPUs together", together(parts),
           {"embeddings": {"seconds_for_16384": 3.0, "sentences_per_second": 30}, "compute": {"256": {"rate": 6}}})
    print("self-test passed")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a sustained run")
    parser.add_argument("--gpus", type=int, choices=(1, 2, 4, 8), default=1, help="that share the sentences")
    parser.add_argument("--modes", default=",".join(MODES), help="some of " + ", ".join(MODES))
    parser.add_argument("--self-test", action="store_true", help="check the arithmetic and leave")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    modes = options.modes.split(",")
    if not set(modes) <= set(MODES):
        parser.error(f"--modes: got {options.modes}, expected some of {', '.join(MODES)}")
    import torch  # late: --self-test and --help need none
    results = {"what": " ".join(__doc__.split("\n\n")[2].split()), "machine": machine(torch), "gpus": options.gpus,
               "flops_per_sentence": flops_per_sentence()}
    if options.gpus == 1:
        results |= measure(torch, 0, 1, modes, options.seconds, lambda: None)
    else:
        results |= measure_on_all(options.gpus, modes, options.seconds)
    text = json.dumps(results, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
