"""A run in parts: what a file of an earlier part holds, whether this part may go on with it, what time is left. Plain Python."""
import hashlib
import json
import math
import pathlib
import subprocess
import sys

import grid
import report

HERE = pathlib.Path(__file__).resolve().parent
SAME_MACHINE = ("gpu", "power_limit", "max_sm_clock", "torch", "cuda")
COMPLETE, WRONG, LIMIT_REACHED = 0, 1, 3  # exit codes
FIRST_GUESS_S = 4.0  # of a cell before any was measured


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.strip() or "unknown"


def sources():
    """Of the scripts that measure: tells two states apart where a copy of the tree has no history."""
    content = b"".join(path.name.encode() + path.read_bytes() for path in sorted(HERE.glob("*.py")))
    return hashlib.sha256(content).hexdigest()[:12]


def earlier(path):
    """The content of the file of an earlier part, or None."""
    return json.loads(path.read_text()) if path.exists() else None


def why_not(content, meta):
    """Why a part with this meta may not go on with that content, or ""."""
    before = content["meta"]
    pairs = [("schema", content.get("schema"), 2)]
    pairs += [(name, meta.get(name), before.get(name)) for name in ("commit", "sources", "settings")]
    pairs += [(f"machine: {name}", meta["machine"].get(name), before["machine"].get(name)) for name in SAME_MACHINE]
    return next((f"{name}: got {got}, expected {expected}" for name, got, expected in pairs if got != expected), "")


class Book:
    """The file of a run: cells and chains of earlier parts, and what this part adds."""

    def __init__(self, path, meta, absent, content=None):
        self.path, self.meta, self.left_out = path, meta, []
        self.cells, self.chain = (content["cells"], content["chain"]) if content else ([], [])
        self.runs = report.runs_of(content) if content else []
        versions = content["meta"]["versions"] if content else {}
        self.meta["versions"] = {**versions, **meta["versions"]}
        self.meta["notes"] = dict(content["meta"].get("notes", {})) if content else {}
        self.absent = report.still_absent([*(content["absent"] if content else []), *absent], self.meta["versions"])
        self.runs.append({**report.run_of({"meta": meta}), "cells": 0, "chains": 0})

    def noted(self, layers):
        """The layers, with what their notes say in every cell ("theirs", "ours") kept once, in meta.notes."""
        kept = {}
        for name, entry in layers.items():
            note = dict(entry.get("note", {}))
            for key in ("theirs", "ours"):
                if key in note:
                    self.meta.setdefault("notes", {}).setdefault(name, {})[key] = note.pop(key)
            rest = {key: value for key, value in entry.items() if key != "note"}
            kept[name] = {**rest, "note": note} if note else rest
        return kept

    def add(self, record):
        self.cells.append({**record, "layers": self.noted(record["layers"]), "run": len(self.runs) - 1})
        self.runs[-1]["cells"] += 1

    def add_chains(self, records):
        self.chain += [{**record, "layers": self.noted(record["layers"]), "run": len(self.runs) - 1} for record in records]
        self.runs[-1]["chains"] += len(records)

    def content(self):
        meta = {**self.meta, "runs": self.runs, "seconds": sum(run.get("seconds") or 0 for run in self.runs)}
        return report.document(meta, self.cells, self.absent, self.left_out, self.chain)

    def write(self, seconds):
        self.runs[-1]["seconds"] = round(seconds)
        content = self.content()
        report.write(self.path, content)
        return content


def remaining(cells, content):
    """Those that no earlier part measured."""
    done = {report.place(record) for record in content["cells"]} if content else set()
    return [cell for cell in cells if tuple(cell) not in done]


def remaining_presets(presets, tokens, content):
    """Those without a chain at some number of tokens."""
    done = {(record["preset"], record["tokens"]) for record in content["chain"]} if content else set()
    return [preset for preset in presets if any((preset, count) not in done for count in tokens)]


def open_book(path, meta, absent, content):
    """The book of this part; ends the program where the file is of another state or kind of machine."""
    problem = why_not(content, meta) if content else ""
    if problem:
        sys.exit(f"run.py: {path}: {problem}: a run goes on only with the same commit, settings and kind of machine; "
                 "move the file away, or measure into another and merge with report.py FILE --add OTHER")
    return Book(path, meta, absent, content)


