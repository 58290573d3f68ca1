#!/usr/bin/env python3
"""What the documents show of runs of vllm_h200.py: rows, tables and a summary in one file.

  vllm_tables.py RUN.json --logs FOLDER --out bench/results/vllm_h200.json      FOLDER: logs of a run with --profile
  vllm_tables.py bench/results/vllm_h200.json                                   tables anew

Rates are output tokens a second, medians of a run's repeats; a ratio above 1 says that the engine is faster with the plug-in. It is
called level within LEVEL, and where the repeats of one side reach into those of the other. Plain Python.
"""
import argparse
import json
import math
import os
import pathlib
import re
import statistics
import sys

LEVEL = 0.03  # as bench/peers/verdict.py
OURS, THEIRS = "tessera", "vllm"
TOKENS_OUT = 128
STEP = re.compile(r"PROFILE (.*): ([\d.]+) ms, kernels ([\d.]+) ms")
KERNEL = re.compile(r"PROFILE +([\d.]+) +([\d.]+) x  (.*)")


def profile_of(log):
    """[{"what", "wall_ms", "kernels_ms", "kernels": [[us a step, calls a step, name]]}] of a side's log."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if step := STEP.match(line):
            found.append({"what": step[1], "wall_ms": float(step[2]), "kernels_ms": float(step[3]), "kernels": []})
        elif found and (kernel := KERNEL.match(line)):
            found[-1]["kernels"].append([float(kernel[1]), float(kernel[2]), kernel[3].strip()])
    return found


def parts(row):
    """[(what, {side: [rate of a repeat]})]"""
    found = [("64 requests at once, 512 tokens in", {name: side.get("throughput") for name, side in row["sides"].items()})]
    for batch in row["sides"][OURS].get("latency", {}):
        found.append((f"{batch} request{'s' if batch != '1' else ''} at once, 128 tokens in", {
            name: [int(batch) * TOKENS_OUT / seconds for seconds in side.get("latency", {}).get(batch, [])]
            for name, side in row["sides"].items()}))
    return [(what, rates) for what, rates in found if all(rates.values())]


def rate(values):
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def speed_table(rows):
    lines = []
    for row in rows:
        for what, rates in parts(row):
            ratio = statistics.median(rates[OURS]) / statistics.median(rates[THEIRS])
            lines.append([row["format"], what, rate(rates[OURS]), rate(rates[THEIRS]), f"{ratio:.2f}",
                          word(rates[OURS], rates[THEIRS])])
    return {"columns": ["weights", "what", "with the plug-in, tokens/s", "without it", "ratio", "so Tessera is"], "rows": lines}


def tokens_table(rows):
    lines = []
    for row in rows:
        for what, found in (("with the plug-in against without", row.get("tokens")),
                            ("with it, alone against in a batch", row["sides"][OURS].get("alone")),
                            ("without it, alone against in a batch", row["sides"][THEIRS].get("alone"))):
            if found:
                lines.append([row["format"], what, found["requests"], f"{found['before_difference']} of {found['positions']}",
                              found["ties"], f"{found['largest_tie']:.3f}", len(found["no_ties"]), f"{found['largest_difference']:.3f}"])
    return {"columns": ["weights", "compared", "requests", "tokens before the first difference", "part at a tie", "largest tie, nats",
                        "part elsewhere", "largest difference before, nats"], "rows": lines}


def profile_table(rows):
    """Of a prefill: kernels of both sides and those of one alone. In a graph of a step kernels wait inside for each other, so that
    their times add up to more than the step."""
    lines = []
    for row in rows:
        steps = {name: next((step for step in side.get("profile", []) if "prefill" in step["what"]), None)
                 for name, side in row["sides"].items()}
        if not all(steps.values()):
            continue
        names = [{kernel[2] for kernel in step["kernels"]} for step in steps.values()]
        shared = set.intersection(*names)
        for name, words in ((OURS, "with the plug-in"), (THEIRS, "without it")):
            own = sum(us for us, _, kernel in steps[name]["kernels"] if kernel not in shared) / 1e3
            copies = sum(us for us, _, kernel in steps[name]["kernels"] if kernel.startswith("Memcpy DtoD")) / 1e3
            lines.append([row["format"], words, f"{steps[name]['wall_ms']:.1f}", f"{steps[name]['kernels_ms']:.1f}", f"{own:.1f}",
                          f"{copies:.2f}"])
    return {"columns": ["weights", "side", "from request to token, ms", "all kernels, ms", "kernels that the other side has not, ms",
                        "copies on the device, ms"], "rows": lines}


def word(ours, theirs):
    """Of both sides' repeats."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    if ratio > 1 + LEVEL and min(ours) > max(theirs):
        return "ahead"
    return "behind" if ratio < 1 - LEVEL and max(ours) < min(theirs) else "level"


def summary(rows):
    found = {"rows": 0, "requests": sum(row["tokens"]["requests"] for row in rows if row.get("tokens")),
             "no_ties": sum(len(row["tokens"]["no_ties"]) for row in rows if row.get("tokens"))}
    ratios, words = [], []
    for row in rows:
        mine = {}
        for what, rates in parts(row):
            medians = {name: statistics.median(values) for name, values in rates.items()}
            mine[what.split()[0]] = {**medians, "ratio": medians[OURS] / medians[THEIRS]}
            ratios.append(mine[what.split()[0]]["ratio"])
            words.append(word(rates[OURS], rates[THEIRS]))
        found[row["format"]] = mine
    found |= {"rows": len(ratios), "least": min(ratios), "most": max(ratios),
              "mean": math.exp(sum(map(math.log, ratios)) / len(ratios)),
              **{name: words.count(name) for name in ("ahead", "level", "behind")}}
    return found


def reported(rows):
    return {"summary": summary(rows), "speed_table": speed_table(rows), "tokens_table": tokens_table(rows),
            "profile_table": profile_table(rows), "rows": rows}


def trimmed(row, logs):
    for name, side in row["sides"].items():
        for key in ("choices", "stage", "stages"):
            side.pop(key, None)
        log = logs and logs / f"vllm_{row['format']}_{name}.log"
        if log and log.exists():
            side["profile"] = profile_of(log)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--logs", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    content = json.loads(arguments.file.read_text())
    rows = content["rows"] if isinstance(content, dict) else [trimmed(row, arguments.logs) for row in content]
    if any(row["code"] == 1 for row in rows):
        sys.exit("vllm_tables.py: a side of a row did not come to its end")
    path = arguments.out or arguments.file
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(reported(rows), indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
