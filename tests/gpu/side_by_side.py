"""Runs the tests of a folder's unittest modules in several processes, each test in whichever is free.

A process imports PyTorch and starts CUDA once and then takes tests one by one, of the module that it has loaded as long as
there are any: no test waits for another, and whoever writes a test need not say where it runs. A process that dies or hangs
fails its test and is replaced. Tests of timing are named by the caller and run by themselves, afterwards, in one process.
Those that take longest are named too and begin first: one that began last would keep the others' processes waiting.
"""
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

TEST_SECONDS = 300  # of one test; the slowest takes a tenth of it


def is_named(test, names):
    """Whether the names hold the test, its class or its module."""
    return not {test, test.rpartition(".")[0], test.partition(".")[0]}.isdisjoint(names)


class Tests:
    """Modules to be listed and tests to be run. Threads take from it until nothing is left and nobody can add."""

    def __init__(self, modules, alone, first=()):
        self.condition = threading.Condition()
        self.unlisted, self.listing = list(modules), 0
        self.waiting, self.alone, self.first = {}, set(alone), set(first)  # waiting: {module: [tests]}
        self.long, self.all_long = [], []  # tests named by `first`: those left, and all
        self.set_apart, self.results, self.loaded = [], [], set()

    def take(self, module):
        """A request, for the module if there is one of it: {"list": module} or {"run": test}. None at the end."""
        with self.condition:
            while True:
                if self.unlisted:
                    self.listing += 1
                    return {"list": self.unlisted.pop(0)}
                if self.long:
                    return {"run": self.long.pop(0)}
                rest = {name: tests for name, tests in self.waiting.items() if tests}
                if rest:
                    chosen = module if module in rest else max(rest, key=lambda name: len(rest[name]))
                    return {"run": self.waiting[chosen].pop(0)}
                if not self.listing:
                    return None
                self.condition.wait()

    def done(self, request, reply):
        with self.condition:
            self.loaded.update(reply.get("loaded", ()))
            if "list" in request:
                self.listing -= 1
                for test in reply.get("tests", ()):
                    if is_named(test, self.alone):
                        self.set_apart.append(test)
                    elif is_named(test, self.first):
                        self.long.append(test)
                        self.all_long.append(test)
                    else:
                        self.waiting.setdefault(request["list"], []).append(test)
            if "outcome" in reply:
                self.results.append(reply)
            self.condition.notify_all()


class Worker:
    """One process that lists and runs tests; requests and replies are lines of JSON."""

    def __init__(self, folder, environment):
        self.log = tempfile.TemporaryFile()
        command = [sys.executable, "-W", "ignore", str(pathlib.Path(__file__).resolve()), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env={**os.environ, **environment})

    def ask(self, request, seconds=TEST_SECONDS):
        """The reply, or what stands for it where the process died or did not end in time."""
        limit = threading.Timer(seconds, self.process.kill)
        begin = time.monotonic()
        limit.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            limit.cancel()
        if line:
            return json.loads(line)
        code, spent = self.process.wait(), time.monotonic() - begin
        self.log.seek(0)
        why = f"no end within {seconds} s" if spent >= seconds else f"the process died with exit code {code}"
        return {"test": request.get("run") or request["list"], "outcome": "failed", "seconds": spent, "died": True,
                "words": f"{why}\n{self.log.read()[-4000:].decode(errors='replace')}"}

    def end(self):
        try:
            self.process.stdin.close()
        except BrokenPipeError:  # of a request that a dead process never read
            pass
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def warm(worker, modules):
    """Has it import the modules. What fails here fails again, and is counted, where the module is listed."""
    for module in modules:
        worker.ask({"list": module})


def serve(tests, folder, environment, worker=None):
    """One worker, replaced when it dies, until no test is left."""
    module = None
    while (request := tests.take(module)) is not None:
        worker = worker or Worker(folder, environment)
        reply = worker.ask(request)
        module = request.get("list") or request["run"].partition(".")[0]
        if reply.get("died"):
            worker.end()
            worker, module = None, None
        tests.done(request, reply)
    if worker:
        worker.end()


