"""The grid of the comparison with other people's layers: shapes, cells, the bar each cell must pass, tables, JSON.

Plain Python, so that it can be tested where there is neither torch nor a GPU: torch_moe.py --self-test.
"""
import collections
import json
import pathlib
import statistics
import tempfile

PRESETS = {  # hidden size, intermediate size, experts, experts a token
    "mixtral-8x7b": (4096, 14336, 8, 2), "qwen2-57b": (3584, 2560, 64, 8), "qwen3-30b": (2048, 768, 128, 8),
    "qwen3-235b": (4096, 1536, 128, 8), "qwen3-next": (2048, 512, 512, 10), "deepseek-v3-shard32": (7168, 2048, 32, 8),
    "gpt-oss-120b": (2880, 2880, 128, 4), "gpt-oss-20b": (2880, 2880, 32, 4), "olmoe": (2048, 1024, 64, 8),
    "glm-4.5-air": (4096, 1408, 128, 8), "gemma4": (2816, 704, 128, 8)}
TOKENS = tuple(2**n for n in range(16))  # 1 .. 32768
ROUTINGS = ("balanced", "random", "zipf", "worst")
COLUMNS = ("preset", "T", "routing", "torch us", "ours us", "speedup", "bound us", "ours/bound", "torch graph us",
           "ours graph us", "verdict")

LARGE_TOKENS, LARGE_SPEEDUP, LARGE_SHARE_OF_BOUND = 1024, 1.15, 0.85
DOUBLED, DOUBLE_SPEEDUP = ("qwen3-30b", 16384), 2.0

Cell = collections.namedtuple("Cell", "preset tokens routing")


def cells(presets, tokens, routings):
    """Every cell asked for, preset by preset; "worst" only where there are rows for every cold expert."""
    return [Cell(p, t, r) for p in presets for t in tokens for r in routings
            if r != "worst" or t * PRESETS[p][3] >= PRESETS[p][2]]


def weight_bytes(preset, active_experts):
    """Bytes of the 16-bit weights of so many experts."""
    hidden, intermediate, _, _ = PRESETS[preset]
    return 2 * 3 * hidden * intermediate * active_experts


def bound_us(preset, active_experts, bytes_per_second, dense_us):
    """No layer is faster than its weights come from memory, nor (as a rule) than cuBLAS multiplies as many FLOPs."""
    return max(weight_bytes(preset, active_experts) / bytes_per_second * 1e6, dense_us)


def passes(cell, torch_us, ours_us, bound):
    speedup = torch_us / ours_us
    if (cell.preset, cell.tokens) == DOUBLED and speedup < DOUBLE_SPEEDUP:
        return False
    if cell.tokens >= LARGE_TOKENS:
        return speedup > 1 and (speedup >= LARGE_SPEEDUP or bound / ours_us >= LARGE_SHARE_OF_BOUND)
    return speedup > 1


def record_of(cell, measured):
    """What is kept of a cell. `measured`: torch_us, ours_us, dense_us, active_experts, bytes_per_second, problem (text,
    empty when the results agree), torch_graph_us and ours_graph_us (None where not measured)."""
    bound = bound_us(cell.preset, measured["active_experts"], measured["bytes_per_second"], measured["dense_us"])
    good = passes(cell, measured["torch_us"], measured["ours_us"], bound)
    verdict = "WRONG" if measured["problem"] else "won" if good else "LOST"
    return {"preset": cell.preset, "tokens": cell.tokens, "routing": cell.routing, **measured, "bound_us": bound,
            "speedup": measured["torch_us"] / measured["ours_us"], "verdict": verdict}


def row_of(record):
    """The record as cells of the table."""
    def number(value, digits=1):
        return "-" if value is None else f"{value:.{digits}f}"
    return [record["preset"], str(record["tokens"]), record["routing"], number(record["torch_us"]),
            number(record["ours_us"]), number(record["speedup"], 2), number(record["bound_us"]),
            number(record["ours_us"] / record["bound_us"], 2), number(record["torch_graph_us"]),
            number(record["ours_graph_us"]), record["verdict"]]


def counts(records):
    speedups = [r["speedup"] for r in records]
    verdicts = collections.Counter(r["verdict"] for r in records)
    return {"cells": len(records), "won": verdicts["won"], "lost": verdicts["LOST"], "wrong": verdicts["WRONG"],
            "min_speedup": round(min(speedups), 3) if speedups else None,
            "median_speedup": round(statistics.median(speedups), 3) if speedups else None}


def summary(records, left_out):
    presets = list(dict.fromkeys(r["preset"] for r in records))
    return {**counts(records), "left_out": [list(cell) for cell in left_out],
            "per_preset": {p: counts([r for r in records if r["preset"] == p]) for p in presets}}


def document(meta, records, left_out):
    """The JSON file: `table` is what scripts/figures.py puts into documents, `records` hold every digit."""
    return {"meta": meta, "summary": summary(records, left_out),
            "summary_table": {"columns": list(SUMMARY_COLUMNS), "rows": summary_rows(records)},
            "table": {"columns": list(COLUMNS), "rows": [row_of(r) for r in records]}, "records": records}


SUMMARY_COLUMNS = ("preset", "cells", "won", "lost", "wrong", "min speedup", "median speedup")


