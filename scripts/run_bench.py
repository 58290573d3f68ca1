#!/usr/bin/env python3
"""Measures the CPU back end on this machine and writes bench/results/cpu_*.json. Takes a few minutes.

  run_bench.py                       the shipped model from text, the full-size model from embeddings and token ids
  run_bench.py --ids FILE            real int32 [N, 16] rows for the full-size token-id run instead of random words
"""
import argparse
import datetime
import json
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "test"
TESSERA = BUILD / "tools" / "tessera" / "tessera"
RESULTS = ROOT / "bench" / "results"
TEXT_SENTENCES = 200_000
REPEATS = 5


def run(*command):
    done = subprocess.run([str(c) for c in command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done


def environment():
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    return {"cpu": cpu[1] if cpu else platform.processor(), "commit": commit.stdout.strip(),
            "date": datetime.date.today().isoformat(), "python": platform.python_version()}


def save(name, result):
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}: {json.dumps(result, indent=2)}", flush=True)


def text_throughput():
    """The shipped model from text lines to JSON lines: the whole command, start-up included, and its own rate."""
    sentences = [line.split("\t")[1] for line in
                 (ROOT / "examples" / "data" / "reviews.tsv").read_text(encoding="utf-8").splitlines()]
    result = {"sentences": TEXT_SENTENCES, "repeats": REPEATS}
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "sentences.txt"
        source.write_text("".join(sentences[i % len(sentences)] + "\n" for i in range(TEXT_SENTENCES)),
                          encoding="utf-8")
        statistics_file = pathlib.Path(folder) / "statistics.json"
        rates, whole, memory = [], [], []
        for _ in range(REPEATS):
            run(TESSERA, "classify", "--model", "models/movie-reviews", "--input", source, "--output-format", "jsonl",
                "--output", pathlib.Path(folder) / "out.jsonl", "--statistics", statistics_file)
            told = json.loads(statistics_file.read_text())
            rates.append(told["sentences_per_second"])
            whole.append(TEXT_SENTENCES / told["process_seconds"])
            memory.append(told["peak_memory_bytes"])
        result |= {"sentences_per_second": statistics.median(rates), "spread": [min(rates), max(rates)],
                   "whole_command_sentences_per_second": statistics.median(whole),
                   "peak_memory_mib": max(memory) / 2**20, "threads": told["threads"]}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=pathlib.Path)
    args = parser.parse_args()
    run("cmake", "--preset", "test", "--log-level=WARNING")
    run("cmake", "--build", "--preset", "test")
    save("cpu_text.json", {**environment(), **text_throughput()})
    extra = ["--ids", args.ids] if args.ids else []
    full_size = json.loads(run(BUILD / "bench" / "bench_classifier_cpu", *extra).stdout)
    save("cpu_full_size.json", {**environment(), **full_size})


if __name__ == "__main__":
    main()
