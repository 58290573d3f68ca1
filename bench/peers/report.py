#!/usr/bin/env python3
"""From the records of a run to its JSON file, tables, verdict and Markdown page. Plain Python; the schema is in run.py.

  report.py bench/results/peers_h100.json     makes tables, verdict and page anew from the file's cells: after a move, or
                                              after a change of this script
  report.py FILE --add OTHER                  first adds the cells of another run that FILE lacks; a cell is of one run, with
                                              all its layers and its dense products, and meta.runs says which runs there are
"""
import argparse
import json
import pathlib
import statistics
import sys

import cases
import grid

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODE_WORDS = {"graph_cold": "CUDA graph, cold L2", "graph_warm": "CUDA graph, back to back", "eager": "as called, cold L2"}
LAYER_NAMES = [layer for layers in cases.LAYERS.values() for layer in layers if layer not in cases.BOUNDS]


def summarized(rounds):
    """Of the times of each round, in us: the median of all, the extremes, how many, each round's median."""
    every = [us for times in rounds for us in times]
    return {"us": round(statistics.median(every), 2), "min": round(min(every), 2), "max": round(max(every), 2),
            "count": len(every), "rounds": [round(statistics.median(times), 2) for times in rounds if times]}


def good_times(record, layer):
    """The layer's times by mode, or {} where it was not measured or its result was wrong."""
    entry = record["layers"].get(layer, {})
    return {} if entry.get("problem") else entry.get("times", {})


def best_time(record, layer):
    """(us, mode) that a user gets at best: a graph with a cold cache, or as called where no graph can be made."""
    times = good_times(record, layer)
    for mode in ("graph_cold", "eager"):
        if mode in times:
            return times[mode]["us"], mode
    return None, None


def tflops(record, us):
    return record["flop"] / us / 1e6


def measured_layers(records):
    """In the order of cases.LAYERS; one whose results were all wrong is among them, so that tables show it."""
    return [name for name in LAYER_NAMES if any(record["layers"].get(name, {}).get("times") for record in records)]


def verdict(records):
    """Every cell from LARGE_TOKENS on in which a peer was faster than ours, in any mode that both were measured in."""
    lost = []
    for record in records:
        ours = good_times(record, cases.OURS)
        for name in measured_layers(records) if record["tokens"] >= cases.LARGE_TOKENS else ():
            theirs = good_times(record, name) if name != cases.OURS else {}
            for mode in [mode for mode in cases.MODES if mode in ours and mode in theirs]:
                if theirs[mode]["us"] < ours[mode]["us"]:
                    lost.append({"verdict": "lost", "preset": record["preset"], "tokens": record["tokens"],
                                 "routing": record["routing"], "peer": name, "mode": mode,
                                 "ours_us": ours[mode]["us"], "peer_us": theirs[mode]["us"],
                                 "ratio": round(ours[mode]["us"] / theirs[mode]["us"], 3)})
    return lost


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def marked(value, mode, digits=0):
    return number(value, digits) + (" *" if mode == "eager" else "")


def entry_text(record, layer, show):
    """The cell of a table: a figure, or why there is none."""
    entry, (us, mode) = record["layers"].get(layer, {}), best_time(record, layer)
    if us is not None:
        return marked(show(us), mode, 1 if show(us) < 100 else 0)
    return "WRONG" if entry.get("problem") else "failed" if entry.get("failed") else "-"


def layer_table(records):
    """TFLOP/s of whole layers from LARGE_TOKENS on."""
    names = measured_layers(records)
    rows = [[record["preset"], record["tokens"], record["routing"], number(tflops(record, record["dense"]["us"])),
             *(entry_text(record, name, lambda us, r=record: tflops(r, us)) for name in names), fastest_peer(record, names)]
            for record in records if record["tokens"] >= cases.LARGE_TOKENS]
    return {"columns": ["shape", "T", "routing", "dense cuBLAS", *(cases.TITLES[name] for name in names),
                        "ours / fastest peer"], "rows": rows}


def fastest_peer(record, names):
    """How many times as fast as the fastest peer we are, and which it is."""
    ours, peers = best_time(record, cases.OURS)[0], {name: best_time(record, name)[0] for name in names
                                                     if name != cases.OURS}
    peers = {name: us for name, us in peers.items() if us is not None}
    if ours is None or not peers:
        return "-"
    name = min(peers, key=peers.get)
    return f"{peers[name] / ours:.2f} ({cases.TITLES[name]})"


