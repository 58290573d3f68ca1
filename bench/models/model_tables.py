#!/usr/bin/env python3
"""What the documents show of a file of run.py: tables and a summary, written into the file itself.

  model_tables.py bench/results/models_h200.json

Rates are tokens a second: higher is better. A row's ratio is Tessera's rate over that of the fastest other implementation of the
same model and weights; within LEVEL it is called level. Plain Python.
"""
import argparse
import json
import math
import os
import pathlib

OURS = "tessera"
LEVEL = 0.03  # runs of one implementation differ by as much
NAMES = {"qwen3-30b-a3b": "Qwen3-30B-A3B", "olmoe-1b-7b": "OLMoE-1B-7B", "qwen3-next-80b-a3b": "Qwen3-Next-80B-A3B",
         "deepseek-v3": "DeepSeek-V3"}
COLUMNS = ("eager", "batched_mm", "grouped_mm", "deepgemm", OURS)
# (phase, sequences, tokens) that run.py measures; what a run of few seconds should have first.
ORDER = [("decode", 32, 1), ("prefill", 1, 4096), ("greedy", 0, 0), ("decode", 1, 1), ("prefill", 1, 16384), ("decode", 128, 1),
         ("decode", 8, 1), ("batch", 64, 64), ("prefill", 1, 512)]
GIB = 1 << 30


def words(row):
    if row["phase"] == "prefill":
        return f"prefill of {row['tokens']:,} tokens"
    if row["phase"] == "greedy":
        return "greedy tokens"
    if row["phase"] == "decode":
        return "decode, " + ("1 sequence" if row["sequences"] == 1 else f"{row['sequences']} sequences")
    return f"{row['sequences']} requests at once"


def model(row):
    return f"{NAMES[row['family']]}, {row['layers']} layers"


def cells(rows):
    """[{"model", "format", "what", "rates": {implementation: row}}] of what was timed, in the file's order."""
    found = {}
    for row in rows:
        if row["phase"] in ("prefill", "decode", "batch"):
            key = (model(row), row["format"], words(row))
            cell = found.setdefault(key, {"model": key[0], "format": key[1], "what": key[2], "phase": row["phase"],
                                          "size": row["sequences"] * row["tokens"], "rates": {}})
            if row.get("tokens_per_s"):
                cell["rates"][row["implementation"]] = row
    phases = ("prefill", "decode", "batch")
    models = list(dict.fromkeys(cell["model"] for cell in found.values()))
    timed = [cell for cell in found.values() if cell["rates"]]
    return sorted(timed, key=lambda cell: (models.index(cell["model"]), cell["format"], phases.index(cell["phase"]), cell["size"]))


def compared(cell):
    """(fastest other implementation, ratio), or None where there is nothing to compare."""
    others = {name: row["tokens_per_s"] for name, row in cell["rates"].items() if name != OURS}
    if OURS not in cell["rates"] or not others:
        return None
    best = max(others, key=others.get)
    return best, cell["rates"][OURS]["tokens_per_s"] / others[best]


def rate(cell, name):
    row = cell["rates"].get(name)
    if row is None:
        return "-"
    launched = cell["phase"] == "decode" and not row["graph"]
    return f"{row['tokens_per_s']:,.0f}" + (" (launched)" if launched else "")


def speed_table(found):
    names = [name for name in COLUMNS if any(name in cell["rates"] for cell in found)]
    rows = []
    for cell in found:
        pair = compared(cell)
        rows.append([cell["model"], cell["format"], cell["what"], *(rate(cell, name) for name in names),
                     f"{pair[1]:.2f}" if pair else "-"])
    return {"columns": ["model", "weights", "what", *names, "tessera / fastest other"], "rows": rows}


def lost_table(found):
    rows = []
    for cell in found:
        pair = compared(cell)
        if pair and pair[1] < 1:
            rows.append([cell["model"], cell["format"], cell["what"], pair[0], rate(cell, pair[0]), rate(cell, OURS), f"{pair[1]:.2f}"])
    return {"columns": ["model", "weights", "what", "fastest", "its tokens/s", "tessera's", "ratio"], "rows": rows or [["none"] + [""] * 6]}


def memory_table(rows):
    """Of the longest prefill of each model: what a call takes beside weights."""
    longest = {}
    for row in rows:
        if row["phase"] == "prefill" and row.get("peak_bytes"):
            key = (model(row), row["format"])
            longest.setdefault(key, {}).setdefault(row["tokens"], {})[row["implementation"]] = row["peak_bytes"]
    found = {key: max(sizes.items()) for key, sizes in longest.items()}
    names = [name for name in COLUMNS if any(name in peaks for _, peaks in found.values())]
    return {"columns": ["model", "weights", "prefill of", *(f"{name}, GiB" for name in names)],
            "rows": [[*key, f"{tokens:,} tokens", *(f"{peaks[name] / GIB:.2f}" if name in peaks else "-" for name in names)]
                     for key, (tokens, peaks) in found.items()]}


def tokens_table(rows):
    return {"columns": ["model", "weights", "implementation", "tokens before the first difference", "largest tie", "within the limit"],
            "rows": [[model(row), row["format"], row["implementation"], f"{row['before']} of {row['of']}", f"{row['largest_tie']:.3f}",
                      "yes" if row["checked"] else "no"] for row in rows if row["phase"] == "greedy" and "before" in row]}


def left_out_table(rows):
    """Implementations that could not run at all, and why."""
    reasons = {}
    for row in rows:
        if row.get("left_out"):
            reason = row["left_out"].split(". ")[0]
            reasons.setdefault((model(row), row["format"], row["implementation"], reason), []).append(row)
    return {"columns": ["model", "weights", "implementation", "why there is no figure", "rows"],
            "rows": [[*key, len(mine)] for key, mine in reasons.items()]}


def unmeasured_table(rows):
    """What ORDER has and no row: a run of few seconds ended before."""
    there = {}
    for row in rows:
        there.setdefault((model(row), row["format"]), set()).add((row["phase"], row["sequences"], row["tokens"]))
    missing = [[*key, "; ".join(words({"phase": part[0], "sequences": part[1], "tokens": part[2]}) for part in ORDER if part not in found)]
               for key, found in there.items()]
    return {"columns": ["model", "weights", "not measured"], "rows": [line for line in missing if line[2]]}


def word(ratio):
    return "ahead" if ratio > 1 + LEVEL else "behind" if ratio < 1 - LEVEL else "level"


def summary(found):
    pairs = [(cell, *compared(cell)) for cell in found if compared(cell)]
    ratios = [ratio for *_, ratio in pairs]
    if not ratios:
        return {"rows": 0}
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    by_phase = {}
    for cell, _, ratio in pairs:
        by_phase.setdefault(cell["phase"], []).append(ratio)
    return {"rows": len(ratios), "mean": mean, "least": min(ratios), "most": max(ratios),
            **{name: sum(word(ratio) == name for ratio in ratios) for name in ("ahead", "level", "behind")},
            **{phase: math.exp(sum(map(math.log, mine)) / len(mine)) for phase, mine in by_phase.items()}}


def reported(document):
    rows = document["rows"]
    found = cells(rows)
    return {**document, "summary": summary(found), "speed_table": speed_table(found), "lost_table": lost_table(found),
            "memory_table": memory_table(rows), "tokens_table": tokens_table(rows), "left_out_table": left_out_table(rows),
            "unmeasured_table": unmeasured_table(rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    path = parser.parse_args().file
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(reported(json.loads(path.read_text())), indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
