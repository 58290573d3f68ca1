#!/usr/bin/env python3
"""Times whole MoE layers of every library that is installed on one GPU: one process a library, the same inputs.

  run.py --out bench/results/peers_h100.json            everything: about 8 minutes on one H100, compiling included
  run.py --out FILE --quick                             a few cells: about a minute after what is compiled
  run.py --out FILE --peers tessera,torch,deepgemm --presets qwen3-30b --tokens 512,16384
  run.py --list                                         libraries, layers and cells; needs no GPU
  run.py --self-test                                    the bookkeeping and the checker; needs neither torch nor a GPU

A library that cannot be imported or does not run a small problem is listed as absent with its message. Every process makes
the inputs of a cell on the GPU from the same seed; their checksums must be equal. In each round the processes measure in
turn, the dense cuBLAS products first, so that A B A B is compared. What the timed runs wrote is checked: sampled rows with
an fp64 reference, every row by random projections (check.py). FILE is rewritten after every cell, FILE.md beside it.

The JSON file:
  schema   1
  meta     machine, hbm_bytes_per_second, versions {library: {package: version}}, commit, date, plan, method, seconds
  cells    [{preset, tokens, routing, hidden_size, intermediate_size, num_experts, top_k, rows, active_experts, flop,
           floor_us (weights of the experts in use / hbm_bytes_per_second), checksum, dense: TIMES,
           clocks {sm_mhz, watts, samples}, layers {name: {times {graph_cold, graph_warm, eager: TIMES}, no_graph, check
           {graph, eager: {of_bound, row_error}}, problem} or {failed} or {skip}}}]
  TIMES    {us (median), min, max, count, rounds: [median of each round]}
  verdict  [{verdict: "lost", preset, tokens, routing, peer, mode, ours_us, peer_us, ratio}], T >= 512, ratio < 1 never there
  absent   [{library, reason, note}];  left_out  cells that the time did not suffice for
  summary, *_table  for documents (scripts/figures.py); a table has columns and rows
"""
import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import cases
import check
import grid
import report
from children import Child, Failed, run_all

HERE = pathlib.Path(__file__).resolve().parent
WORKER = [sys.executable, str(HERE / "worker.py")]
ANSWER_SECONDS, LOAD_SECONDS = 60, 150  # a library may compile and choose kernels when it loads
MOST_RESTARTS = 10
MOST_FAILURES = 2  # of a layer on a preset's cells; then it is left alone until the next preset
AHEAD_BYTES = 60 << 30  # of GPU memory for processes that compile side by side


class Clocks:
    """SM clock and power while the benchmark runs, read from nvidia-smi a few times a second."""

    def __init__(self, command=("nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "-lms",
                                "200")):
        self.samples, self.process = [], None
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                mhz, watts = (float(word) for word in line.split(",")[:2])
            except ValueError:
                continue
            self.samples.append((time.monotonic(), mhz, watts))

    def since(self, begin):
        """Medians of the samples after `begin`."""
        taken = [sample for sample in list(self.samples) if sample[0] >= begin]
        return {"sm_mhz": statistics.median(s[1] for s in taken), "watts": statistics.median(s[2] for s in taken),
                "samples": len(taken)} if taken else {"samples": 0}

    def close(self):
        if self.process:
            self.process.terminate()
            self.process.wait()


class Contestant:
    """A library's process; started again after a failure, a few times."""

    def __init__(self, library, folder, command=None):
        self.library, self.restarts, self.preset, self.no_graph = library, 0, None, {}
        self.command, self.log = command or [*WORKER, "--library", library], folder / f"{library}.log"
        self.child = self.start()

    def start(self):
        return Child(self.library, self.command, self.log)

    def enter(self, seconds):
        """What the process says of itself."""
        answer = self.child.receive(seconds)
        if answer.get("capture_problem"):
            self.no_graph = dict.fromkeys(cases.LAYERS[self.library], answer["capture_problem"])
        return answer

    def ready(self, preset, seconds):
        """Makes sure that a live process holds this preset's weights; returns their checksum if it had to load them."""
        if self.child is None:
            if self.restarts >= MOST_RESTARTS:
                raise Failed(f"given up after {MOST_RESTARTS} restarts")
            self.restarts += 1
            self.child, self.preset = self.start(), None
        if self.preset == preset:
            return None
        answer = self.ask({"do": "load", "preset": preset}, seconds)
        self.preset = preset
        return answer["checksum"]

    def ask(self, request, seconds):
        try:
            return self.child.ask(request, seconds)
        except Failed:
            self.drop()
            raise

    def drop(self):
        if self.child:
            self.child.end()
        self.child = self.preset = None

    def measure(self, cell, layer, repetitions):
        """The process's answer. A call that cannot be captured is asked for once more, in a new process, without."""
        request = {"do": "measure", "cell": list(cell), "layer": layer, "graph": layer not in self.no_graph,
                   "repetitions": repetitions}
        answer = self.ask(request, ANSWER_SECONDS)
        if "capture_error" in answer:
            self.no_graph[layer] = answer["capture_error"][:300]
            self.drop()
            self.restarts -= 1  # no fault of the layer's
            self.ready(cell.preset, LOAD_SECONDS + ANSWER_SECONDS)
            answer = self.ask({**request, "graph": False}, ANSWER_SECONDS)
        return answer