def summary_rows(records):
    groups = {**summary(records, [])["per_preset"], "all": counts(records)}
    return [[name, *map(str, group.values())] for name, group in groups.items()]


def text_table(columns, rows):
    widths = [max(len(str(line[i])) for line in [columns, *rows]) for i in range(len(columns))]
    return "\n".join("  ".join(str(value).rjust(width) for value, width in zip(line, widths)).rstrip()
                     for line in [columns, *rows])


def run_grid(wanted, measure, seconds_left, report, done=()):
    """(records, left_out). `measure(cell)` gives what record_of needs, or raises MemoryError where the cell does not fit;
    records of `done` are taken as they are. Stops between cells when seconds_left() is negative."""
    known = {Cell(r["preset"], r["tokens"], r["routing"]): r for r in done}
    records, left_out = [], []
    for cell in wanted:
        if cell in known:
            records.append(known[cell])
        elif seconds_left() < 0:
            left_out.append(cell)
        else:
            try:
                records.append(record_of(cell, measure(cell)))
                report(records[-1])
            except MemoryError:
                left_out.append(cell)
    return records, left_out


def _measurement(torch_us, ours_us, **other):
    return {"torch_us": torch_us, "ours_us": ours_us, "dense_us": 10.0, "active_experts": 1, "bytes_per_second": 3e12,
            "problem": "", "torch_graph_us": None, "ours_graph_us": None, **other}


def _check_bar():
    small, large = Cell("olmoe", 512, "random"), Cell("olmoe", 1024, "random")
    doubled = Cell("qwen3-30b", 16384, "zipf")
    for cell, torch_us, ours_us, bound, expected in [
            (small, 100, 99, 1, True), (small, 100, 100, 1, False), (large, 114, 100, 1, False),
            (large, 115, 100, 1, True), (large, 101, 100, 85, True), (large, 101, 100, 84, False),
            (large, 99, 100, 99, False), (doubled, 199, 100, 99, False), (doubled, 200, 100, 1, True)]:
        assert passes(cell, torch_us, ours_us, bound) is expected, (cell, torch_us, ours_us, bound)
    assert weight_bytes("olmoe", 3) == 3 * 3 * 2048 * 1024 * 2
    assert bound_us("olmoe", 64, 2 * weight_bytes("olmoe", 64), 1.0) == 500000.0
    assert bound_us("olmoe", 64, 2 * weight_bytes("olmoe", 64), 1e6) == 1e6


def _check_grid():
    grid = cells(PRESETS, TOKENS, ROUTINGS)
    assert len(grid) == len(set(grid))
    assert Cell("qwen3-next", 32, "worst") not in grid and Cell("qwen3-next", 64, "worst") in grid
    assert Cell("mixtral-8x7b", 4, "worst") in grid and Cell("mixtral-8x7b", 2, "worst") not in grid
    assert len(cells(PRESETS, TOKENS, ROUTINGS[:3])) == len(PRESETS) * 16 * 3


def _check_run():
    wanted = cells(["olmoe"], [1, 2, 4, 2048], ["random", "balanced"])
    clock = iter(range(3, -100, -1))  # four cells fit: 3, 2, 1, 0
    seen = []

    def measure(cell):
        if cell == Cell("olmoe", 2, "random"):
            raise MemoryError
        return _measurement(100.0, 200.0 if cell.routing == "balanced" else 50.0,
                            problem="token 0" if cell == Cell("olmoe", 2, "balanced") else "")
    records, left_out = run_grid(wanted, measure, lambda: next(clock), seen.append)
    assert [r["verdict"] for r in records] == ["won", "LOST", "WRONG"] and seen == records, records
    assert left_out == [wanted[2], *wanted[4:]], left_out
    again, still_out = run_grid(wanted, measure, lambda: 1, seen.append, done=records)
    assert again[:3] == records[:2] + [records[2]] and len(again) == 7 and still_out == [wanted[2]]
    total = summary(again, still_out)
    assert (total["cells"], total["won"], total["lost"], total["wrong"]) == (7, 3, 3, 1), total
    assert total["min_speedup"] == 0.5 and list(total["per_preset"]) == ["olmoe"]
    assert summary([], wanted)["min_speedup"] is None


def _check_documents():
    records = [record_of(Cell("olmoe", 2048, "zipf"), _measurement(300.0, 150.0, ours_graph_us=140.0))]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "grid.json"
        path.write_text(json.dumps(document({"gpu": "none"}, records, [])))
        content = json.loads(path.read_text())
    assert content["records"] == records and content["table"]["columns"] == list(COLUMNS)
    assert content["table"]["rows"] == [["olmoe", "2048", "zipf", "300.0", "150.0", "2.00", "10.0", "15.00", "-",
                                         "140.0", "won"]], content["table"]["rows"]
    assert content["summary_table"]["rows"][-1] == ["all", "1", "1", "0", "0", "2.0", "2.0"]
    assert all(len(row) == len(SUMMARY_COLUMNS) for row in content["summary_table"]["rows"])
    assert text_table(("a", "bb"), [["1", "2"], ["333", "4"]]) == "  a  bb\n  1   2\n333   4"


def self_test():
    for check in (_check_bar, _check_grid, _check_run, _check_documents):
        check()