class Progress:
    """How long cells take, from those done: what remains, and whether one more fits."""

    def __init__(self, limit_s, clock):
        self.limit_s, self.clock, self.seconds = limit_s, clock, {}

    def took(self, tokens, seconds):
        self.seconds.setdefault(tokens, []).append(seconds)

    def of(self, tokens, choose):
        """An estimate from the cells with the nearest number of tokens."""
        if not self.seconds:
            return FIRST_GUESS_S
        nearest = min(self.seconds, key=lambda count: abs(math.log2(count / tokens)))
        return choose(self.seconds[nearest])

    def fits(self, tokens):
        """Whether one more would end before the limit even if it takes as long as the longest of its kind."""
        return self.limit_s is None or self.clock() + self.of(tokens, max) <= self.limit_s

    def left(self, many_tokens):
        return sum(self.of(tokens, lambda found: sum(found) / len(found)) for tokens in many_tokens)


def _meta(**other):
    machine = {"gpu": "H", "driver": "1", "power_limit": "700 W", "max_sm_clock": "1980", "torch": "2", "cuda": "13"}
    return {"machine": machine, "hbm_bytes_per_second": 4e12, "versions": {"a": {"a": "1"}}, "commit": "abc", "sources": "s",
            "date": "1970-01-01", "settings": {"rounds": 2}, **other}


def self_test():
    def cell(tokens):
        return report.example_cell("olmoe", tokens, "random", 100.0, 110.0)
    book = Book(pathlib.Path("none"), _meta(), [{"library": "b", "reason": "no module", "note": ""}])
    book.add(cell(1))
    book.runs[-1]["seconds"] = 10
    first = json.loads(json.dumps(book.content()))
    wanted = [grid.Cell("olmoe", count, "random") for count in (1, 8, 32)]
    assert remaining(wanted, first) == wanted[1:] and remaining(wanted, None) == wanted
    assert why_not(first, _meta()) == ""
    later = {**_meta()["machine"], "driver": "2"}
    assert why_not(first, _meta(machine=later)) == "", "another driver is the same kind of machine; meta.runs names both"
    for change, expected in (({"commit": "def"}, "commit: got def, expected abc"), ({"sources": "t"}, "sources: got t"),
                             ({"settings": {"rounds": 1}}, "settings: got"),
                             ({"machine": {**later, "gpu": "I"}}, "machine: gpu: got I, expected H")):
        assert why_not(first, _meta(**change)).startswith(expected), (change, why_not(first, _meta(**change)))
    assert why_not({**first, "schema": 1}, _meta()).startswith("schema: got 1, expected 2")
    second = Book(pathlib.Path("none"), _meta(hbm_bytes_per_second=5e12, versions={"b": {"b": "2"}}), [], first)
    eighth = cell(8)
    eighth["layers"]["flashinfer"]["note"] = {"theirs": "kernel", "ours": "tactic", "tactic": "3"}
    second.add(eighth)
    assert second.cells[-1]["layers"]["flashinfer"]["note"] == {"tactic": "3"}, second.cells[-1]
    second.add_chains([report.example_chain("olmoe", 1, 100.0, 110.0)])
    second.runs[-1]["seconds"] = 5
    content = second.content()
    assert [record["run"] for record in content["cells"]] == [0, 1] and content["chain"][0]["run"] == 1
    assert [(run["cells"], run["chains"], run["hbm_bytes_per_second"]) for run in content["meta"]["runs"]] == [
        (1, 0, 4e12), (1, 1, 5e12)]
    assert content["meta"]["notes"] == {"flashinfer": {"theirs": "kernel", "ours": "tactic"}}
    assert content["meta"]["seconds"] == 15 and set(content["meta"]["versions"]) == {"a", "b"} and not content["absent"]
    assert remaining_presets(["olmoe", "gemma4"], [1], content) == ["gemma4"]
    assert remaining_presets(["olmoe"], [1, 2], content) == ["olmoe"]
    now = [0.0]
    progress = Progress(20.0, lambda: now[0])
    assert progress.fits(1) and progress.left([1, 2]) == 2 * FIRST_GUESS_S
    progress.took(1, 1.0)
    progress.took(1, 3.0)
    progress.took(4096, 9.0)
    assert progress.left([1, 2, 16384]) == 2.0 + 2.0 + 9.0
    now[0] = 12.0
    assert progress.fits(8) and not progress.fits(8192)
    assert Progress(None, lambda: 1e9).fits(1) and commit() and len(sources()) == 12