def run(folder, num_workers, environment, alone=(), first=()):
    """(results, repository files loaded): every test of the folder's test_*.py. `alone` and `first` name modules, classes
    or tests.

    A result is {"test", "outcome": "passed"|"failed"|"skipped", "seconds", "words"}; words are the failure, the skip's
    reason and what the test printed. A module that cannot be imported is a failed test.
    """
    modules = sorted(path.stem for path in pathlib.Path(folder).glob("test_*.py"))
    tests = Tests(modules, alone, first)
    by_itself = Tests([], [])
    last = Worker(folder, environment)  # it imports beside the others, and runs its tests after them
    warming = threading.Thread(target=warm, args=(last, sorted({name.partition(".")[0] for name in alone} & set(modules))))
    threads = [threading.Thread(target=serve, args=(tests, folder, {**environment, "OMP_NUM_THREADS": "1"}))
               for _ in range(num_workers)]
    for thread in (warming, *threads):
        thread.start()
    for thread in (warming, *threads):
        thread.join()
    by_itself.waiting = {"alone": sorted(tests.set_apart)}
    serve(by_itself, folder, environment, last)
    for names, found, what in ((alone, tests.set_apart, "by itself"), (first, tests.all_long, "first")):
        tests.results += [{"test": name, "outcome": "failed", "seconds": 0.0, "words": f"is to run {what}, and is no test"}
                          for name in names if not any(is_named(test, [name]) for test in found)]
    return tests.results + by_itself.results, tests.loaded | by_itself.loaded


# ---- the process ----------------------------------------------------------------------------------------------------

def flattened(suite):
    for test in suite:
        yield from flattened(test) if isinstance(test, unittest.TestSuite) else (test,)


def list_tests(module):
    """Names of a module's tests; what cannot be imported fails here."""
    begin = time.monotonic()
    try:
        suite = unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(module))
    except BaseException as error:  # whatever it is, the module's tests did not run
        return {"test": module, "outcome": "failed", "seconds": time.monotonic() - begin, "tests": [],
                "words": f"cannot be imported: {type(error).__name__}: {error}"}
    return {"tests": [test.id() for test in flattened(suite)]}


def run_test(name):
    result, begin = unittest.TestResult(), time.monotonic()
    unittest.defaultTestLoader.loadTestsFromName(name).run(result)
    seconds = time.monotonic() - begin
    words = "".join(f"{test.id()}\n{text}" for test, text in result.failures + result.errors)
    if not result.wasSuccessful() or result.testsRun != 1 and not result.skipped:
        return {"test": name, "outcome": "failed", "seconds": seconds, "words": words or "ran no test, or passed unexpectedly"}
    if result.skipped:
        return {"test": name, "outcome": "skipped", "seconds": seconds, "words": result.skipped[0][1]}
    return {"test": name, "outcome": "passed", "seconds": seconds, "words": ""}


def loaded_files():
    """Of all modules but this one."""
    return {file for name, module in list(sys.modules.items())
            if name != "__main__" and (file := getattr(module, "__file__", None))}


def main(folder):
    """Answers one request a line. What tests print, they and their children, goes to a file and comes with the reply."""
    requests, replies, printed = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w"), tempfile.TemporaryFile()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(printed.fileno(), 1)
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(1), "wb", buffering=0), write_through=True)
    sys.path.insert(0, folder)
    known = set()
    for line in requests:
        request, begin = json.loads(line), os.lseek(printed.fileno(), 0, os.SEEK_END)
        reply = list_tests(request["list"]) if "list" in request else run_test(request["run"])
        output = os.pread(printed.fileno(), 1 << 16, begin).decode(errors="replace")
        reply["words"] = "\n".join(filter(None, [reply.get("words"), output.strip()]))
        reply["loaded"] = sorted(loaded_files() - known)
        known.update(reply["loaded"])
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
