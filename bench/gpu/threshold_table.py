#!/usr/bin/env python3
"""What skipping experts costs and gains: accuracy, error and speed by --expert-threshold, into bench/results.

  threshold_table.py build/cuda/tools/tessera/tessera --labelled dev.tsv --ids inputs.bin

Accuracy is the shipped model's on labelled sentences (sentence, tab, label); error (against the fp64 oracle, 16 records) and
speed are those of a synthetic full-size model on token ids, fp16. Needs one GPU and about a minute.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "movie-reviews"
THRESHOLDS = (0, 0.01, 0.05, 0.1, 0.3, 0.5)
COPIES = 32  # of the ids: long enough to time


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def accuracy(tessera, labelled, threshold, folder):
    told = folder / "evaluate.json"
    run(tessera, "evaluate", "--model", MODEL, "--input", labelled, "--text-column", 1, "--label-column", 2, "--device",
        "cuda:0", "--expert-threshold", threshold, "--statistics", told, "--quiet")
    return json.loads(told.read_text())["accuracy_percent"]


def report(tessera, model, ids, threshold, folder):
    told = folder / "report.json"
    run(tessera, "verify", "--report", "--model", model, "--ids", ids, "--device", "cuda:0", "--precision", "fp16",
        "--expert-threshold", threshold, "--json", told, "--quiet")
    rows = json.loads(told.read_text())["rows"]
    return rows[-1]  # the row with the threshold comes behind the one without


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tessera")
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--ids", required=True, type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "bench" / "results" / "expert_threshold_h100.json")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model, ids = folder / "full-size", folder / "ids.bin"
        run(args.tessera, "synth", "--preset", "apws25", "--seed", 1, "--output", model)
        ids.write_bytes(args.ids.read_bytes() * COPIES)
        for threshold in THRESHOLDS:
            full = report(args.tessera, model, ids, threshold, folder)
            rows.append({"threshold": threshold, "accuracy_percent": accuracy(args.tessera, args.labelled, threshold, folder),
                         "max_error": full["max_error"], "sentences_per_second": full["sentences_per_second"],
                         "description": full["description"].splitlines()[0]})
    table = {"columns": ["experts below", "shipped model, accuracy, %", "full-size model, largest error",
                         "full-size model, ids, sentences/s"],
             "rows": [[f"{row['threshold']:g}" if row["threshold"] else "none skipped", f"{row['accuracy_percent']:.2f}",
                       f"{row['max_error']:.1e}", f"{row['sentences_per_second']:,.0f}"] for row in rows]}
    args.output.write_text(json.dumps({"rows": rows, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
