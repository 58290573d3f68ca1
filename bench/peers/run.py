#!/usr/bin/env python3
"""Times whole MoE layers of every library that is installed on one GPU: one process a library, the same inputs.

  run.py --out bench/results/peers_h200.json            the whole grid: about 9 minutes on one H200, compiling not counted
  run.py --out FILE --limit-s 540                       a part of it; called again it goes on where FILE stopped (exit code 3:
                                                        call again)
  run.py --out FILE --chain                             chains of layers for decoding: about 4 minutes, into the same file
  run.py --out FILE --quick                             a few cells: under a minute after what is compiled
  run.py --out FILE --peers tessera,torch,deepgemm --presets qwen3-30b --tokens 512,16384
  run.py --list                                         libraries, layers and cells; needs no GPU
  run.py --self-test                                    the bookkeeping and the checker; needs neither torch nor a GPU

A library that cannot be imported or does not run a small problem is listed as absent with its message. Every process makes
the inputs of a cell on the GPU from the same seed; their checksums must be equal. In each round the processes measure in
turn, the dense cuBLAS products first, so that A B A B is compared. What the timed runs wrote is checked: sampled rows with
an fp64 reference, every row by random projections (check.py). FILE is rewritten after every cell, FILE.md beside it.

The JSON file:
  schema   2
  meta     machine, hbm_bytes_per_second, versions {library: {package: version}}, commit, sources, date, settings, method,
           seconds, notes {layer: {theirs, ours}}, runs [the same of each part, and how many cells and chains it measured]
  cells    [{preset, tokens, routing, run (of meta.runs), format_runs ({format: run} of layers that are of another),
           hidden_size, intermediate_size, num_experts, top_k, rows, active_experts, flop, floors {format: us (weights of the
           experts in use / hbm_bytes_per_second of the run)}, checksum, dense: TIMES, clocks {sm_mhz, watts, samples},
           layers {name: {times {graph_cold, graph_warm, eager: TIMES}, no_graph, note, check {graph, eager: {of_bound,
           row_error}}, problem} or {failed} or {skip}}}]
  chain    [{preset, tokens, run, layers_in_chain, sets, usage {format: {read_bytes (a layer), distinct_bytes,
           least_reuse_bytes}}, floors {format: us}, layers {name: {times {chain: TIMES (a layer)}, note, check {place: ...},
           problem} or {failed} or {skip}}}]
  TIMES    {us (median), min, max, count, rounds: [median of each round]}
  verdict  [{verdict, preset, tokens, routing, format, peer, peer_us, peer_mode, ours, ours_us, ratio}]: every cell in which
           the best peer of a format is faster than ours; ratio is the peer's time over ours
  absent   [{library, reason, note}];  left_out  cells that the time did not suffice for
  summary, *_table  for documents (scripts/figures.py); a table has columns and rows
"""
import argparse
import concurrent.futures
import datetime
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import cases
import chain
import check
import grid
import parts
import report
import tables
from children import Child, Failed, run_all

HERE = pathlib.Path(__file__).resolve().parent
WORKER = [sys.executable, str(HERE / "worker.py")]
ANSWER_SECONDS, LOAD_SECONDS = 90, 150  # a library may compile and choose kernels when it first runs, and when it loads
MOST_RUNS = 5  # times the least number: what a fast layer gets in a round
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

    def ensure(self):
        """Makes sure that there is a live process."""
        if self.child is None:
            if self.restarts >= MOST_RESTARTS:
                raise Failed(f"given up after {MOST_RESTARTS} restarts")
            self.restarts += 1
            self.child, self.preset = self.start(), None

    def ready(self, preset, seconds):
        """Makes sure that a live process holds this preset's weights; returns their checksum if it had to load them."""
        self.ensure()
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

    def measure(self, cell, layer, runs):
        """The process's answer. A call that cannot be captured is asked for once more, in a new process, without."""
        request = {"do": "measure", "cell": list(cell), "layer": layer, "graph": layer not in self.no_graph, **runs}
        answer = self.ask(request, ANSWER_SECONDS)
        if "capture_error" in answer:
            self.no_graph[layer] = answer["capture_error"][:300]
            self.drop()
            self.restarts -= 1  # no fault of the layer's
            self.ready(cell.preset, LOAD_SECONDS + ANSWER_SECONDS)
            answer = self.ask({**request, "graph": False}, ANSWER_SECONDS)
        return answer


