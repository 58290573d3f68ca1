#!/usr/bin/env python3
"""From the records of a run to its JSON file, tables, verdict and Markdown page. Plain Python; the schema is in run.py.

  report.py bench/results/peers_h200.json     makes tables, verdict and page anew from the file's cells: after a move, or
                                              after a change of this script
  report.py FILE --add OTHER ...              first adds the cells and chains of other runs that FILE lacks; a cell is of one
                                              run, with all its layers and its dense products, and meta.runs says which runs
                                              there are
  report.py FILE --format fp8-block --layers-of OTHER
                                              takes that format's layers, all of them, from OTHER's cells of the same inputs
"""
import argparse
import json
import pathlib
import statistics
import sys

import cases
import grid
import tables
import verdict

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def summarized(rounds):
    """Of the times of each round, in us: the median of all, the extremes, how many, each round's median."""
    every = [us for times in rounds for us in times]
    return {"us": round(statistics.median(every), 2), "min": round(min(every), 2), "max": round(max(every), 2),
            "count": len(every), "rounds": [round(statistics.median(times), 2) for times in rounds if times]}


def place(record):
    return record["preset"], record["tokens"], record.get("routing", "chain")


def ordered(records):
    """Preset by preset, by tokens: tables are read so, in whatever order the cells were measured."""
    presets = list(dict.fromkeys([*cases.PRESETS, *(record["preset"] for record in records)]))
    return sorted(records, key=lambda r: (presets.index(r["preset"]), r.get("routing") == "balanced", r["tokens"]))


def summary(records, chain):
    """Counts and means for running text; every key is a word that scripts/figures.py can name."""
    wrong = sum(1 for r in [*records, *chain] for entry in r["layers"].values() if entry.get("problem"))
    formats = {fmt: verdict.summary_of(records, fmt) for fmt in cases.FORMATS}
    chains = {fmt: verdict.summary_of(chain, fmt) for fmt in cases.FORMATS}
    return {"cells": len(records), "presets": len({r["preset"] for r in records}), "chains": len(chain),
            "wrong_results": wrong, "formats": formats, "chain": chains,
            "claim": verdict.claim(formats["bf16"]["ranges"]), "fp8_claim": verdict.claim(formats["fp8-block"]["ranges"]),
            "chain_claim": verdict.claim(chains["bf16"]["ranges"])}


def document(meta, records, absent, left_out, chain=()):
    """The JSON file's content."""
    records, chain = ordered(records), ordered(chain)
    total = summary(records, chain)
    lost = [entry for fmt in cases.FORMATS for entry in verdict.lost(verdict.comparisons(records, fmt))]
    return {"schema": 2, "meta": meta, "summary": total, "absent": absent, "verdict": lost,
            "left_out": [list(cell) for cell in left_out], "ranges_table": tables.ranges_table(total["formats"]),
            "tokens_table": tables.tokens_table(total["formats"]), "peers_table": tables.peers_table(total["formats"]),
            "layer_table": tables.layer_table(records), "fp8_layer_table": tables.layer_table(records, "fp8-block"),
            "decode_table": tables.decode_table(records), "fp8_decode_table": tables.decode_table(records, "fp8-block"),
            "chain_table": tables.chain_table(chain), "chain_ranges_table": tables.ranges_table(total["chain"]),
            "bounds_table": tables.bounds_table(records), "modes_table": tables.modes_table(records),
            "verdict_table": tables.verdict_table(lost), "versions_table": tables.versions_table(meta),
            "absent_table": tables.absent_table(absent), "trouble_table": tables.trouble_table([*records, *chain]),
            "cells": records, "chain": chain}


