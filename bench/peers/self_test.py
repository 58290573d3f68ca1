"""Tests of the runner without torch or a GPU: processes that behave badly, wrong results, tables. run.py --self-test.

Run as a program it is such a process: self_test.py ROLE --reply-fd N.
"""
import contextlib
import io
import json
import math
import os
import pathlib
import sys
import tempfile
import time
import types

import cases
import chain
import check
import children
import grid
import parts
import report
import run as runner
import self_test_adapters
import theirs
import verdict

CELL = grid.Cell("olmoe", 512, "balanced")
ROLES = {"tessera": "good", "torch": "wrong", "deepgemm": "dies", "liger": "error", "flashinfer_cutlass": "other-inputs",
         "sonicmoe": "other-weights", "vllm": "no-graph", "sglang": "good"}
CHAIN_ROLES = {"tessera": "good", "flashinfer": "wrong", "sglang": "other-weights", "vllm": "dies", "deepgemm": "full",
               "deepgemm_fp8": "other-inputs"}


def changed(role, good):
    """A contestant's rows."""
    rows = [list(row) for row in good]
    if role == "wrong":
        rows[3] = [0.0] * len(rows[3])
    return rows


def measurement(role, request, good, output):
    """A contestant's answer to "measure"."""
    modes = ("graph_cold", "eager") if request["graph"] else ("eager",)
    if role == "error":
        return {"error": "ValueError: planted"}
    if role == "no-graph" and request["graph"]:
        return {"capture_error": "it waits for the host"}
    if request["layer"] == "deepgemm GEMMs":
        return {"skip": "no"}
    return {"checksum": "other" if role == "other-inputs" else "inputs", "note": {"tactic": role},
            "times": {mode: [3.0, 4.0, 5.0] for mode in modes},
            "outputs": {mode.split("_")[0]: output(changed(role, good)) for mode in modes}}


def chain_answer(role, request, coded, good, output):
    """The answers of judge and contestants to what a chain asks."""
    if request["do"] == "chain_routing":
        return {"experts": {str(count): [[0, 1, 2, 3]] * request["layers"] for count in request["tokens"]}}
    if request["do"] == "chain_reference":
        return {"checksum": f"weights {request['set']}",
                "references": {str(count): {**coded, "checksum": f"inputs {request['place']}"} for count in request["tokens"]}}
    if request["do"] == "chain_load":
        if role == "full":
            return {"skip": "does not fit"}
        return {"checksums": ["other" if role == "other-weights" else f"weights {number}"
                              for number in range(request["sets"])]}
    rows = changed(role, good) if request["cell"][1] == 8 else good  # planted in one of the chains
    return {"times": [2.0, 3.0, 4.0], "outputs": {str(place): output(rows) for place in request["sampled"]},
            "checksums": {str(place): "other" if role == "other-inputs" else f"inputs {place}"
                          for place in request["sampled"]}}


def behave(role, reply_fd):
    """A worker made of numbers in this file."""
    reference, good, output = check._example()
    coded = {"tokens": reference["tokens"], **{key: check.to_text("d", reference[key]) for key in ("exact", "allowed")},
             **{key: check.to_text("f", reference[key]) for key in ("projections", "norms")},
             "slots": check.to_text("f", reference["exact"])}  # one expert a token
    with os.fdopen(reply_fd, "w") as replies:
        for line in sys.stdin:
            request = json.loads(line)
            if role == "dies" and request["do"] in ("measure", "chain") or request["do"] == "die":
                print("a last word", flush=True)
                os._exit(3)
            if request["do"] == "sleep":
                time.sleep(60)
            answers = {"load": {"checksum": "other" if role == "other-weights" else "weights"}, "hello": {"versions": {}},
                       "reference": {**coded, "checksum": "inputs", "active_experts": 64}, "unload": {},
                       "dense": {"times": {"graph_cold": [2.0, 2.5]}}, "junk": "junk"}
            if request["do"] == "measure":
                answer = measurement(role, request, good, output)
            elif request["do"].startswith("chain"):
                answer = chain_answer(role, request, coded, good, output)
            else:
                answer = answers[request["do"]]
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
    problems = children.run_all(tasks, 2, 10, 6, folder / "all.log")
    assert problems == ["bad: exit code 2", "slow: no end within 6 s", "late: not begun within 6 s"], problems
    assert time.monotonic() - begin < 40