class LayerResult:
    """What the rounds of one layer on one cell add up to. Judging is left to another thread: the next layer is measured
    meanwhile."""

    def __init__(self, layer, judging):
        self.layer, self.judging, self.slack = layer, judging, check.OWN_SLACK if cases.is_ours(layer) else check.PEER_SLACK
        self.times, self.verdicts, self.failed, self.skip, self.note = {}, [], "", "", None

    def add(self, answer, reference, checksum):
        if "skip" in answer:
            self.skip = answer["skip"]
            return
        if answer["checksum"] != checksum:
            self.failed = f"other inputs than the judge's: checksum {answer['checksum']}, expected {checksum}"
            return
        self.note = answer.get("note", self.note)
        for mode, times in answer["times"].items():
            self.times.setdefault(mode, []).append(times)
        for kind, output in answer["outputs"].items():
            self.verdicts.append((kind, self.judging.submit(check.judged, output, reference, self.slack,
                                                            cases.format_of(self.layer))))

    def over(self):
        return bool(self.skip or self.failed)

    def record(self, no_graph):
        if self.failed or self.skip:
            return {"failed": self.failed} if self.failed else {"skip": self.skip}
        problem, checks = "", {}
        for kind, found in [(kind, future.result()) for kind, future in self.verdicts]:
            problem = problem or (f"{kind}: {found['problem']}" if found["problem"] else "")
            checks[kind] = {key: max(found[key], checks.get(kind, {}).get(key, 0.0))
                            for key in ("of_bound", "row_error") if key in found}
        entry = {"times": {mode: report.summarized(rounds) for mode, rounds in self.times.items()}, "check": checks,
                 "problem": problem}
        return {**entry, **({"note": self.note} if self.note else {}), **({"no_graph": no_graph} if no_graph else {})}


