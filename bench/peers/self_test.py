"""Tests of the runner without torch or a GPU: processes that behave badly, wrong results, tables. run.py --self-test.

Run as a program it is such a process: self_test.py ROLE --reply-fd N.
"""
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import types

import cases
import check
import children
import grid
import report
import run as runner
import self_test_adapters

CELL = grid.Cell("olmoe", 512, "balanced")
ROLES = {"tessera": "good", "torch": "wrong", "deepgemm": "dies", "liger": "error", "flashinfer": "other-inputs",
         "sonicmoe": "other-weights", "vllm": "no-graph"}


def measurement(role, request, reference, good, output):
    """A contestant's answer to "measure"."""
    modes = ("graph_cold", "eager") if request["graph"] else ("eager",)
    rows = [list(row) for row in good]
    if role == "wrong":
        rows[3] = [0.0] * len(rows[3])
    if role == "error":
        return {"error": "ValueError: planted"}
    if role == "no-graph" and request["graph"]:
        return {"capture_error": "it waits for the host"}
    if request["layer"] == "deepgemm GEMMs":
        return {"skip": "no"}
    return {"checksum": "other" if role == "other-inputs" else "inputs", "times": {mode: [3.0, 4.0, 5.0] for mode in modes},
            "outputs": {mode.split("_")[0]: output(rows) for mode in modes}}


def behave(role, reply_fd):
    """A worker made of numbers in this file."""
    reference, good, output = check._example()
    coded = {"tokens": reference["tokens"], **{key: check.to_text("d", reference[key]) for key in ("exact", "allowed")},
             **{key: check.to_text("f", reference[key]) for key in ("projections", "norms")}}
    with os.fdopen(reply_fd, "w") as replies:
        for line in sys.stdin:
            request = json.loads(line)
            if role == "dies" and request["do"] == "measure" or request["do"] == "die":
                print("a last word", flush=True)
                os._exit(3)
            if request["do"] == "sleep":
                time.sleep(60)
            answers = {"load": {"checksum": "other" if role == "other-weights" else "weights"}, "hello": {"versions": {}},
                       "reference": {**coded, "checksum": "inputs", "active_experts": 64},
                       "dense": {"times": {"graph_cold": [2.0, 2.5]}}, "junk": "junk"}
            answer = measurement(role, request, reference, good, output) if request["do"] == "measure" else answers[
                request["do"]]
            replies.write(("{junk" if answer == "junk" else json.dumps(answer)) + "\n")
            replies.flush()


def contestant(library, role, folder):
    return runner.Contestant(library, folder, [sys.executable, str(pathlib.Path(__file__).resolve()), role])


def expect_failure(child, request, seconds, words):
    try:
        child.ask(request, seconds)
    except children.Failed as error:
        assert words in str(error), (words, str(error))
        assert child.process.returncode is not None and child.replies is None
    else:
        raise AssertionError(f"no failure, expected {words}")


def check_children(folder):
    for request, seconds, words in (({"do": "die"}, 20, "exit code 3: a last word"), ({"do": "junk"}, 20, "no JSON"),
                                    ({"do": "sleep"}, 0.3, "no answer within"),
                                    ({"do": "measure", "graph": True, "layer": ""}, 20, "ValueError: planted")):
        child = contestant("liger", "error", folder).child
        assert child.ask({"do": "hello"}, 20) == {"versions": {}}
        expect_failure(child, request, seconds, words)
    ended = contestant("liger", "error", folder).child
    ended.end()
    ended.end()
    begin, short = time.monotonic(), [sys.executable, "-c", "import sys; sys.exit(int(sys.argv[1]))"]
    tasks = [("good", [*short, "0"], 1), ("bad", [*short, "2"], 1), ("slow", ["sleep", "60"], 100), ("late", ["sleep", "60"],
                                                                                                     100)]
    problems = children.run_all(tasks, 2, 10, 1.5, folder / "all.log")
    assert problems == ["bad: exit code 2", "slow: no end within 2 s", "late: not begun within 2 s"], problems
    assert time.monotonic() - begin < 20


def check_runner(folder):
    """Every way in which a contestant can fail, in one cell; the others are measured all the same."""
    judge = contestant("dense", "judge", folder)
    contestants = [contestant(library, role, folder) for library, role in ROLES.items()]
    options = types.SimpleNamespace(everything=False, rounds=2, repetitions=3, budget_seconds=1e9,
                                    out=folder / "result.json")
    clocks = types.SimpleNamespace(since=lambda begin: {"samples": 0})
    machine = {"gpu": "none", "driver": "0", "power_limit": "0 W", "torch": "0", "cuda": "0"}
    meta = {"machine": machine, "hbm_bytes_per_second": 3e12, "versions": {}, "commit": "", "date": ""}
    records, left_out = runner.run_cells(runner.Runner(options, judge, contestants, clocks),
                                         [CELL._replace(tokens=count) for count in (512, 1024, 2048)], meta, [], time.monotonic())
    for one in [judge, *contestants]:
        one.drop()
    assert len(records) == 3 and not left_out
    content, layers = json.loads(options.out.read_text()), records[0]["layers"]
    assert content["cells"] == records and options.out.with_suffix(".md").read_text().startswith("# ")
    assert layers["tessera"]["times"]["graph_cold"] == {"us": 4.0, "min": 3.0, "max": 5.0, "count": 6, "rounds": [4.0, 4.0]}
    assert layers["tessera"]["problem"] == "" and set(layers["tessera"]["check"]) == {"graph", "eager"}
    assert "token 3: a projection" in layers["torch grouped_mm"]["problem"]
    assert "exit code 3" in layers["deepgemm"]["failed"] and layers["deepgemm GEMMs"]["failed"]
    assert layers["liger"]["failed"] == "ValueError: planted" and "checksum other" in layers["flashinfer"]["failed"]
    assert "other weights" in layers["sonicmoe"]["failed"]
    assert layers["vllm triton"]["no_graph"] == "it waits for the host" and set(layers["vllm triton"]["times"]) == {"eager"}
    assert content["summary"]["wrong_results"] == 6 and content["summary"]["lost"] == 0, content["summary"]
    assert records[2]["layers"]["liger"]["failed"] == "not tried again on this shape: ValueError: planted"
    assert records[0]["floor_us"] == round(grid.weight_bytes("olmoe", 64) / 3e12 * 1e6, 2) and not math.isnan(
        records[0]["dense"]["us"])


def check_clocks():
    clocks = runner.Clocks(command=("printf", "1980, 650.5\nnot a sample\n1410, 700\n"))
    begin = time.monotonic() - 1
    for _ in range(200):
        if len(clocks.samples) == 2:
            break
        time.sleep(0.02)
    assert clocks.since(begin) == {"sm_mhz": 1695.0, "watts": 675.25, "samples": 2}
    assert clocks.since(time.monotonic()) == {"samples": 0}
    clocks.close()
    runner.Clocks(command=("no-such-program-here",)).close()


def run():
    cases.self_test()
    check.self_test()
    self_test_adapters.run()
    report.self_test()
    check_clocks()
    with tempfile.TemporaryDirectory() as name:
        check_children(pathlib.Path(name))
        check_runner(pathlib.Path(name))


if __name__ == "__main__":
    behave(sys.argv[1], int(sys.argv[-1]))
