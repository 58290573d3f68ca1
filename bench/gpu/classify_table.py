#!/usr/bin/env python3
"""Measures the classifier's table on GPUs and writes bench/results/classify_<gpu>x<n>.json.

  classify_table.py build/cuda/tools/tessera/tessera --ids inputs.bin      one GPU, every case: about 6 minutes, about one
                                                                           and a half with --seconds 2
  classify_table.py TESSERA --gpus 4 --ids inputs.bin                      four GPUs
  classify_table.py TESSERA --cases embeddings_fp16,torch --budget 120     some cases; others in the file of the same
                                                                           machine stay as they are

Each case is a process of its own with a time limit. One that fails is recorded with its message and the rest goes on; what
the budget leaves no time for is recorded too. Cases with a PyTorch counterpart come first, then PyTorch, --rounds times, so
that clocks and heat fall on both alike. Needs Python alone, for the case `torch` PyTorch as well.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHIPPED_MODEL = ROOT / "models" / "movie-reviews"
REVIEWS = ROOT / "examples" / "data" / "reviews.tsv"
PEER = ROOT / "bench" / "peers" / "torch_classifier.py"
SEED = {"sentences_per_second": 40000, "gpus": 4, "input": "fp32 embeddings in host memory",
        "source": "best published result of the school project, four GPUs"}

# name: options, share of --seconds for a sustained block. Names are members of the results, so they hold no dots.
DUELS = {
    "embeddings_fp16": ("--path embeddings --precision fp16", 1.0),
    "resident_fp16": ("--path resident --precision fp16 --form dft --batch 2048", 0.3),
    "ids_fp16": ("--path ids --precision fp16", 0.5),
}
SINGLES = {
    "resident_fp16_direct": ("--path resident --precision fp16 --form direct --batch 4096", 0.3),
    "resident_ids_fp16_distinct": ("--path resident --precision fp16 --form distinct --data ids --batch 8192", 0.3),
    "embeddings_fp32": ("--path embeddings --precision fp32", 0.3),
    "embeddings_fp32_direct": ("--path embeddings --precision fp32 --form direct", 0.2),
    "embeddings_fp16_direct": ("--path embeddings --precision fp16 --form direct", 0.3),
    "embeddings_bf16": ("--path embeddings --precision bf16", 0.2),
    "resident_ids_fp16_direct": ("--path resident --precision fp16 --form direct --data ids --batch 4096", 0.1),
    "resident_bf16": ("--path resident --precision bf16 --form dft --batch 2048", 0.1),
    "ids_fp32": ("--path ids --precision fp32", 0.2),
    "ids_fp16_distinct": ("--path ids --precision fp16 --form distinct", 0.1),
}
MANY_GPUS = ("embeddings_fp16", "ids_fp16", "resident_fp16", "embeddings_fp32")
OTHERS = ("torch", "text_jsonl", "text_bin")
CASES = (*DUELS, *SINGLES, *OTHERS)
TORCH_MEMBER = {"embeddings_fp16": "embeddings", "resident_fp16": "compute", "ids_fp16": "ids"}
WORDS = {
    "embeddings_fp16": "fp32 embeddings in pinned host memory, fp16, DFT",
    "embeddings_fp16_direct": "the same, direct",
    "embeddings_bf16": "the same, bf16, DFT",
    "embeddings_fp32": "the same, fp32, DFT",
    "embeddings_fp32_direct": "the same, fp32, direct",
    "resident_fp16": "random embeddings on the GPU, fp16, DFT",
    "resident_fp16_direct": "the same, direct",
    "resident_bf16": "the same, bf16, DFT",
    "resident_ids_fp16_direct": "embeddings of id rows on the GPU, fp16, direct",
    "resident_ids_fp16_distinct": "the same, distinct tokens",
    "ids_fp16": "token ids, fp16, projected vocabulary",
    "ids_fp16_distinct": "token ids, fp16, distinct tokens",
    "ids_fp32": "token ids, fp32, projected vocabulary",
}


class Failed(Exception):
    """A case without a result; the message goes into the results."""


class Clock:
    """How much of the budget is left."""

    def __init__(self, budget):
        self.end = time.monotonic() + budget

    def left(self):
        return self.end - time.monotonic()


def run(command, limit):
    """Standard output of a command. Failed with the end of what it said if it fails or takes too long."""
    if limit <= 0:
        raise Failed("not run: the budget of time was spent")
    try:
        process = subprocess.Popen([str(part) for part in command], text=True, errors="replace", start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise Failed(str(error)) from None
    try:
        out, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own processes too: they would keep the GPU
        process.communicate()
        raise Failed(f"no end within {limit:.0f} s") from None
    if process.returncode != 0:
        last = (said.strip() or out.strip()).splitlines()[-4:]
        raise Failed(f"exit code {process.returncode}: " + " | ".join(last)[-600:])
    return out


def measure_case(name, args, limit):
    """What `tessera bench classify` writes for one case: {"machine", "cases": [one], ...}."""
    options, share = (DUELS | SINGLES)[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "case.json"
        devices = "cuda:" + ",".join(str(gpu) for gpu in range(args.gpus))
        ids = ["--ids", args.ids] if args.ids else []
        print(run([args.tessera, "bench", "classify", *options.split(), "--device", devices, "--seconds",
                   share * args.seconds, "--sentences", args.sentences, *ids, "--json", path, *args.more], limit),
              flush=True)
        return json.loads(path.read_text())


def measure_torch(args, limit):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "torch.json"
        run([args.python, PEER, "--gpus", args.gpus, "--seconds", 0.3 * args.seconds, "--json", path], limit)
        return json.loads(path.read_text())


def measure_text(kind, args, limit):
    """`tessera classify` of many lines of text with the shipped model."""
    with tempfile.TemporaryDirectory() as folder:
        source, told = pathlib.Path(folder) / "sentences.txt", pathlib.Path(folder) / "statistics.json"
        sentences = [line.split("\t")[1] for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
        with open(source, "w", encoding="utf-8") as file:
            lines = "".join(sentence + "\n" for sentence in sentences)
            for _ in range(args.text_sentences // len(sentences)):
                file.write(lines)
        run([args.tessera, "classify", "--model", SHIPPED_MODEL, "--input", source, "--format", "text", "--output-format",
             kind, "--output", pathlib.Path(folder) / "out", "--statistics", told], limit)
        return json.loads(told.read_text())


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def case_figures(runs):
    """The figures of a case that documents quote, from its runs."""
    cases = [run["cases"][0] for run in runs]
    last = cases[-1]
    figures = {"sentences_per_second": statistics.median(c["sustained"]["sentences_per_second"]["median"] for c in cases),
               "min": min(c["sustained"]["sentences_per_second"]["min"] for c in cases),
               "max": max(c["sustained"]["sentences_per_second"]["max"] for c in cases),
               "latency_sentences": last["latency"]["sentences"],
               "latency_ms": 1e3 * statistics.median(c["latency"]["seconds"]["median"] for c in cases),
               "latency_sentences_per_second": statistics.median(c["latency"]["sentences_per_second"] for c in cases),
               "largest_error": max(c["check"]["largest_error"] for c in cases), "error_bound": last["check"]["bound"],
               "rounds": len(cases), "description": last["description"], "ids": runs[-1]["ids"],
               "embeddings": runs[-1]["embeddings"]}
    if "flops_per_second" in last["sustained"]:
        figures["tflops"] = statistics.median(c["sustained"]["flops_per_second"] for c in cases) / 1e12
    if "limit" in last:
        limits = [c["limit"] for c in cases]
        figures |= {"limit": last["limit"]["what"], "fraction": statistics.median(l["fraction"]["median"] for l in limits),
                    "fraction_min": min(l["fraction"]["min"] for l in limits),
                    "fraction_max": max(l["fraction"]["max"] for l in limits),
                    "limit_sentences_per_second": statistics.median(l["sentences_per_second"] for l in limits)}
        unit = 1e12 if last["limit"]["unit"] == "FLOP" else 1e9
        name = "tflops" if unit == 1e12 else "gb_per_s"
        figures[f"limit_{name}"] = statistics.median(l["rate"]["median"] for l in limits) / unit
        figures[f"reached_{name}"] = statistics.median(l["reached_rate"] for l in limits) / unit
    if last.get("states"):
        figures |= {"sm_mhz": statistics.mean(s["sm_mhz"] for s in last["states"]),
                    "watts_a_gpu": statistics.mean(s["watts"] for s in last["states"])}
    return figures


def torch_rate(measured, name):
    """PyTorch's rate for the same input, sustained; for compute that of its best batch."""
    part = measured[TORCH_MEMBER[name]]
    if name == "resident_fp16":
        return max(batch["sustained_sentences_per_second"] for batch in part.values())
    return part["sustained_sentences_per_second"]