class Runner:
    def __init__(self, options, judge, contestants, clocks):
        self.options, self.judge, self.contestants, self.clocks = options, judge, contestants, clocks
        self.weights_checksum, self.failures = None, {}
        self.judging = concurrent.futures.ThreadPoolExecutor(1)
        self.runs = {"budget_us": 1e3 * options.budget_ms, "least": options.repetitions,
                     "most": MOST_RUNS * options.repetitions, "modes": options.modes}

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
            result.add(one.measure(cell, layer, self.runs), reference, checksum)
        except Failed as error:
            failures.append(str(error))
            result.failed = str(error)

    def measure_cell(self, cell, rate):
        """The cell's record."""
        begin = time.monotonic()
        answer = self.judge.ask({"do": "reference", "cell": list(cell)}, ANSWER_SECONDS)
        reference, dense = check.decoded_reference(answer), []
        results = {layer: LayerResult(layer, self.judging) for one in self.contestants for layer in cases.LAYERS[one.library]}
        for _ in range(self.options.rounds):
            dense.append(self.judge.ask({"do": "dense", "cell": list(cell), **self.runs},
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
                "floors": {fmt: round(cases.weight_bytes(cell.preset, answer["active_experts"], fmt) / rate * 1e6, 2)
                           for fmt in cases.FORMATS},
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
    if not seconds:
        return []
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


def meta_of(hello, said, options, notes):
    settings = {name: getattr(options, name) for name in ("rounds", "repetitions", "budget_ms", "modes")}
    return {"machine": hello["machine"], "hbm_bytes_per_second": hello["hbm_bytes_per_second"],
            "versions": {library: answer["versions"] for library, answer in said.items()},
            "commit": options.commit or parts.commit(), "sources": parts.sources(),
            "date": datetime.date.today().isoformat(), "settings": settings, "compile_notes": notes,
            "method": " ".join(__doc__.split("\n\n")[2].split())}


def work_left(options, content):
    """The cells, or the presets whose chains, are still to be measured."""
    if options.chain:
        return parts.remaining_presets(options.presets or cases.PRESETS, chain_tokens(options), content)
    return parts.remaining(cases.plan(options.quick, options.presets, options.tokens), content)


def chain_tokens(options):
    return [count for count in options.tokens or cases.CHAIN_TOKENS if count in cases.CHAIN_TOKENS]


def compare(options):
    begin, content = time.monotonic(), parts.earlier(options.out)
    todo = work_left(options, content)
    if not todo:
        say(f"{options.out}: nothing is left to measure")
        return parts.COMPLETE
    with tempfile.TemporaryDirectory(prefix="peers_") as name:
        folder = pathlib.Path(name)
        judge = Contestant("dense", folder)
        try:
            hello = judge.ask({"do": "hello"}, options.start_seconds)
        except Failed as error:
            sys.exit(f"run.py: no comparison without torch and a GPU: {error}")
        contestants, said, absent = enter_all(options.peers, folder, options.start_seconds)
        absent += [{"library": library, "reason": cases.NOT_ASKED, "note": ""} for library in cases.LAYERS
                   if library not in options.peers]
        say(f"{time.monotonic() - begin:.0f} s: {', '.join(one.library for one in contestants)} take part")
        clocks = None
        try:
            book = parts.open_book(options.out, meta_of(hello, said, options, []), absent, content)
            if not options.chain:  # a chain's kernels are the grid's
                book.meta["compile_notes"] = compile_ahead(contestants, todo, folder, options.ahead_seconds,
                                                           options.everything)
            clocks = Clocks()
            say("\n".join([f"{time.monotonic() - begin:.0f} s: {len(todo)} to measure", *book.meta["compile_notes"]]))
            progress = parts.Progress(options.limit_s, lambda: time.monotonic() - begin)
            if options.chain:
                stopped = run_chains(chain.ChainRunner(judge, contestants), todo, chain_tokens(options), book, progress)
            else:
                stopped = run_cells(Runner(options, judge, contestants, clocks), todo, book, progress)
        finally:
            if clocks:
                clocks.close()
            for one in [judge, *contestants]:
                one.drop()
            if options.log:
                options.log.write_text("".join(f"== {log.name}\n{log.read_text(errors='replace')}\n"
                                               for log in sorted(folder.glob("*.log"))))
    return ended(book, stopped)


def ended(book, stopped):
    """Says what there is, and returns the exit code."""
    content = book.content()
    total = content["summary"]
    say(f"{total['cells']} cells, {total['chains']} chains, {len(book.left_out)} left out, {total['wrong_results']} wrong "
        f"results, {len(content['verdict'])} cells in which a peer is faster\nagainst the best 16-bit peer: {total['claim']}\n"
        f"against the best FP8 peer: {total['fp8_claim']}")
    if total["wrong_results"] or not (content["cells"] or content["chain"]):
        return parts.WRONG
    return parts.LIMIT_REACHED if stopped else parts.COMPLETE


def run_cells(runner, cells, book, progress):
    """Whether the limit ended it. Writes the file after every cell; a cell that fails as a whole ends nothing."""
    book.left_out = list(cells)
    for number, cell in enumerate(cells):
        begin = progress.clock()
        if not progress.fits(cell.tokens):
            say(f"{begin:.0f} s: stopped before the limit of {progress.limit_s:.0f} s with {len(cells) - number} cells left, "
                f"about {progress.left([c.tokens for c in cells[number:]]):.0f} s; the same command goes on with them")
            book.write(begin)
            return True
        words = f"{cell.preset} T={cell.tokens} {cell.routing}"
        try:
            runner.take_up(cell.preset)
            record = runner.measure_cell(cell, book.meta["hbm_bytes_per_second"])
            book.add(record)
            book.left_out.remove(cell)
            words += ": " + ", ".join(f"{layer} {tables.entry_text(record, layer, lambda us: us)}"
                                      for layer, entry in record["layers"].items() if not entry.get("skip"))
        except Failed as error:
            words += f": {error}"
        progress.took(cell.tokens, progress.clock() - begin)
        say(f"{progress.clock():.0f} s, {number + 1} of {len(cells)}, about "
            f"{progress.left([c.tokens for c in cells[number + 1:]]):.0f} s to go: {words}")
        book.write(progress.clock())
    return False


def run_chains(runner, presets, tokens, book, progress):
    """The same for chains, a preset at a time."""
    for number, preset in enumerate(presets):
        begin = progress.clock()
        if not progress.fits(1):
            say(f"{begin:.0f} s: stopped before the limit of {progress.limit_s:.0f} s; left: {', '.join(presets[number:])}")
            return True
        try:
            records = runner.measure(preset, tokens, book.meta["hbm_bytes_per_second"])
            known = {report.place(record) for record in book.chain}
            book.add_chains([record for record in records if report.place(record) not in known])
            for record in records:
                say(f"  {preset} T={record['tokens']}: floors {record['floors']}, " + ", ".join(
                    f"{layer} {tables.entry_text(record, layer, lambda us: us)}" for layer in record["layers"]))
        except Failed as error:
            say(f"{preset}: {error}")
        progress.took(1, progress.clock() - begin)
        say(f"{progress.clock():.0f} s, {number + 1} of {len(presets)} presets, about "
            f"{progress.left([1] * (len(presets) - number - 1)):.0f} s to go")
        book.write(progress.clock())
    return False


def listing(options):
    for library, layers in cases.LAYERS.items():
        for layer in layers:
            print(f"{library:13} {cases.TITLES[layer]}" + (f": {cases.BOUNDS[layer]}" if layer in cases.BOUNDS else ""))
    for cell in cases.plan(options.quick, options.presets, options.tokens):
        print(f"{cell.preset:20} T={cell.tokens:<6} {cell.routing}")
    return 0


def parse():
    from torch_moe import choice_of
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file; FILE.md is written beside it")
    parser.add_argument("--chain", action="store_true", help="chains of layers instead of the grid")
    parser.add_argument("--peers", type=choice_of(tuple(cases.LAYERS)), help="default: " + ",".join(cases.STRONG))
    parser.add_argument("--format", choices=tuple(cases.FORMATS), help="of the weights: layers of this one alone")
    parser.add_argument("--presets", type=choice_of(tuple(grid.PRESETS)))
    parser.add_argument("--tokens", type=choice_of(grid.TOKENS, int))
    parser.add_argument("--modes", type=choice_of(cases.MODES), default=["graph_cold"],
                        help="a layer that no graph can be made of is timed as called")
    parser.add_argument("--quick", action="store_true", help="a few cells, one round")
    parser.add_argument("--everything", action="store_true",
                        help="every library and layer, also those that the plan leaves out because they take long")
    parser.add_argument("--rounds", type=int, help="default 2; 1 with --quick")
    parser.add_argument("--repetitions", type=int, default=6, help="least runs of a layer in a round")
    parser.add_argument("--budget-ms", type=float, default=12, help="of a layer's runs in a round, as long as they are at "
                        f"least --repetitions and at most {MOST_RUNS} times as many")
    parser.add_argument("--limit-s", type=float, help="begin no cell that might end later; exit code 3 says that some are left")
    parser.add_argument("--commit", help="recorded as the commit where the tree has no history")
    parser.add_argument("--start-seconds", type=float, default=120, help="for imports and a first small problem")
    parser.add_argument("--ahead-seconds", type=float, default=150, help="for compiling ahead; 0: nothing is")
    parser.add_argument("--log", type=pathlib.Path, help="file for what the processes print")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 2)
    options.peers = options.peers or list(cases.LAYERS if options.everything else cases.STRONG)
    if options.format:
        cases.LAYERS.update(cases.layers_of(options.format))
        options.peers = [library for library in options.peers if cases.LAYERS[library]]
    if not (options.out or options.list or options.self_test):
        parser.error("--out: expected a file for the results")
    return options


def main():
    options = parse()
    if options.self_test:
        import self_test
        self_test.run()
        print("run.py: self-test passed")
        return 0
    return listing(options) if options.list else compare(options)


if __name__ == "__main__":
    sys.exit(main())