_GRAPH = ("CUDA-graph replay with a cold L2 cache; * as called, where no graph can be made.")
SECTIONS = (
    ("Where Tessera is ahead, level, behind", "ranges_table",
     "The best peer's time over ours in each cell: above 1 Tessera is faster. Ours has 16-bit weights; against FP8 peers, for "
     f"information, our fastest format. Behind: a geometric mean below {verdict.BEHIND}; ahead: above {verdict.AHEAD}."),
    ("By number of tokens", "tokens_table", "The best peer's time over ours."),
    ("Each peer alone", "peers_table", "Its time over ours, geometric means."),
    ("Whole layers, 16-bit weights, TFLOP/s (6 T k H I / time)", "layer_table",
     _GRAPH + " Dense cuBLAS: two products of the same FLOPs, in the same run."),
    ("Whole layers, FP8 weights, TFLOP/s", "fp8_layer_table", _GRAPH + " The activations' quantisation is part of the layer."),
    ("Small batches, 16-bit weights, microseconds", "decode_table",
     "The floor is the time in which the weights of the experts in use come from memory at the rate measured in this run."),
    ("Small batches, FP8 weights, microseconds", "fp8_decode_table", "The floor has one byte a weight, and the scales."),
    ("Chains of layers, microseconds a layer", "chain_table",
     "One CUDA graph of 20 layers, replayed; sets of weights that come back only after other bytes have emptied the cache; "
     "own inputs and routing for each layer."),
    ("Chains: ahead, level, behind", "chain_ranges_table", ""),
    ("Speed-up by mode", "modes_table", "Time of the peer over ours."),
    ("Bounds that are no layers, TFLOP/s", "bounds_table", ""),
    ("Where the best peer is faster", "verdict_table", "Every cell, the worst first in each format."),
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


def json_text(content):
    """A line for each member, and for each record of a list: quick to write after every cell, and readable in a diff."""
    members = []
    for key, value in content.items():
        records = isinstance(value, list) and value and isinstance(value[0], dict)
        text = "[\n" + ",\n".join("  " + json.dumps(record) for record in value) + "]" if records else json.dumps(value)
        members.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(members) + "\n}"


def write(path, content):
    """The JSON file and, beside it, the page; each replaces an older one at once."""
    resolved = path.resolve()
    name = resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path
    for target, text in ((path, json_text(content)), (path.with_suffix(".md"), markdown(content, name).rstrip())):
        part = target.with_suffix(target.suffix + ".part")
        part.write_text(text + "\n")
        part.replace(target)


def made_anew(content):
    """The document with the same measurements."""
    return document(content["meta"], content["cells"], content["absent"],
                    [grid.Cell(*cell) for cell in content["left_out"]], content.get("chain", []))


def run_of(content):
    """What distinguishes one run from another."""
    meta = content["meta"]
    return {name: meta.get(name) for name in ("machine", "hbm_bytes_per_second", "versions", "commit", "sources", "date",
                                              "seconds")}


def runs_of(content):
    return content["meta"].get("runs") or [{**run_of(content), "cells": len(content["cells"]),
                                            "chains": len(content.get("chain", []))}]


def counted(runs, content):
    """The runs with how many of the records each has a part in."""
    def cells(number):
        return sum(number in (cell.get("run", 0), *cell.get("format_runs", {}).values()) for cell in content["cells"])
    return [{**run, "cells": cells(number), "chains": sum(record.get("run", 0) == number for record in content.get("chain", []))}
            for number, run in enumerate(runs)]


def add_run(content, other):
    """`content` with the cells and chains of `other` that it lacks; a record's "run" is its number in meta.runs."""
    runs, theirs = runs_of(content), runs_of(other)
    for member in ("cells", "chain"):
        mine = content.setdefault(member, [])
        known = {place(record) for record in mine}
        mine += [{**record, "run": record.get("run", 0) + len(runs)} for record in other.get(member, [])
                 if place(record) not in known]
    content["meta"]["runs"] = counted([*runs, *theirs], content)
    content["meta"]["notes"] = {**other["meta"].get("notes", {}), **content["meta"].get("notes", {})}
    content["meta"]["versions"] = {**other["meta"]["versions"], **content["meta"]["versions"]}
    measured = {place(record) for record in content["cells"]}
    content["left_out"] = [cell for cell in content["left_out"] if tuple(cell) not in measured]
    content["absent"] = still_absent([*content["absent"], *other["absent"]], content["meta"]["versions"])
    return content


def take_format(content, other, fmt):
    """`content` with the layers of a format as `other` measured them: those of one format are compared with each other alone.
    Of each of its cells, which must have had the same inputs."""
    runs, theirs = runs_of(content), runs_of(other)
    mine = {place(record): record for record in content["cells"]}
    for record in other["cells"]:
        cell = mine.get(place(record))
        if cell is None or any(cell.get(sum_) != record.get(sum_) for sum_ in ("checksum", "weights_checksum")):
            raise ValueError(f"{place(record)}: got a cell of other inputs, expected those of one that is there")
        cell["layers"] = {**{layer: entry for layer, entry in cell["layers"].items() if cases.format_of(layer) != fmt},
                          **{layer: entry for layer, entry in record["layers"].items() if cases.format_of(layer) == fmt}}
        cell["floors"][fmt] = record["floors"][fmt]
        cell["format_runs"] = {**cell.get("format_runs", {}), fmt: record.get("run", 0) + len(runs)}
    content["meta"]["runs"] = counted([*runs, *theirs], content)
    return content


def still_absent(absent, versions):
    """Without those that another run has, each library once; a reason is worth more than "not asked for"."""
    found = {}
    for entry in sorted(absent, key=lambda entry: entry["reason"] == cases.NOT_ASKED):
        if entry["library"] not in versions:
            found.setdefault(entry["library"], entry)
    return list(found.values())


def example_cell(preset, tokens, routing, ours, peer, problem=""):
    def times(us):
        return {"graph_cold": summarized([[us, us + 1], [us - 1, us]])}
    cell = grid.Cell(preset, tokens, routing)
    layers = {"tessera": {"times": times(ours), "problem": problem}, "torch grouped_mm": {"times": times(peer)},
              "flashinfer": {"times": times(peer * 1.2), "note": {"tactic": "made up"}},
              "sglang triton fp8": {"times": times(peer * 0.5)}, "deepgemm": {"failed": "ended with signal 9"},
              "liger": {"times": {"eager": summarized([[peer * 2]])}}, "deepgemm GEMMs": {"times": times(90.0)},
              "transformers batched_mm": {"skip": "too | large"}}
    return {"preset": preset, "tokens": tokens, "routing": routing, "run": 0, "flop": cases.flops(cell), "floor_us": 60.0,
            "floors": {"bf16": 60.0, "fp8-block": 30.5}, "dense": summarized([[80.0]]), "layers": layers}


def example_chain(preset, tokens, ours, peer):
    layers = {"tessera": {"times": {"chain": summarized([[ours]])}}, "flashinfer": {"times": {"chain": summarized([[peer]])}}}
    return {"preset": preset, "tokens": tokens, "run": 0, "sets": 10, "floors": {"bf16": 50.0, "fp8-block": 25.5},
            "layers": layers}


def example(ours=100.0, peer=150.0, problem="", presets=("olmoe",), tokens=(1, 32, 512, 4096)):
    """Content of a made-up run, for tests of what reads it. Its figures measure nothing."""
    records = [example_cell(preset, count, "random", ours, peer, problem) for preset in presets for count in tokens]
    records += [example_cell(preset, 4096, "balanced", ours, peer, problem) for preset in presets]
    chain = [example_chain(preset, count, ours, peer) for preset in presets for count in tokens
             if count in cases.CHAIN_TOKENS]
    meta = {"machine": {"gpu": "none", "driver": "0", "power_limit": "0 W", "torch": "0", "cuda": "0"}, "date": "1970-01-01",
            "commit": "none", "versions": {"torch": {"torch": "0"}}}
    absent = [{"library": "vllm", "reason": "ModuleNotFoundError: a|b", "note": ""}]
    return document(meta, records, absent, [grid.Cell("olmoe", 8, "random")], chain)


def _check_merge():
    content, part = example(), example(ours=60.0)
    part["cells"] = [{**record, "tokens": 8} for record in part["cells"][:1]] + part["cells"]
    part["chain"] = [{**record, "tokens": 8} for record in part["chain"][:1]]
    part["absent"] = [{"library": name, "reason": cases.NOT_ASKED, "note": ""} for name in ("vllm", "torch", "liger")]
    both = made_anew(add_run(example(), part))  # one cell is new and leaves the list of those left out; the others stay
    assert len(both["cells"]) == len(content["cells"]) + 1 and both["left_out"] == [] and content["left_out"]
    assert [(run["cells"], run["chains"]) for run in both["meta"]["runs"]] == [(len(content["cells"]), 2), (1, 1)]
    assert [record["run"] for record in both["cells"] if record["tokens"] == 8] == [1]
    assert both["summary"]["formats"]["bf16"]["tokens"]["1"] == content["summary"]["formats"]["bf16"]["tokens"]["1"]
    assert [(entry["library"], entry["reason"][:3]) for entry in both["absent"]] == [("vllm", "Mod"), ("liger", "not")]
    third = made_anew(add_run(both, example(tokens=(2,))))
    assert [run["cells"] for run in third["meta"]["runs"]] == [len(content["cells"]), 1, 1]
    assert [record["run"] for record in third["cells"] if record["tokens"] == 2] == [2]
    shuffled = json.loads(json.dumps(content))
    shuffled["cells"].reverse()
    assert made_anew(shuffled) == content == made_anew(json.loads(json_text(content)))
    assert json.loads(json_text({"a": [], "b": [{"c": 1}], "d": [1]})) == {"a": [], "b": [{"c": 1}], "d": [1]}


def _check_formats():
    ours, newer = example(), example(peer=80.0)
    for cell in [*ours["cells"], *newer["cells"]]:
        cell["checksum"] = cell["tokens"]
    merged = take_format(ours, newer, "fp8-block")
    for cell, record in zip(merged["cells"], newer["cells"], strict=True):
        assert cell["layers"]["sglang triton fp8"] == record["layers"]["sglang triton fp8"]
        assert cell["layers"]["torch grouped_mm"] != record["layers"]["torch grouped_mm"]
        assert cell["run"] == 0 and cell["format_runs"] == {"fp8-block": 1}
    assert [run["cells"] for run in merged["meta"]["runs"]] == [5, 5]
    again = take_format(merged, newer, "fp8-block")  # nothing is left of the run before
    assert [run["cells"] for run in again["meta"]["runs"]] == [5, 0, 5]
    newer["cells"][0]["checksum"] = -1
    try:
        take_format(example(), newer, "fp8-block")
        raise AssertionError("a cell of other inputs was taken")
    except ValueError:
        pass


def _check_tables():
    content = example()
    assert content["verdict"][0]["format"] == "fp8-block" and content["summary"]["formats"]["bf16"]["mean"] == 1.5
    lost = [entry for entry in example(ours=200.0)["verdict"] if entry["format"] == "bf16"]
    assert {entry["peer"] for entry in lost} == {"torch grouped_mm"} and len(lost) == 5 and lost[0]["ratio"] == 0.75
    wrong = example(ours=50.0, problem="token 0: off")  # a wrong result wins nothing and is shown
    assert "WRONG" in [cell for row in wrong["layer_table"]["rows"] for cell in row]
    assert wrong["summary"]["wrong_results"] == 5 and "mean" not in wrong["summary"]["formats"]["bf16"]
    assert wrong["summary"]["claim"].startswith("incomplete") and len(wrong["verdict"]) == 10
    columns = content["layer_table"]["columns"]
    row = dict(zip(columns, content["layer_table"]["rows"][0]))
    assert row["best peer / ours"] == "1.50 (torch grouped_mm)" and row["Liger Triton"].endswith(" *"), row
    assert "DeepGEMM + Triton" not in columns and "SGLang Triton FP8" not in columns
    assert content["fp8_layer_table"]["columns"][4:6] == ["Tessera", "SGLang Triton FP8"]
    assert "failed" in [row[1] for row in content["trouble_table"]["rows"]], content["trouble_table"]
    for member in [member for _, member, _ in SECTIONS]:
        table = content[member]
        assert all(len(row) == len(table["columns"]) for row in table["rows"]), member
        assert "|" not in "".join(str(cell) for row in table["rows"] for cell in row), member
    assert [row[1:3] for row in content["decode_table"]["rows"]] == [[1, "60.0"], [32, "60.0"]]
    assert [row[2] for row in content["fp8_decode_table"]["rows"]] == ["30.5", "30.5"]
    assert [row[3:5] for row in content["chain_table"]["rows"]] == [["50.0", "25.5"]] * 2
    assert [row[-1] for row in content["ranges_table"]["rows"]] == ["ahead"] * 3 + ["behind"] * 3
    assert len(content["bounds_table"]["rows"]) == 3
    page = markdown(content, "bench/results/x.json")
    assert page.count("<!--table bench/results/x.json#") == len(SECTIONS) == page.count("<!--/table-->")
    assert summarized([[3.0, 1.0], [2.0]]) == {"us": 2.0, "min": 1.0, "max": 3.0, "count": 3, "rounds": [2.0, 2.0]}


def _check_older_files():
    """Every committed file can be made anew, also one of schema 1."""
    for path in sorted((ROOT / "bench" / "results").glob("peers_*.json")):
        content = json.loads(path.read_text())
        again = made_anew(content)
        assert sorted(map(place, again["cells"])) == sorted(map(place, content["cells"])), path
        assert again["summary"]["formats"]["bf16"]["cells"] > 0 and markdown(again, path.name), path
        assert again["verdict_table"]["columns"] and again["summary"]["claim"] != "not measured", path


def self_test():
    _check_merge()
    _check_formats()
    _check_tables()
    _check_older_files()


def same_machine(content, path):
    """The content of another file, which must be of the same kind of machine."""
    other = json.loads(path.read_text())
    got, expected = (each["meta"]["machine"]["gpu"] for each in (other, content))
    if got != expected:
        raise ValueError(f"gpu: got {got}, expected {expected}: one file is of one kind of machine")
    return other


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--add", type=pathlib.Path, metavar="OTHER", nargs="+", default=[],
                        help="other runs, whose new cells and chains are added")
    parser.add_argument("--format", choices=tuple(cases.FORMATS), help="with --layers-of")
    parser.add_argument("--layers-of", type=pathlib.Path, metavar="OTHER", nargs="+", default=[])
    options = parser.parse_args()
    if bool(options.format) != bool(options.layers_of):
        parser.error("--format and --layers-of: got one, expected both or neither")
    content = json.loads(options.file.read_text())
    try:
        for other in options.add:
            content = add_run(content, same_machine(content, other))
        for other in options.layers_of:
            content = take_format(content, same_machine(content, other), options.format)
    except ValueError as error:
        sys.exit(f"report.py: {other}: {error}")
    write(options.file, made_anew(content))


if __name__ == "__main__":
    main()
