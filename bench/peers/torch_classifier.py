#!/usr/bin/env python3
"""The full-size classifier in PyTorch at its best on one GPU: what Tessera's is to be measured against.

  torch_classifier.py --json bench/results/torch_classifier_h100.json
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
import pathlib
import statistics
import subprocess
import sys

CHANNELS, POSITIONS, FILTERS, WIDTHS = 4096, 16, 1024, (3, 5, 7, 9)
EXPERTS, EXPERT_WIDTH, HEAD, VOCABULARY = 4, 2048, (2048, 1024, 512, 2), 21635
SENTENCES, CHUNK, COMPUTE_BATCHES = 16384, 1024, (256, 1024, 4096)


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
    def __init__(self, torch, seconds):
        self.torch, self.seconds = torch, seconds
        self.model = build_model(torch)
        self.host = torch.randn(SENTENCES, CHANNELS, POSITIONS).pin_memory()

    def seconds_of(self, work, repetitions=9):
        """Median over runs, each between two events, after two that warm up."""
        times = []
        for n in range(repetitions + 2):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            self.torch.cuda.synchronize()
            if n >= 2:
                times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def limits(self):
        torch = self.torch
        target = torch.empty(4096, CHANNELS, POSITIONS, device="cuda")
        copy_s = self.seconds_of(lambda: target.copy_(self.host[:4096], non_blocking=True))
        a, b = (torch.randn(8192, 8192, device="cuda").half() for _ in range(2))
        product_s = self.seconds_of(lambda: torch.mm(a, b.t()))
        rate = target.numel() * 4 / copy_s
        return {"host_to_device_bytes_per_second": rate, "sentences_per_second": rate / (CHANNELS * POSITIONS * 4),
                "fp16_product_flops_per_second": 2 * 8192**3 / product_s}

    def pipeline(self):
        """All sentences of `host` to logits, copies beside products."""
        torch, copies = self.torch, self.torch.cuda.Stream()
        staged = [torch.empty(CHUNK, CHANNELS, POSITIONS, device="cuda") for _ in range(2)]
        logits = torch.empty(SENTENCES, HEAD[-1], device="cuda")

        def run():
            done = []
            copies.wait_stream(torch.cuda.current_stream())
            for chunk in range(SENTENCES // CHUNK):
                rows = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                with torch.cuda.stream(copies):
                    if chunk >= 2:
                        copies.wait_event(done[chunk - 2])
                    staged[chunk % 2].copy_(self.host[rows], non_blocking=True)
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
        rounds = max(3, round(self.seconds / once))

        def repeated():
            for _ in range(rounds):
                run()
        return {"seconds_for_16384": once, "sentences_per_second": SENTENCES / once,
                "sustained_sentences_per_second": rounds * SENTENCES / self.seconds_of(repeated, 1)}

    def compute(self):
        torch, rates = self.torch, {}
        for batch in COMPUTE_BATCHES:
            x = torch.randn(batch, CHANNELS, 1, POSITIONS, device="cuda").half()
            x = x.contiguous(memory_format=torch.channels_last)
            rate = batch / self.seconds_of(lambda x=x: self.model(x))
            rates[str(batch)] = {"sentences_per_second": rate, "flops_per_second": rate * flops_per_sentence()}
        return rates

    def ids(self):
        torch = self.torch
        table = torch.randn(VOCABULARY, CHANNELS, device="cuda").half()
        ids = torch.randint(VOCABULARY, (4096, POSITIONS), device="cuda")

        def run():  # a gathered [N, positions, channels] is channels last already
            self.model(table[ids].permute(0, 2, 1).unsqueeze(2))
        return {"sentences_per_second": ids.shape[0] / self.seconds_of(run)}


def machine(torch):
    listing = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"], text=True,
                             stdout=subprocess.PIPE, check=False).stdout.splitlines()
    driver, power = (listing[0] if listing else "unknown, unknown").split(", ")
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver, "power_limit": power, "torch": torch.__version__,
            "cuda": torch.version.cuda, "date": datetime.date.today().isoformat()}


def self_test():
    got = flops_per_sentence()
    # Positions x taps of the four widths: 14*3 + 12*5 + 10*7 + 8*9 = 244; everything behind them by hand.
    expected = 2 * 244 * 4096 * 1024 + 2 * 4096 * 4 * 2049 + 2 * (2048 * 1024 + 1024 * 512 + 512 * 2)
    if got != expected:
        sys.exit(f"torch_classifier.py: FLOPs a sentence: got {got}, expected {expected}")
    print("self-test passed")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the sustained run")
    parser.add_argument("--self-test", action="store_true", help="check the arithmetic and leave")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    import torch  # late: --self-test and --help need none
    torch.set_grad_enabled(False)
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    bench = Bench(torch, options.seconds)
    results = {"what": " ".join(__doc__.split("\n\n")[2].split()), "machine": machine(torch),
               "flops_per_sentence": flops_per_sentence(), "limits": bench.limits(), "embeddings": bench.embeddings(),
               "compute": bench.compute(), "ids": bench.ids()}
    text = json.dumps(results, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
