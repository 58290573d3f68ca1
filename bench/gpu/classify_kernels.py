#!/usr/bin/env python3
"""Time and memory traffic of each kernel of the classifier, by Nsight Compute, into bench/results/classify_kernels_<gpu>.json.

  classify_kernels.py build/cuda/tools/tessera/tessera --ids inputs.bin        needs ncu and about a minute of one GPU

The full-size model in fp16, one micro-batch a form; clocks are left alone. Of the launches of one kernel in a form the median
counts, but for the set-up's.
"""
import argparse
import collections
import csv
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
METRICS = {"gpu__time_duration.sum": "seconds", "dram__bytes.sum": "dram_bytes"}
UNITS = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3, "s": 1.0, "second": 1.0,
         "byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
FORMS = {  # options, sentences of a micro-batch
    "embeddings_dft": ("--path embeddings --form dft --batch 512", 512),
    "embeddings_direct": ("--path embeddings --form direct --batch 512", 512),
    "resident_distinct": ("--path resident --form distinct --data ids --batch 8192", 8192),
    "ids_vocab": ("--path ids --batch 8192", 8192),
}


def profile(args, options, sentences):
    """Rows of ncu's CSV: kernel, grid, metric, unit, value."""
    command = ["ncu", "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS), "--launch-skip", "1",
               "--launch-count", str(args.launches), args.tessera, "bench", "classify", "--device", "cuda:0", "--precision",
               "fp16", "--seconds", "0.01", "--check", "1", "--sentences", str(sentences), "--ids", args.ids, *options.split()]
    done = subprocess.run(command, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    lines = done.stdout.splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        sys.exit(f"classify_kernels: ncu says: {(done.stderr or done.stdout)[-2000:]}")
    return list(csv.DictReader(line for line in lines[header:] if line.startswith('"')))


def kernels(rows, sentences):
    """By name; one that several stages use also by the kernel before it."""
    found, last_id, last_name, before = collections.defaultdict(lambda: collections.defaultdict(list)), None, "", ""
    for row in rows:
        name = row["Kernel Name"].split("(")[0].split("<")[0].split("::")[-1].split(" ")[-1].removesuffix("_kernel")
        if row["ID"] != last_id:
            before, last_id, last_name = last_name, row["ID"], name
        key = f"{name}_after_{before}" if name == "implicit_gemm" else name
        found[key][METRICS[row["Metric Name"]]].append(float(row["Metric Value"].replace(",", "")) * UNITS[row["Metric Unit"]])
    result = {}
    for key, metrics in found.items():
        seconds = statistics.median(metrics["seconds"])
        result[key] = {"microseconds": 1e6 * seconds, "nanoseconds_a_sentence": 1e9 * seconds / sentences,
                       "dram_gb_per_s": statistics.median(metrics["dram_bytes"]) / seconds / 1e9,
                       "launches": len(metrics["seconds"])}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tessera")
    parser.add_argument("--ids", required=True)
    parser.add_argument("--launches", type=int, default=60)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "bench" / "results" / "classify_kernels_h100.json")
    args = parser.parse_args()
    gpu = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], text=True, stdout=subprocess.PIPE,
                         check=True).stdout.splitlines()[0]
    forms = {name: {"sentences": sentences, "kernels": kernels(profile(args, options, sentences), sentences)}
             for name, (options, sentences) in FORMS.items()}
    args.output.write_text(json.dumps({"gpu": gpu, "forms": forms}, indent=1) + "\n")


if __name__ == "__main__":
    main()
