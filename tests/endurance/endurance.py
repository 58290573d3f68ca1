#!/usr/bin/env python3
"""The endurance harness: figures of what survives, made by runs of the command and of test programs with fake devices.

  endurance.py BUILD_DIR                         the bounded run of `make test`; writes nothing
  endurance.py BUILD_DIR --out FILE              ... and writes the figures
  endurance.py BUILD_DIR --long --out FILE       the long run: more of everything, some hours on two cores
  endurance.py BUILD_DIR --only sigkill_worker   one row or several (--list names them)

Every row has the member "ok"; the program fails where one is not. --scale S takes that share of the long run's numbers.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TIMEOUT_SECONDS = 600
# Some milliseconds a sentence in the oracle's arithmetic: a run of seconds, which a signal finds anywhere.
SLOW_SIZES = {"embedding_size": 128, "num_filters": 128}
NUM_RECORDS = 1200


class Row(Exception):
    """A row that cannot be what it should."""


class Setting:
    """The command, a slow model, its inputs and the undisturbed output."""

    def __init__(self, build, folder):
        self.build, self.folder = pathlib.Path(build), pathlib.Path(folder)
        self.tessera = self.build / "tools" / "tessera" / "tessera"
        self.model = self.folder / "model"
        self.run("synth", "--preset", "small", "--output", self.folder / "small")
        config = json.loads((self.folder / "small" / "config.json").read_text()) | SLOW_SIZES
        (self.folder / "slow.json").write_text(json.dumps(config))
        self.run("synth", "--config", self.folder / "slow.json", "--output", self.model, "--inputs", NUM_RECORDS)
        self.whole = self.folder / "whole.csv"
        start = time.monotonic()
        self.run(*self.arguments(self.whole))
        self.seconds = time.monotonic() - start
        self.expected = self.whole.read_bytes()

    def run(self, *arguments):
        done = subprocess.run([self.tessera, *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Row(f"{arguments[0]}: exit code {done.returncode}: {done.stderr}")

    def arguments(self, output, *more):
        return ["classify", "--model", self.model, "--input", self.model / "inputs.bin", "--format", "ids", "--precision",
                "fp64", "--device", "cpu", "--threads", "1", "--batch-size", "8", "--output", output, *more]

    def start(self, output, *more):
        return subprocess.Popen([self.tessera, *map(str, self.arguments(output, *more))], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def after_break(self):
        """Of a run that was broken off: what must be true besides."""

    def check_output(self, output):
        if output.read_bytes() != self.expected:
            raise Row(f"{output.name}: not the bytes of an undisturbed run")


def children(pid):
    """Processes that `pid` started."""
    try:
        return [int(word) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
                for word in (task / "children").read_text().split()]
    except OSError:
        return []


def worker_processes(folder):
    """Those of any run under this folder, whoever their parent is now."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"worker-process" in words and any(word.startswith(f"--model={folder}".encode()) for word in words):
            found.append(int(entry.name))
    return found


def end(process, within=TIMEOUT_SECONDS):
    _, err = process.communicate(timeout=within)
    return process.returncode, err