class LayerResult:
    """What the rounds of one layer on one cell add up to."""

    def __init__(self, layer):
        self.slack = check.OWN_SLACK if layer == cases.OURS else check.PEER_SLACK
        self.times, self.checks, self.problem, self.failed, self.skip = {}, {}, "", "", ""

    def add(self, answer, reference, checksum):
        if "skip" in answer:
            self.skip = answer["skip"]
            return
        if answer["checksum"] != checksum:
            self.failed = f"other inputs than the judge's: checksum {answer['checksum']}, expected {checksum}"
            return
        for mode, times in answer["times"].items():
            self.times.setdefault(mode, []).append(times)
        for kind, output in answer["outputs"].items():
            found = check.judged(output, reference, self.slack)
            self.problem = self.problem or (f"{kind}: {found['problem']}" if found["problem"] else "")
            self.checks[kind] = {key: max(found[key], self.checks.get(kind, {}).get(key, 0.0))
                                 for key in ("of_bound", "row_error") if key in found}

    def over(self):
        return bool(self.skip or self.failed)

    def record(self, no_graph):
        if self.failed or self.skip:
            return {"failed": self.failed} if self.failed else {"skip": self.skip}
        entry = {"times": {mode: report.summarized(rounds) for mode, rounds in self.times.items()}, "check": self.checks,
                 "problem": self.problem}
        return {**entry, "no_graph": no_graph} if no_graph else entry