def ratios(results):
    """Tessera to PyTorch, round by round, and to the school project's result where the input is like for like."""
    found = {}
    for name in DUELS:
        pairs = [(run["cases"][0]["sustained"]["sentences_per_second"]["median"], torch_rate(peer, name))
                 for run, peer in zip(results["runs"].get(name, []), results["runs"].get("torch", []))]
        if pairs:
            found[f"{name}_to_torch"] = spread([ours / theirs for ours, theirs in pairs])
            found[f"{name}_torch_sentences_per_second"] = statistics.median(theirs for _, theirs in pairs)
    for name, other in (("resident_fp16_direct", None), ("resident_ids_fp16_distinct", "resident_ids_fp16_direct")):
        if name in results["cases"]:
            torch = found.get("resident_fp16_torch_sentences_per_second")
            rate = results["cases"][name]["sentences_per_second"]
            if torch:
                found[f"{name}_to_torch"] = spread([rate / torch])
            if other and other in results["cases"]:
                found[f"{name}_to_direct"] = rate / results["cases"][other]["sentences_per_second"]
    if "embeddings_fp16" in results["cases"]:
        found["embeddings_fp16_to_seed"] = (results["cases"]["embeddings_fp16"]["sentences_per_second"] /
                                            SEED["sentences_per_second"])
    return found