def sigkill_worker(setting, count, rng):
    """Worker processes end at random points, several in a run; the run goes on and nothing is missing."""
    kills, runs, reported, wasted = 0, 0, 0, 0
    while kills < count:
        output = setting.folder / f"worker_{runs}.csv"
        statistics = setting.folder / f"worker_{runs}.json"
        process = setting.start(output, "--isolate", "--processes", "2", "--statistics", statistics)
        killed = 0
        while process.poll() is None:
            time.sleep(rng.uniform(0.02, setting.seconds / 4))
            alive = [pid for pid in children(process.pid) if pid > 0]
            if alive and kills + killed < count and process.poll() is None:
                try:
                    os.kill(rng.choice(alive), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    pass
        code, err = end(process)
        if code == 2 and ("before it was ready" in err or "when it was tested" in err):
            wasted += killed  # of a process that was just being made: nothing was run, and the command says so
            continue
        if code not in (0, 3):
            raise Row(f"exit code {code}: {err[-600:]}")
        setting.check_output(output)
        counts = json.loads(statistics.read_text())
        if counts["records_read"] != counts["records_ok"] or counts["records_ok"] != NUM_RECORDS:
            raise Row(f"{counts}")
        reported += counts["workers_restarted"]
        kills, runs = kills + killed, runs + 1
    return {"kills": kills, "runs": runs, "restarts_reported": reported, "bitwise_equal": runs,
            "records_lost": 0, "records_twice": 0}


class Lateness:
    """How much later than asked a thread wakes up on this machine, at worst, while this runs beside."""

    def __init__(self):
        self.worst, self.ending = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ending.is_set():
            begin = time.monotonic()
            time.sleep(0.005)
            self.worst = max(self.worst, time.monotonic() - begin - 0.005)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()


def broken_off(setting, count, rng, send, name, more, delay):
    """Runs that are broken off at random points and resumed until they are whole. Times from signal to end, each with
    how late this machine was meanwhile."""
    breaks, runs, times, resumed = 0, 0, [], 0
    while breaks < count:
        output = setting.folder / f"{name}_{runs}.csv"
        while True:
            process = setting.start(output, "--resume", *more)
            if breaks < count:
                try:
                    process.wait(timeout=rng.uniform(*delay))
                except subprocess.TimeoutExpired:
                    with Lateness() as late:
                        begin = time.monotonic()
                        process.send_signal(send)
                        breaks += 1
                        code, err = end(process)
                        taken = time.monotonic() - begin
                    times.append((taken, late.worst))
                    setting.after_break()
                    if send == signal.SIGINT and code not in (0, 130, -signal.SIGINT):
                        raise Row(f"exit code {code} after Ctrl-C: {err[-600:]}") from None
                    continue
            code, err = end(process)
            if code != 0:
                raise Row(f"exit code {code}: {err[-600:]}")
            resumed += "resumes behind" in err
            break
        setting.check_output(output)
        runs += 1
    return breaks, runs, times, resumed


def no_orphans(setting):
    for _ in range(200):
        if not worker_processes(setting.model):
            return 0
        time.sleep(0.01)
    raise Row(f"processes are left: {worker_processes(setting.model)}")


def sigkill_supervisor(setting, count, rng):
    """The supervisor is killed at random points; no worker stays, and the same command completes the output."""
    breaks, runs, _, resumed = broken_off(setting, count, rng, signal.SIGKILL, "supervisor", ["--isolate"],
                                          (0.05, max(1.6, setting.seconds * 0.9)))
    return {"kills": breaks, "runs": runs, "runs_resumed_from_a_journal": resumed, "bitwise_equal": runs,
            "orphans": no_orphans(setting)}


# What a process that ends after its grace of two seconds needs to be gone.
END_SECONDS = 2.3


def ctrl_c(setting, count, rng):
    """Ctrl-C at random points: the end within two seconds, a journal that can be read, the same bytes."""
    for attempt in range(1, 4):
        breaks, runs, times, resumed = broken_off(setting, count, rng, signal.SIGINT, f"interrupted_{attempt}", ["--isolate"],
                                                  (0.05, max(1.6, setting.seconds * 0.9)))
        slowest, late = max(times)
        if all(taken - lateness <= END_SECONDS for taken, lateness in times):
            break
    else:
        raise Row(f"{slowest:.2f} s from Ctrl-C to the end, of which the machine was late by {late:.2f} s")
    return {"signals": breaks, "runs": runs, "runs_resumed_from_a_journal": resumed, "bitwise_equal": runs,
            "slowest_end_seconds": slowest, "machine_late_by_seconds": late, "attempts": attempt, "orphans": no_orphans(setting)}


def program(setting, name, *arguments, timeout=TIMEOUT_SECONDS):
    """The JSON that a test program prints."""
    path = setting.build / "tests" / name
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False)
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise Row(f"{name}: exit code {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return json.loads(lines[-1])


def failing_files(setting, _count, _rng):
    """Every file call and every start of a thread or process of the command's own code fails once, site by site."""
    return faults(setting, ("file", "thread"), 1)  # what comes only behind another fault is found by who has that


def failing_allocations(setting, _count, _rng):
    """The same of every allocation."""
    return faults(setting, ("allocation",), 2)


def faults(setting, wanted, num_parts):
    """So many processes, each with its part of the sites."""
    def one(part):
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            return program(setting, "endurance_faults", folder, part, num_parts, *wanted, timeout=3 * 3600)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(one, range(num_parts)))
    kinds, codes = {}, {}
    for row in parts:
        for stage in ("from_the_beginning", "resumed", "with_worker_processes"):
            for kind, counts in row[stage].items():
                if kind == "exit_codes":
                    for code, count in counts.items():
                        codes[code] = codes.get(code, 0) + count
                    continue
                kinds.setdefault(kind, {"sites": 0, "failed": 0})
                for what in ("sites", "failed"):
                    kinds[kind][what] += counts[what]
    row = {"kinds": kinds, "exit_codes": dict(sorted(codes.items())), "problems": [p for part in parts for p in part["problems"]],
           "sites": sum(kind["sites"] for kind in kinds.values()),
           "sites_failed": sum(kind["failed"] for kind in kinds.values())}
    return row | {"ok": all(part["ok"] for part in parts) and row["sites"] == row["sites_failed"] and
                        set(kinds) == set(wanted)}


def failing_devices(setting, count, _rng):
    return program(setting, "endurance_engine", "failing_devices", count)


def backpressure(setting, count, _rng):
    return program(setting, "endurance_engine", "backpressure", count)


def against_the_clock(setting, name, seconds):
    """The best of at most three runs: what else the machine does makes them slower, nothing makes them faster. Their
    ideal is what the devices gave in the same run."""
    for attempt in range(1, 4):
        row = program(setting, "endurance_engine", name, seconds) | {"attempts": attempt}
        if row["ok"]:
            break
    return row


def slow_device(setting, count, _rng):
    return against_the_clock(setting, "slow_device", count)


def lost_device(setting, count, _rng):
    return against_the_clock(setting, "lost_device", count)