class Runner:
    def __init__(self, options, judge, contestants, clocks):
        self.options, self.judge, self.contestants, self.clocks = options, judge, contestants, clocks
        self.weights_checksum, self.failures = None, {}

    def take_up(self, preset):
        """All processes load a preset's weights side by side."""
        asked = [self.judge, *self.contestants]
        answers = {}
        threads = [threading.Thread(target=self.load_one, args=(one, preset, answers)) for one in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        problem = answers.get(self.judge.library)
        if isinstance(problem, Failed):
            raise problem
        self.weights_checksum = problem or self.weights_checksum
        for one in self.contestants:
            if isinstance(answers.get(one.library), str) and answers[one.library] != self.weights_checksum:
                one.drop()  # it loads once more when it is to measure; if they differ again, that is its failure

    def load_one(self, one, preset, answers):
        try:
            answers[one.library] = one.ready(preset, LOAD_SECONDS)
        except Failed as error:
            answers[one.library] = error

    def check_weights(self, one, checksum):
        if isinstance(checksum, str) and checksum != self.weights_checksum:
            one.drop()
            raise Failed(f"{one.library}: other weights than the judge's: {checksum}, expected {self.weights_checksum}")

    def measure_layer(self, one, cell, layer, result, reference, checksum):
        reason = cases.left_out(layer, cell, self.options.everything)
        if reason:
            result.skip = reason
            return
        failures = self.failures.setdefault((layer, cell.preset), [])
        if len(failures) >= MOST_FAILURES:
            result.failed = f"not tried again on this shape: {failures[-1]}"
            return
        try:
            self.check_weights(one, one.ready(cell.preset, LOAD_SECONDS))
            result.add(one.measure(cell, layer, self.options.repetitions), reference, checksum)
        except Failed as error:
            failures.append(str(error))
            result.failed = str(error)

    def measure_cell(self, cell, rate):
        """The cell's record."""
        begin = time.monotonic()
        answer = self.judge.ask({"do": "reference", "cell": list(cell)}, ANSWER_SECONDS)
        reference, dense = check.decoded_reference(answer), []
        results = {layer: LayerResult(layer) for one in self.contestants for layer in cases.LAYERS[one.library]}
        for _ in range(self.options.rounds):
            dense.append(self.judge.ask({"do": "dense", "cell": list(cell), "repetitions": self.options.repetitions},
                                        ANSWER_SECONDS)["times"]["graph_cold"])
            for one in self.contestants:
                for layer in cases.LAYERS[one.library]:
                    if not results[layer].over():
                        self.measure_layer(one, cell, layer, results[layer], reference, answer["checksum"])
        hidden, intermediate, experts, top_k = grid.PRESETS[cell.preset]
        no_graph = {layer: reason for one in self.contestants for layer, reason in one.no_graph.items()}
        return {"preset": cell.preset, "tokens": cell.tokens, "routing": cell.routing, "hidden_size": hidden,
                "intermediate_size": intermediate, "num_experts": experts, "top_k": top_k, "rows": cell.tokens * top_k,
                "active_experts": answer["active_experts"], "flop": cases.flops(cell),
                "floor_us": round(grid.weight_bytes(cell.preset, answer["active_experts"]) / rate * 1e6, 2),
                "checksum": answer["checksum"], "weights_checksum": self.weights_checksum,
                "dense": report.summarized(dense), "clocks": self.clocks.since(begin),
                "layers": {layer: result.record(no_graph.get(layer)) for layer, result in results.items()}}


def say(text):
    print(text, file=sys.stderr, flush=True)


def enter_all(libraries, folder, seconds):
    """(contestants, what each said, absent): all start side by side; who does not answer is absent."""
    begin, contestants, said, absent = time.monotonic(), [], {}, []
    started = [Contestant(library, folder) for library in libraries]
    for one in started:
        try:
            one.child.send({"do": "hello"})
        except Failed:
            pass  # its message comes below
    for one in started:
        try:
            said[one.library] = one.enter(max(seconds - (time.monotonic() - begin), 1))
            contestants.append(one)
        except Failed as error:
            one.drop()
            absent.append({"library": one.library, "reason": str(error), "note": cases.WHERE_ABSENT.get(one.library, "")})
            say(f"absent: {one.library}: {error}")
    return contestants, said, absent


def compile_ahead(contestants, cells, folder, seconds, everything):
    """Fills the caches of libraries that compile for each shape, on many cores at once. Failures show up again later."""
    tasks = []
    for library in [one.library for one in contestants if one.library in cases.AHEAD_PARTS]:
        parts = cases.AHEAD_PARTS[library]
        for preset in dict.fromkeys(cell.preset for cell in cells):
            mine = [cell for cell in cells if cell.preset == preset
                    and not cases.left_out(cases.LAYERS[library][0], cell, everything)]
            counts = cases.AHEAD_TOKENS.get(library) or sorted({cell.tokens for cell in mine})
            size = grid.weight_bytes(preset, grid.PRESETS[preset][2]) + (1 << 30) + max(counts, default=0) * grid.PRESETS[
                preset][3] * 2 * (2 * grid.PRESETS[preset][0] + 3 * grid.PRESETS[preset][1])
            for part in range(parts if mine else 0):
                tasks.append((f"{library} {preset} {part + 1}/{parts}", [
                    *WORKER, "--library", library, "--ahead", preset, "--tokens", ",".join(map(str, counts)), "--part",
                    str(part), "--parts", str(parts)], size))
    if not tasks:
        return []
    say(f"compiling ahead: {len(tasks)} processes")
    return run_all(tasks, max((os.cpu_count() or 4) - 1, 2), AHEAD_BYTES, seconds, folder / "ahead.log")


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.strip() or "unknown"


def meta_of(hello, said, options, notes):
    return {"machine": hello["machine"], "hbm_bytes_per_second": hello["hbm_bytes_per_second"],
            "versions": {library: answer["versions"] for library, answer in said.items()}, "commit": commit(),
            "date": datetime.date.today().isoformat(), "rounds": options.rounds, "repetitions": options.repetitions,
            "compile_notes": notes, "method": " ".join(__doc__.split("\n\n")[2].split())}


def compare(options):
    begin = time.monotonic()
    cells = cases.plan(options.quick, options.presets, options.tokens)
    with tempfile.TemporaryDirectory(prefix="peers_") as name:
        folder = pathlib.Path(name)
        judge = Contestant("dense", folder)
        try:
            hello = judge.ask({"do": "hello"}, options.start_seconds)
        except Failed as error:
            sys.exit(f"run.py: no comparison without torch and a GPU: {error}")
        contestants, said, absent = enter_all(options.peers, folder, options.start_seconds)
        say(f"{time.monotonic() - begin:.0f} s: {', '.join(one.library for one in contestants)} take part")
        notes = compile_ahead(contestants, cells, folder, options.ahead_seconds, options.everything)
        meta, clocks = meta_of(hello, said, options, notes), Clocks()
        say("\n".join([f"{time.monotonic() - begin:.0f} s: {len(cells)} cells", *notes]))
        runner = Runner(options, judge, contestants, clocks)
        try:
            records, left_out = run_cells(runner, cells, meta, absent, begin)
        finally:
            clocks.close()
            for one in [judge, *contestants]:
                one.drop()
            if options.log:
                options.log.write_text("".join(f"== {log.name}\n{log.read_text(errors='replace')}\n"
                                               for log in sorted(folder.glob("*.log"))))
    content = report.document(meta, records, absent, left_out)
    say(f"{len(records)} cells, {len(left_out)} left out, {content['summary']['wrong_results']} wrong results, "
        f"{len(content['verdict'])} times a peer was faster")
    return 0 if records and not content["summary"]["wrong_results"] else 1


def run_cells(runner, cells, meta, absent, begin):
    """(records, cells left out). Writes the file after every cell; a cell that fails as a whole ends nothing."""
    options, records, left_out = runner.options, [], []
    for cell in cells:
        if time.monotonic() - begin > options.budget_seconds:
            left_out.append(cell)
            continue
        try:
            runner.take_up(cell.preset)
            records.append(runner.measure_cell(cell, meta["hbm_bytes_per_second"]))
            say(f"{time.monotonic() - begin:.0f} s: {cell.preset} T={cell.tokens} {cell.routing}: " + ", ".join(
                f"{layer} {report.entry_text(records[-1], layer, lambda us: us)}" for layer in records[-1]["layers"]))
        except Failed as error:
            left_out.append(cell)
            say(f"{cell.preset} T={cell.tokens} {cell.routing}: {error}")
        meta["seconds"] = round(time.monotonic() - begin)
        report.write(options.out, report.document(meta, records, absent, left_out))
    if records:
        report.write(options.out, report.document(meta, records, absent, left_out))
    return records, left_out


def listing(options):
    for library, layers in cases.LAYERS.items():
        for layer in layers:
            print(f"{library:13} {cases.TITLES[layer]}" + (f": {cases.BOUNDS[layer]}" if layer in cases.BOUNDS else ""))
    for cell in cases.plan(options.quick, options.presets, options.tokens):
        print(f"{cell.preset:20} T={cell.tokens:<6} {cell.routing}")
    return 0


def main():
    from torch_moe import choice_of
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file; FILE.md is written beside it")
    parser.add_argument("--peers", type=choice_of(tuple(cases.LAYERS)), default=list(cases.LAYERS))
    parser.add_argument("--presets", type=choice_of(tuple(grid.PRESETS)))
    parser.add_argument("--tokens", type=choice_of(grid.TOKENS, int))
    parser.add_argument("--quick", action="store_true", help="a few cells, one round")
    parser.add_argument("--everything", action="store_true", help="also what the plan leaves out because it takes long")
    parser.add_argument("--rounds", type=int, help="default 2; 1 with --quick")
    parser.add_argument("--repetitions", type=int, default=10, help="least runs of a layer in a round")
    parser.add_argument("--budget-seconds", type=float, default=480, help="begin no cell after so long")
    parser.add_argument("--start-seconds", type=float, default=120, help="for imports and a first small problem")
    parser.add_argument("--ahead-seconds", type=float, default=150, help="for compiling ahead")
    parser.add_argument("--log", type=pathlib.Path, help="file for what the processes print")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 2)
    if options.self_test:
        import self_test
        self_test.run()
        print("run.py: self-test passed")
        return 0
    if options.list:
        return listing(options)
    if not options.out:
        parser.error("--out: expected a file for the results")
    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