def decode_table(records):
    """Microseconds of whole layers up to DECODE_TOKENS, beside the time the weights in use take to be read."""
    names = measured_layers(records)
    rows = [[record["preset"], record["tokens"], number(record["floor_us"], 1),
             *(entry_text(record, name, lambda us: us) for name in names), fastest_peer(record, names)]
            for record in records if record["tokens"] <= cases.DECODE_TOKENS]
    return {"columns": ["shape", "T", "floor, us", *(cases.TITLES[name] for name in names), "ours / fastest peer"],
            "rows": rows}


def bounds_table(records):
    """TFLOP/s of what is no layer, beside ours."""
    names = [name for name in cases.BOUNDS if any(good_times(record, name) for record in records)]
    rows = [[record["preset"], record["tokens"], record["routing"], number(tflops(record, record["dense"]["us"])),
             *(entry_text(record, name, lambda us, r=record: tflops(r, us)) for name in [cases.OURS, *names])]
            for record in records if record["tokens"] >= cases.LARGE_TOKENS
            and any(good_times(record, name) for name in names)]
    return {"columns": ["shape", "T", "routing", "dense cuBLAS", *(cases.TITLES[n] for n in [cases.OURS, *names])],
            "rows": rows}


def modes_table(records):
    """How many times as fast as each peer we are: median, least and most over the cells, for each mode."""
    rows = []
    for name in measured_layers(records):
        for mode in cases.MODES if name != cases.OURS else ():
            ratios = [good_times(r, name)[mode]["us"] / good_times(r, cases.OURS)[mode]["us"] for r in records
                      if mode in good_times(r, name) and mode in good_times(r, cases.OURS)]
            if ratios:
                rows.append([cases.TITLES[name], MODE_WORDS[mode], len(ratios), f"{statistics.median(ratios):.2f}",
                             f"{min(ratios):.2f}", f"{max(ratios):.2f}"])
    return {"columns": ["peer", "mode", "cells", "median speed-up", "least", "most"], "rows": rows}


def versions_table(meta):
    rows = [[library, ", ".join(f"{name} {version}" for name, version in found.items())]
            for library, found in meta["versions"].items()]
    return {"columns": ["library", "versions"], "rows": rows}


def absent_table(absent):
    return {"columns": ["library", "why it was not measured"],
            "rows": [[entry["library"], (entry["reason"] + ("; " + entry["note"] if entry["note"] else "")).replace(
                "|", "/").replace("\n", " ")] for entry in absent]}


def trouble_table(records):
    """Every wrong result, failure and left-out measurement, with its reason; equal ones of a layer counted."""
    found = {}
    for record in records:
        for name, entry in record["layers"].items():
            for kind in ("problem", "failed", "skip"):
                if entry.get(kind):
                    key = (name, {"problem": "wrong", "failed": "failed", "skip": "left out"}[kind], entry[kind])
                    found.setdefault(key, []).append(f"{record['preset']} {record['tokens']} {record['routing']}")
    rows = [[cases.TITLES[name], kind, reason.replace("|", "/").replace("\n", " "),
             places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"]
            for (name, kind, reason), places in found.items()]
    return {"columns": ["layer", "what", "reason", "where"], "rows": rows}


def verdict_table(lost):
    rows = [[entry["preset"], entry["tokens"], entry["routing"], cases.TITLES[entry["peer"]], MODE_WORDS[entry["mode"]],
             number(entry["ours_us"], 1), number(entry["peer_us"], 1), f"{entry['ratio']:.3f}"] for entry in lost]
    return {"columns": ["shape", "T", "routing", "peer", "mode", "ours, us", "peer, us", "ours / peer"], "rows": rows}


def summary(records, lost):
    """Counts for running text."""
    large = [record for record in records if record["tokens"] >= cases.LARGE_TOKENS]
    ratios = []
    for record in large:
        ours, peers = best_time(record, cases.OURS)[0], [best_time(record, name)[0] for name in measured_layers(records)
                                                         if name != cases.OURS]
        peers = [us for us in peers if us is not None]
        if ours is not None and peers:
            ratios.append(min(peers) / ours)
    wrong = sum(1 for r in records for entry in r["layers"].values() if entry.get("problem"))
    return {"cells": len(records), "large_cells": len(large), "wrong_results": wrong, "lost": len(lost),
            "lost_cells": len({(e["preset"], e["tokens"], e["routing"]) for e in lost}),
            "fastest_peer_ratio": {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3),
                                   "max": round(max(ratios), 3)} if ratios else None}