def cpu_layers(setting, count, _rng):
    return program(setting, "endurance_layers", count, 1, timeout=6 * 3600)


FUZZERS = ("safetensors_header", "config", "vocabulary", "tokenizer", "journal", "csv", "jsonl")


def fuzzers(setting, seconds, _rng):
    """The libFuzzer targets of preset fuzz, where they are built; two at a time."""
    folder = setting.build.parent / "fuzz" / "tests" / "fuzz"
    programs = sorted(path for path in folder.glob("fuzz_*") if os.access(path, os.X_OK)) if folder.is_dir() else []
    names = [path.name.removeprefix("fuzz_") for path in programs]
    missing = sorted(set(FUZZERS) - set(names))
    if missing:
        raise Row(f"not built: {missing}; cmake --preset fuzz && cmake --build --preset fuzz")

    def fuzz(path):
        name = path.name.removeprefix("fuzz_")
        corpus = setting.folder / f"corpus_{name}"
        corpus.mkdir()
        done = subprocess.run([path, corpus, ROOT / "tests" / "fuzz" / "corpus" / name, f"-max_total_time={seconds}",
                               "-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1",
                               f"-artifact_prefix={setting.folder}/"], capture_output=True, text=True, errors="replace",
                              check=False)
        executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        if done.returncode != 0 or not executed:
            raise Row(f"{path.name}: exit code {done.returncode}: {done.stderr[-800:]}")
        return name, int(executed[1])

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        executions = dict(pool.map(fuzz, programs))
    return {"targets": len(executions), "seconds_each": seconds, "executions": executions,
            "executions_in_all": sum(executions.values())}


# (function, number of the bounded run, number of the long run); rows of the second kind look at the clock and run alone.
ROWS = {
    "sigkill_worker": (sigkill_worker, 40, 200),
    "sigkill_supervisor": (sigkill_supervisor, 20, 100),
    "ctrl_c": (ctrl_c, 20, 100),
    "failing_files": (failing_files, 1, 1),
    "failing_devices": (failing_devices, 1, 5),
    "backpressure": (backpressure, 1_000_000, 1_000_000),
    "cpu_layers": (cpu_layers, 2_000, 20_000),
    "slow_device": (slow_device, 4, 20),
    "lost_device": (lost_device, 6, 20),
}
ALONE = ("slow_device", "lost_device", "ctrl_c")
# Fuzzers are a stage of their own in `make test`; the many sites of allocations take more minutes than it has.
LONG_ONLY = {"failing_allocations": (failing_allocations, 0, 1), "fuzzers": (fuzzers, 0, 600)}
COUNTED = ("sigkill_worker", "sigkill_supervisor", "ctrl_c", "cpu_layers", "fuzzers")  # what --scale applies to


def run_row(setting, name, function, count, seed):
    begin = time.monotonic()
    try:
        row = {"ok": True} | function(setting, count, random.Random(seed))
    except Row as problem:
        row = {"ok": False, "problem": str(problem)}
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as problem:
        row = {"ok": False, "problem": f"{type(problem).__name__}: {problem}"}
    row["row_seconds"] = round(time.monotonic() - begin, 1)
    print(f"{name}: {json.dumps(row)}", flush=True)
    return row


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"processor": model[1] if model else "unknown", "processors": len(os.sched_getaffinity(0)),
            "load_at_start": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", default=ROOT / "build" / "test")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--skip", nargs="+", default=[])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--keep", action="store_true", help="rows that FILE has and that are not run stay in it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    rows = ROWS | (LONG_ONLY if args.long else {})
    if args.list:
        print("\n".join(f"{name}: {(entry[0].__doc__ or '').strip()}" for name, entry in rows.items()))
        return 0
    if unknown := set(args.only + args.skip) - set(rows):
        parser.error(f"no such row: {sorted(unknown)}")
    chosen = {name: entry for name, entry in rows.items() if name not in args.skip and (not args.only or name in args.only)}
    result = {"long": args.long, "scale": args.scale, "machine": machine(), "rows": {}}
    if args.keep and args.out and args.out.exists():
        result["rows"] = json.loads(args.out.read_text())["rows"]
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(pathlib.Path(args.build).resolve(), folder)

        def take(name):
            function, bounded, long = chosen[name]
            count = long if args.long else bounded
            if name in COUNTED and args.scale != 1.0:
                count = max(1, round(count * args.scale))
            row = run_row(setting, name, function, count, args.seed) | {"load_at_end": round(os.getloadavg()[0], 1)}
            with lock:
                result["rows"][name] = row
                write(result, list(rows), args.out)

        # Side by side where the clock does not matter, the longest first.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(take, sorted((name for name in chosen if name not in ALONE), key=lambda name: name != "backpressure")))
        for name in chosen:
            if name in ALONE:
                take(name)
    return 0 if all(result["rows"][name]["ok"] for name in chosen) else 1


def write(result, order, path):
    """After every row: a run that is ended leaves what it has."""
    result["ok"] = all(row["ok"] for row in result["rows"].values())
    if path:
        path.write_text(json.dumps(result | {"rows": {name: result["rows"][name] for name in order if name in result["rows"]}},
                                   indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