def meta(**other):
    machine = {"gpu": "none", "driver": "0", "power_limit": "0 W", "torch": "0", "cuda": "0"}
    return {"machine": machine, "hbm_bytes_per_second": 3e12, "versions": {}, "commit": "", "sources": "", "date": "",
            "settings": {}, **other}


def options(folder, **other):
    return types.SimpleNamespace(**{"everything": True, "rounds": 2, "repetitions": 3, "budget_ms": 1, "modes": ["graph_cold"],
                                    "out": folder / "result.json", **other})


def quietly(function, *arguments):
    """(what it returns, what it says)."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return function(*arguments), said.getvalue()


def check_runner(folder):
    """Every way in which a contestant can fail, in one cell; the others are measured all the same."""
    judge = contestant("dense", "judge", folder)
    contestants = [contestant(library, role, folder) for library, role in ROLES.items()]
    asked, clocks = options(folder), types.SimpleNamespace(since=lambda begin: {"samples": 0})
    book = parts.Book(asked.out, meta(), [])
    stopped, said = quietly(runner.run_cells, runner.Runner(asked, judge, contestants, clocks),
                            [CELL._replace(tokens=count) for count in (512, 1024, 2048)], book,
                            parts.Progress(None, time.monotonic))
    for one in [judge, *contestants]:
        one.drop()
    records = book.cells
    assert len(records) == 3 and not book.left_out and not stopped and "3 of 3, about 0 s to go" in said, said
    content, layers = json.loads(asked.out.read_text()), records[0]["layers"]
    assert content["cells"] == records and asked.out.with_suffix(".md").read_text().startswith("# ")
    assert layers["tessera"]["times"]["graph_cold"] == {"us": 4.0, "min": 3.0, "max": 5.0, "count": 6, "rounds": [4.0, 4.0]}
    assert layers["tessera"]["problem"] == "" and set(layers["tessera"]["check"]) == {"graph", "eager"}
    assert layers["tessera"]["note"] == {"tactic": "good"}
    assert "token 3: a projection" in layers["torch grouped_mm"]["problem"]
    assert "exit code 3" in layers["deepgemm"]["failed"] and layers["deepgemm GEMMs"]["failed"]
    assert layers["liger"]["failed"] == "ValueError: planted"
    assert "checksum other" in layers["flashinfer cutlass"]["failed"] and "other weights" in layers["sonicmoe"]["failed"]
    assert layers["vllm triton"]["no_graph"] == "it waits for the host" and set(layers["vllm triton"]["times"]) == {"eager"}
    assert content["summary"]["wrong_results"] == 6 and not content["verdict"], content["summary"]
    assert set(content["summary"]["formats"]["bf16"]["peers"]) == {"sglang triton", "vllm triton"}  # the wrong one wins nothing
    assert records[2]["layers"]["liger"]["failed"] == "not tried again on this shape: ValueError: planted"
    assert records[0]["floors"]["bf16"] == round(grid.weight_bytes("olmoe", 64) / 3e12 * 1e6, 2) and not math.isnan(
        records[0]["dense"]["us"])


def check_parts(folder):
    """A run that its limit stops goes on where it stopped, and only there; other states of the file are refused."""
    cells, asked = [CELL._replace(tokens=count) for count in (512, 1024, 2048, 4096)], options(folder, out=folder / "parts.json")
    clocks, ticks = types.SimpleNamespace(since=lambda begin: {"samples": 0}), iter(range(0, 1000, 5))

    def part(limit_s, **other):
        content = parts.earlier(asked.out)
        book = parts.open_book(asked.out, meta(**other), [], content)
        judge, one = contestant("dense", "judge", folder), contestant("tessera", "good", folder)
        try:
            todo = parts.remaining(cells, content)
            stopped, said = quietly(runner.run_cells, runner.Runner(asked, judge, [one], clocks), todo, book,
                                    parts.Progress(limit_s, lambda: next(ticks)))
        finally:
            judge.drop()
            one.drop()
        return stopped, said, [cell.tokens for cell in todo]
    stopped, said, todo = part(40)  # every look at the clock takes 5 s: two cells fit
    assert stopped and todo == [512, 1024, 2048, 4096] and "2 cells left" in said, said
    content = json.loads(asked.out.read_text())
    assert [record["tokens"] for record in content["cells"]] == [512, 1024]
    assert content["left_out"] == [["olmoe", 2048, "balanced"], ["olmoe", 4096, "balanced"]]
    try:
        part(None, commit="another")
        raise AssertionError("another commit went on with the file")
    except SystemExit as error:
        assert "commit: got another, expected " in str(error) and "report.py FILE --add" in str(error), error
    stopped, said, todo = part(None)
    content = json.loads(asked.out.read_text())
    assert not stopped and todo == [2048, 4096] and [record["run"] for record in content["cells"]] == [0, 0, 1, 1]
    assert [run["cells"] for run in content["meta"]["runs"]] == [2, 2] and not content["left_out"]
    assert not parts.remaining(cells, content)


def check_chain(folder):
    """A chain's bookkeeping with every way to fail; what is wrong in one chain is so in no other."""
    judge = contestant("dense", "judge", folder)
    contestants = [contestant(library, role, folder) for library, role in CHAIN_ROLES.items()]
    book = parts.Book(folder / "chain.json", meta(), [])
    seconds = iter([0, 9, 9, 9, 11, 12, 12, 12, 12])
    stopped, said = quietly(runner.run_chains, chain.ChainRunner(judge, contestants), ["qwen3-30b", "mixtral-8x7b"], [1, 8],
                            book, parts.Progress(15, lambda: next(seconds)))
    for one in [judge, *contestants]:
        one.drop()
    content = json.loads((folder / "chain.json").read_text())
    assert stopped and "left: mixtral-8x7b" in said and [(r["preset"], r["tokens"]) for r in content["chain"]] == [
        ("qwen3-30b", 1), ("qwen3-30b", 8)], said
    first, second = (record["layers"] for record in content["chain"])
    assert first["tessera"]["times"]["chain"]["us"] == 3.0 and set(first["tessera"]["check"]) == {"0", "9", "19"}
    assert not first["flashinfer"]["problem"] and "layer 0: token 3" in second["flashinfer"]["problem"]
    assert "other weights" in first["sglang triton"]["failed"] and "exit code 3" in first["vllm triton"]["failed"]
    assert first["deepgemm"]["skip"] == "does not fit" and "checksum other" in first["deepgemm fp8"]["failed"]
    assert "deepgemm GEMMs" not in first and "flashinfer det" not in first
    expected = cases.weight_bytes("qwen3-30b", 4, "fp8-block")
    assert content["chain"][0]["usage"]["fp8-block"] == {"read_bytes": expected, "distinct_bytes": 20 * expected,
                                                         "least_reuse_bytes": 19 * expected}
    assert content["chain"][0]["floors"]["fp8-block"] == round(expected / 3e12 * 1e6, 2)
    assert content["summary"]["chain"]["bf16"]["cells"] == 1 and content["summary"]["chain_claim"].startswith("level")
    small = {**content["chain"][0], "usage": {fmt: {"least_reuse_bytes": 1} for fmt in cases.FORMATS}}
    assert "come back" in chain.ChainRunner(judge, []).measure_layer(None, "tessera", small, 20, ({}, {}), [])["skip"]


def check_finish(folder):
    """The exit codes."""
    book = parts.Book(folder / "none.json", meta(), [])
    assert quietly(runner.ended, book, False)[0] == parts.WRONG
    book.add(report.example_cell("olmoe", 1, "random", 100.0, 90.0))
    assert quietly(runner.ended, book, False)[0] == parts.COMPLETE and quietly(runner.ended, book, True)[0] == 3
    book.add(report.example_cell("olmoe", 2, "random", 100.0, 90.0, "token 0: off"))
    assert quietly(runner.ended, book, True)[0] == parts.WRONG


def check_layers():
    """What is said of each layer is said of the layers that there are."""
    assert {layer: (parts.library, parts.format) for layer, parts in theirs.LAYERS.items()} == {
        layer: (library, cases.format_of(layer)) for library, layers in cases.LAYERS.items() for layer in layers}


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
    verdict.self_test()
    report.self_test()
    parts.self_test()
    chain.self_test()
    check_layers()
    check_clocks()
    with tempfile.TemporaryDirectory() as name:
        check_children(pathlib.Path(name))
        for one in (check_runner, check_parts, check_chain, check_finish):
            one(pathlib.Path(name))


if __name__ == "__main__":
    behave(sys.argv[1], int(sys.argv[-1]))