def document(meta, records, absent, left_out):
    """The JSON file's content."""
    lost = verdict(records)
    return {"schema": 1, "meta": meta, "summary": summary(records, lost), "absent": absent, "verdict": lost,
            "left_out": [list(cell) for cell in left_out], "layer_table": layer_table(records),
            "decode_table": decode_table(records), "bounds_table": bounds_table(records),
            "modes_table": modes_table(records), "verdict_table": verdict_table(lost),
            "versions_table": versions_table(meta), "absent_table": absent_table(absent),
            "trouble_table": trouble_table(records), "cells": records}


SECTIONS = (
    ("Whole layers, TFLOP/s (6 T k H I / time)", "layer_table",
     "CUDA-graph replay with a cold L2 cache; * as called, where no graph can be made. Dense cuBLAS: two products of the same "
     "FLOPs, in the same run."),
    ("Small batches, microseconds", "decode_table",
     "The floor is the time in which the weights of the experts in use come from memory at the rate measured in this run."),
    ("Speed-up by mode", "modes_table", "Time of the peer over ours."),
    ("Bounds that are no layers, TFLOP/s", "bounds_table", ""),
    ("Where a peer was faster", "verdict_table",
     "From 512 tokens on, in any mode that both were measured in; the ratio is ours over the peer's time."),
    ("Versions", "versions_table", ""), ("Absent", "absent_table", ""),
    ("Wrong, failed and left out", "trouble_table", ""))


def markdown(content, name):
    """A page of the tables, between the markers by which scripts/figures.py keeps tables equal to the JSON file."""
    machine = content["meta"]["machine"]
    lines = ["# Whole MoE layers beside their peers", "",
             f"{machine['gpu']}, driver {machine['driver']}, {machine['power_limit']}; torch {machine['torch']}, CUDA "
             f"{machine['cuda']}; {content['meta']['date']}, commit {content['meta']['commit']}. Written by "
             "`bench/peers/run.py`; how it measures: [bench/peers](../peers/README.md).", ""]
    for title, member, words in SECTIONS:
        table = content[member]
        rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        body = "".join("| " + " | ".join(str(cell) for cell in row) + " |\n" for row in rows)
        lines += [f"## {title}", "", *([words, ""] if words else []), f"<!--table {name}#{member}-->",
                  body + "<!--/table-->", ""]
    return "\n".join(lines)


def write(path, content):
    """The JSON file and, beside it, the page; each replaces an older one at once."""
    resolved = path.resolve()
    name = resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path
    for target, text in ((path, json.dumps(content, indent=1)), (path.with_suffix(".md"), markdown(content, name).rstrip())):
        part = target.with_suffix(target.suffix + ".part")
        part.write_text(text + "\n")
        part.replace(target)


def made_anew(content):
    """The document with the same measurements."""
    return document(content["meta"], content["cells"], content["absent"],
                    [grid.Cell(*cell) for cell in content["left_out"]])


def run_of(content):
    """What distinguishes one run from another."""
    meta = content["meta"]
    return {name: meta.get(name) for name in ("machine", "hbm_bytes_per_second", "versions", "commit", "date", "seconds")}


def add_run(content, other):
    """`content` with the cells of `other` that it lacks."""
    def place(record):
        return record["preset"], record["tokens"], record["routing"]

    known = {place(record) for record in content["cells"]}
    new = [record for record in other["cells"] if place(record) not in known]
    runs = content["meta"].get("runs", [{**run_of(content), "cells": len(known)}])
    content["meta"]["runs"] = [*runs, {**run_of(other), "cells": len(new)}]
    content["meta"]["versions"] = {**other["meta"]["versions"], **content["meta"]["versions"]}
    content["cells"] += new
    measured = {place(record) for record in content["cells"]}
    content["left_out"] = [cell for cell in content["left_out"] if tuple(cell) not in measured]
    return content