def table(results):
    """Rows for a document: what, sustained rate, all sentences at once, of the limit, to PyTorch, error."""
    rows = []
    for name in [name for name in WORDS if name in results["cases"]]:
        case = results["cases"][name]
        ratio = results["ratios"].get(f"{name}_to_torch")
        limit = f"{case['fraction']:.3f} of {case['limit']}" if "fraction" in case else "-"
        rows.append([WORDS[name], f"{case['sentences_per_second']:,.0f}", f"{case['latency_ms']:.2f}", limit,
                     f"{ratio['median']:.2f}" if ratio else "-",
                     f"{case['largest_error']:.1e} of {case['error_bound']:g}"])
    sentences = next((f"{case['latency_sentences']:,}" for case in results["cases"].values()), "all")
    return {"columns": ["input and precision", "sentences/s sustained", f"{sentences} at once, ms", "of the limit",
                        "to PyTorch", "largest error"], "rows": rows}


def machine_of(measured):
    return {name: value for name, value in measured["machine"].items() if name != "host"}


def file_name(machine, gpus):
    """bench/results/classify_h100x1.json"""
    model = re.search(r"\b([A-Z]+\d+\w*)\b", next((machine[key] for key in machine if key.startswith("GPU ")), ""))
    return f"classify_{model[1].lower() if model else 'gpu'}x{gpus}.json"


def summarise(results, args):
    results["cases"] = {name: case_figures(runs) for name, runs in results["runs"].items() if name in DUELS | SINGLES}
    for name in ("text_jsonl", "text_bin"):
        if name in results["runs"]:
            results["text"][name] = results["runs"][name][-1]
    results["ratios"] = ratios(results)
    results["table"] = table(results)
    path = output_path(args, results["machine"])
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)
    return path


def output_path(args, machine):
    return args.output or ROOT / "bench" / "results" / file_name(machine, args.gpus)


def earlier(args, machine):
    """Results in the file that were measured on the same machine with as many GPUs."""
    path = output_path(args, machine)
    if path.exists():
        results = json.loads(path.read_text())
        if results.get("machine") == machine and results.get("gpus") == args.gpus:
            return results
    return None


def measure(name, args, limit):
    if name == "torch":
        return measure_torch(args, limit)
    if name.startswith("text_"):
        return measure_text(name.removeprefix("text_"), args, limit)
    return measure_case(name, args, limit)


def sequence(args):
    """The cases in the order they run: what PyTorch is compared with, PyTorch, again, then the rest."""
    duels = [name for name in (*DUELS, "torch") if name in args.cases]
    return duels * args.rounds + [name for name in args.cases if name not in duels]


def fresh_results(args):
    return {"what": " ".join(__doc__.split("\n\n")[2].split()), "gpus": args.gpus, "gpu": "", "machine": {},
            "date": datetime.date.today().isoformat(), "seconds": args.seconds, "seed": SEED, "cases": {}, "text": {},
            "ratios": {}, "table": {}, "failed": {}, "runs": {}}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tessera", help="the built command")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs 0 to this many")
    parser.add_argument("--cases", help="names with commas between: " + ", ".join(CASES))
    parser.add_argument("--ids", type=pathlib.Path, help="real int32 [N, 16] rows; else random sentences")
    parser.add_argument("--sentences", type=int, default=16384)
    parser.add_argument("--text-sentences", type=int, default=4_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a sustained block; less where less matters")
    parser.add_argument("--rounds", type=int, default=1, help="of the cases that PyTorch is compared with")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one case")
    parser.add_argument("--budget", type=float, default=360.0, help="seconds for all cases")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has PyTorch")
    parser.add_argument("--output", type=pathlib.Path, help="instead of bench/results/classify_<gpu>x<n>.json")
    parser.add_argument("more", nargs="*", help="options for the command, after --")
    args = parser.parse_args()
    standard = CASES if args.gpus == 1 else (*MANY_GPUS, "torch")
    args.cases = args.cases.split(",") if args.cases else list(standard)
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        sys.exit(f"classify_table: --cases: got {', '.join(unknown)}, expected some of {', '.join(CASES)}")
    return args


def main():
    args = parse()
    clock, results = Clock(args.budget), fresh_results(args)
    measured_now = set()
    for name in sequence(args):
        begin = time.monotonic()
        try:
            measured = measure(name, args, min(args.timeout, clock.left()))
        except Failed as error:
            print(f"classify_table: {name}: {error}", file=sys.stderr, flush=True)
            results["failed"][name] = str(error)
        else:
            if name in DUELS | SINGLES and not results["machine"]:
                machine = machine_of(measured)
                before = earlier(args, machine)
                kept = {} if before is None else before["runs"]
                results["machine"], results["gpu"] = machine, machine.get("GPU 0", "").split(",")[0]
                results["runs"] = {k: v for k, v in kept.items() if k not in args.cases} | results["runs"]
            if name not in measured_now:
                results["runs"][name] = []
            measured_now.add(name)
            results["runs"][name].append(measured)
        if results["machine"] or name == sequence(args)[-1]:  # the machine names the file
            path = summarise(results, args)
        print(f"classify_table: {name}: {time.monotonic() - begin:.0f} s, {clock.left():.0f} s left", file=sys.stderr,
              flush=True)
    print(f"classify_table: {path}: {len(results['cases'])} cases, {len(results['failed'])} failed", file=sys.stderr)
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