def example(ours=100.0, peer=150.0, problem=""):
    """Content of a made-up run, for tests of what reads it."""
    def times(us):
        return {mode: summarized([[us, us + 1], [us - 1, us]]) for mode in cases.MODES}

    def record(preset, tokens, routing):
        cell = grid.Cell(preset, tokens, routing)
        return {"preset": preset, "tokens": tokens, "routing": routing, "flop": cases.flops(cell), "floor_us": 60.0,
                "dense": summarized([[80.0]]), "layers": {
                    "tessera": {"times": times(ours), "problem": problem}, "torch grouped_mm": {"times": times(peer)},
                    "liger": {"times": {"eager": summarized([[peer * 2]])}}, "deepgemm": {"failed": "ended with signal 9"},
                    "deepgemm GEMMs": {"times": times(90.0)}, "transformers batched_mm": {"skip": "too | large"}}}
    records = [record("olmoe", tokens, "random") for tokens in (1, 32, 512, 4096)] + [record("olmoe", 4096, "balanced")]
    meta = {"machine": {"gpu": "none", "driver": "0", "power_limit": "0 W", "torch": "0", "cuda": "0"}, "date": "1970-01-01",
            "commit": "none", "versions": {"torch": {"torch": "0"}}}
    absent = [{"library": "vllm", "reason": "ModuleNotFoundError: a|b", "note": ""}]
    return document(meta, records, absent, [grid.Cell("olmoe", 8, "random")])


def self_test():
    content, part = example(), example(ours=60.0)
    part["cells"] = [{**record, "tokens": 8} for record in part["cells"][:1]] + part["cells"]
    both = made_anew(add_run(example(), part))  # one cell is new and leaves the list of those left out; the others stay
    assert len(both["cells"]) == len(content["cells"]) + 1 and both["left_out"] == [] and content["left_out"]
    assert [run["cells"] for run in both["meta"]["runs"]] == [len(content["cells"]), 1]
    assert both["summary"]["fastest_peer_ratio"] == content["summary"]["fastest_peer_ratio"]
    assert content["verdict"] == [] and content["summary"]["fastest_peer_ratio"]["median"] == 1.5
    lost = example(ours=200.0)["verdict"]
    assert {entry["mode"] for entry in lost} == set(cases.MODES) and {entry["peer"] for entry in lost} == {"torch grouped_mm"}
    assert {entry["tokens"] for entry in lost} == {512, 4096} and lost[0]["ratio"] == round(200 / 150, 3)
    wrong = example(ours=50.0, problem="token 0: off")  # a wrong result wins nothing and is shown
    assert "WRONG" in [cell for row in wrong["layer_table"]["rows"] for cell in row] and not wrong["verdict"]
    assert wrong["summary"]["wrong_results"] == 5 and wrong["summary"]["fastest_peer_ratio"] is None
    columns = content["layer_table"]["columns"]
    row = dict(zip(columns, content["layer_table"]["rows"][0]))
    assert row["ours / fastest peer"] == "1.50 (torch grouped_mm)" and row["Liger Triton"].endswith(" *"), row
    assert "DeepGEMM + Triton" not in columns and "failed" in content["trouble_table"]["rows"][0], content["trouble_table"]
    for member in [member for _, member, _ in SECTIONS]:
        table = content[member]
        assert all(len(row) == len(table["columns"]) for row in table["rows"]), member
        assert "|" not in "".join(str(cell) for row in table["rows"] for cell in row), member
    assert [r[1] for r in content["decode_table"]["rows"]] == [1, 32] and len(content["bounds_table"]["rows"]) == 3
    assert made_anew(json.loads(json.dumps(content))) == content
    page = markdown(content, "bench/results/x.json")
    assert page.count("<!--table bench/results/x.json#") == len(SECTIONS) == page.count("<!--/table-->")
    assert summarized([[3.0, 1.0], [2.0]]) == {"us": 2.0, "min": 1.0, "max": 3.0, "count": 3, "rounds": [2.0, 2.0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--add", type=pathlib.Path, metavar="OTHER", help="another run, whose new cells are added")
    options = parser.parse_args()
    content = json.loads(options.file.read_text())
    if options.add:
        content = add_run(content, json.loads(options.add.read_text()))
    write(options.file, made_anew(content))


if __name__ == "__main__":
    main()
