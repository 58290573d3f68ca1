"""The GPU record's own check: it must refuse what did not run in full, and every change of what a suite is made of."""
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
specification = importlib.util.spec_from_file_location("record", ROOT / "tests" / "gpu" / "record.py")
record = importlib.util.module_from_spec(specification)
specification.loader.exec_module(record)

PAGE = """# A page

<!-- needs: torch, gpu -->
```python
print(1)
```

<!-- prints -->
```text
1
```

```python
print(2)
```
"""


class Scratch(unittest.TestCase):
    """A repository of its own with two suites, both run in full."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "python").mkdir()
        for name in ("a.py", "b.pyi", "c.h", "d.bin", "e.h"):
            (self.root / "python" / name).write_text(name)
        (self.root / "README.md").write_text(PAGE)
        self.suites = {"kernels": {"linked": ["kernels"], "sanitized": "*"},
                       "package": {"linked": ["library"], "files": ["python/*.py*", "python/d.bin"], "blocks": True,
                                   "unittest": "python", "sanitizer": "none: a reason", "alone": [], "first": []}}
        self.closure = {"kernels": {"files": ["python/c.h"], "flags": ["nvcc -O3"]},
                        "package": {"files": ["python/c.h"], "flags": ["c++ -O3", "nvcc -O3"]}}
        for name, value in (("ROOT", self.root), ("RECORD", self.root / "RECORD.json"), ("STALE", self.root / "STALE.md"),
                            ("SUITES", self.root / "suites.json"), ("CLOSURE", self.root / "closure.json")):
            patch = mock.patch.object(record, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.write()
        self.entries = {suite: {"passed": 3, "failed": 0, "skipped": 0, "sources_sha256": record.sources_sha256(suite)}
                        for suite in self.suites}
        self.entries["kernels"]["sanitizer"] = {tool: record.CLEAN for tool in record.TOOLS}
        self.entries["package"]["sanitizer"] = "none: a reason"

    def write(self):
        record.SUITES.write_text(json.dumps(self.suites))
        record.CLOSURE.write_text(json.dumps(self.closure))

    def problems(self):
        record.RECORD.write_text(json.dumps(self.entries))
        return record.check()[0]

    def changed(self):
        """Suites whose sources are no longer those recorded."""
        return {problem.split()[1].rstrip(":") for problem in self.problems() if "sources have hash" in problem}


class Record(Scratch):
    def test_a_full_run_passes(self):
        self.assertEqual(self.problems(), [])

    def test_what_did_not_pass_is_refused(self):
        for suite in self.suites:
            for name, value in (("failed", 1), ("skipped", 1), ("passed", 0)):
                right = self.entries[suite][name]
                self.entries[suite][name] = value
                self.assertIn(suite, self.problems()[0])
                self.entries[suite][name] = right

    def test_only_a_suite_that_says_why_runs_without_sanitizers(self):
        self.entries["kernels"]["sanitizer"] = "none: a reason"
        self.assertIn("kernels", self.problems()[0])
        self.entries["kernels"]["sanitizer"] = {tool: record.CLEAN for tool in record.TOOLS[1:]}
        self.assertIn("kernels", self.problems()[0])
        self.entries["kernels"]["sanitizer"] = {**{tool: record.CLEAN for tool in record.TOOLS}, "memcheck": "exit 1"}
        self.assertIn("kernels", self.problems()[0])
        self.entries["kernels"]["sanitizer"] = {tool: record.CLEAN for tool in record.TOOLS}
        self.entries["package"]["sanitizer"] = "none: another reason"
        self.assertIn("package", self.problems()[0])

    def test_each_suite_sees_its_own_sources(self):
        for name, seen_by in (("a.py", {"package"}), ("b.pyi", {"package"}), ("c.h", {"kernels", "package"}),
                              ("d.bin", set()), ("e.h", set()), ("new.py", {"package"}), ("new.h", set())):
            path = self.root / "python" / name
            before = path.read_text() if path.exists() else None
            path.write_text("changed")
            self.assertEqual(self.changed(), seen_by, name)
            path.unlink() if before is None else path.write_text(before)
        self.assertEqual(self.problems(), [])

    def test_a_source_that_is_gone(self):
        (self.root / "python" / "c.h").unlink()
        self.assertEqual(self.changed(), {"kernels", "package"})

    def test_flags_and_the_entry_count(self):
        self.closure["kernels"]["flags"] = ["nvcc -O3 --use_fast_math"]
        self.write()
        self.assertEqual(self.changed(), {"kernels"})
        self.closure["kernels"]["flags"] = ["nvcc -O3"]
        self.suites["kernels"]["sanitized"] = "Fewer.*"
        self.write()
        self.assertEqual(self.changed(), {"kernels"})

    def test_blocks_that_only_a_gpu_machine_runs(self):
        for old, new, seen_by in (("# A page", "# Another page", set()), ("print(2)", "print(3)", set()),
                                  ("print(1)", "print(1.0)", {"package"}), ("text\n1", "text\n2", {"package"})):
            (self.root / "README.md").write_text(PAGE.replace(old, new))
            self.assertEqual(self.changed(), seen_by, old)

    def test_a_suite_without_a_closure(self):
        del self.closure["kernels"]
        self.write()
        self.assertIn("suite kernels: closure.json has no such suite", self.problems()[0])

    def test_what_stale_excuses(self):
        (self.root / "python" / "c.h").write_text("changed")
        self.assertEqual(len(self.problems()), 2)
        kernels, package = record.sources_sha256("kernels"), record.sources_sha256("package")
        record.STALE.write_text(f"# No GPU was to be had\n\n- kernels {kernels}: none for a week\n")
        problems, warnings = record.check()
        self.assertEqual(([p.split()[1] for p in problems], len(warnings)), (["package:"], 1))
        self.assertIn("suite kernels has NOT run on a GPU", warnings[0])
        record.STALE.write_text(f"- kernels {package}: another suite's hash excuses nothing\n- package: no hash\n")
        self.assertEqual(len(record.check()[0]), 2)
        record.STALE.write_text(f"- kernels {kernels}, package {package}: none\n- kernels {'0' * 64}: of last year\n")
        problems, warnings = record.check()
        self.assertEqual((len(problems), len(warnings)), (1, 2))
        self.assertIn("0" * 64 + ", which no suite's sources have", problems[0])

    def test_what_the_hash_does_not_cover_is_found(self):
        build = self.root / "build"
        loaded = [build / "python" / "a.py", self.root / "python" / "a.py", self.root / "python" / "hidden.py",
                  build / "python" / "hidden_too.py", pathlib.Path("/usr/lib/python3/abc.py"), self.root / "a.so"]
        self.assertEqual(record.unhashed("package", map(str, loaded), build.resolve()),
                         ["python/hidden.py", "python/hidden_too.py"])


# Stands for a GoogleTest program: lists, filters, deals out its tests and reports on them as one does.
PROGRAM = """#!{python}
import fnmatch, json, os, pathlib, sys
if sys.argv[1] == "--toolkit":
    print("CUDA 13.0")
    sys.exit(0)
options = dict(word.partition("=")[::2] for word in sys.argv[1:])
tests = json.loads(pathlib.Path(__file__).with_name("tests.json").read_text())
positive, _, negative = options.get("--gtest_filter", "*").partition("-")
matches = lambda name, patterns: any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split(":"))
chosen = [name for name in tests if matches(name, positive or "*") and not matches(name, negative)]
if "--gtest_list_tests" not in options:
    part, parts = (int(os.environ.get("GTEST_" + name, number)) for name, number in (("SHARD_INDEX", 0), ("TOTAL_SHARDS", 1)))
    chosen = chosen[part::parts]
    with open(pathlib.Path(__file__).with_name("order"), "a") as order:
        order.write(" ".join(chosen) + "\\n")
    if any(tests[name].get("dies") for name in chosen):
        sys.exit("last words")
    chosen = [name for name in chosen if not tests[name].get("hides")]
report = [{{"name": name.split(".")[0], "testsuite": [{{"name": name.split(".")[1], **tests[name]}}]}} for name in chosen]
pathlib.Path(options["--gtest_output"].removeprefix("json:")).write_text(json.dumps({{"testsuites": report}}))
sys.exit(any(tests[name].get("failures") for name in chosen))
"""
IN_PROGRAM = {"Sums.One": {"time": "0.5s"}, "Sums.Two": {"time": "1.25s"}, "Sums.Three": {"result": "SKIPPED", "time": "0s"},
              "Streams.Four": {"time": "0s"}, "Sums.Five": {"time": "0s"}}
TESTS = """import unittest
import package_under_test

class Sums(unittest.TestCase):
    def test_one(self):
        self.assertEqual(package_under_test.__file__.split("/")[-2:], ["python", "package_under_test.py"])
"""


class Run(Scratch):
    """A whole run, on programs that stand for a suite's and without a GPU."""

    def setUp(self):
        super().setUp()
        self.build = self.root.resolve() / "build"
        program = self.build / "tests" / "gpu" / "gpu_test_kernels"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        self.order, self.tests = program.with_name("order"), program.with_name("tests.json")
        self.tests.write_text(json.dumps(IN_PROGRAM))
        (self.build / "libtessera.so").write_text("")
        (self.root / "python" / "tessera").mkdir()
        (self.root / "python" / "tessera" / "__init__.py").write_text("")
        (self.root / "python" / "test_sums.py").write_text(TESTS)
        (self.root / "python" / "package_under_test.py").write_text("")
        for name, value in (("machine", lambda: {"gpu": "none", "driver": "none"}),
                            ("sanitize", lambda tool, program, *_: (99, "ERROR SUMMARY: 1 error") if "planted" in str(program)
                             else (0, Sanitizers.CLEAN_OUTPUT))):
            patch = mock.patch.object(record, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def run_suites(self):
        with mock.patch("builtins.print") as printed:
            entries = record.run_suites(self.build, ["kernels", "package"])
        return entries, "\n".join(str(call.args[0]) for call in printed.call_args_list if call.args)

    def test_counts_times_and_sanitizers(self):
        entries, printed = self.run_suites()
        self.assertEqual([entries["kernels"][key] for key in ("passed", "failed", "skipped", "toolkit", "sanitizer")],
                         [4, 0, 1, "CUDA 13.0", {tool: record.CLEAN for tool in record.TOOLS}])
        self.assertEqual([entries["package"][key] for key in ("passed", "failed", "skipped", "sanitizer")],
                         [1, 0, 0, "none: a reason"])
        for words in ("1.25 s  Sums.Two", "s  test_sums.Sums.test_one", "s  test_sums\n", "memcheck of kernels",
                      "racecheck of planted bug", "suites kernels: ", "kernels, process 0: 5 tests", "suite package: ", "sanitizers: "):
            self.assertIn(words, printed)
        self.assertLess(printed.index("Sums.Two"), printed.index("Sums.One"))

    def counts(self, parts, alone, **tests):
        """(passed, failed, skipped), what was printed and the tests of each process, with changes to the program's tests."""
        self.suites["kernels"].update(processes=parts, alone=alone)
        self.write()
        self.tests.write_text(json.dumps(IN_PROGRAM | {name.replace("_", "."): more for name, more in tests.items()}))
        self.order.unlink(missing_ok=True)
        entries, printed = self.run_suites()
        lines = [line.split() for line in self.order.read_text().splitlines()]
        return tuple(entries["kernels"][key] for key in ("passed", "failed", "skipped")), printed, lines

    def test_tests_are_dealt_out_and_some_run_by_themselves(self):
        for parts in (1, 2, 3):
            found, printed, lines = self.counts(parts, "Streams.*")
            self.assertEqual((found, len(lines), lines[-1]), ((4, 0, 1), parts + 1, ["Streams.Four"]))
            self.assertEqual(sorted(sum(lines, [])), sorted(IN_PROGRAM))
            self.assertIn("kernels, by themselves: 1 tests", printed)

    def test_a_test_that_fails(self):
        self.assertEqual(self.counts(2, "Streams.*", Sums_One={"failures": ["no"]})[0], (3, 1, 1))
        self.assertEqual(self.counts(2, "Streams.*", Streams_Four={"failures": ["no"]})[0], (3, 1, 1))

    def test_a_process_that_dies_fails_the_suite(self):
        found, printed, _ = self.counts(2, "Streams.*", Sums_Five={"dies": True})
        self.assertEqual(found[1], 1)
        self.assertIn("last words", printed)
        self.assertIn("'Sums.Five'", printed)

    def test_a_test_that_did_not_run_fails_the_suite(self):
        found, printed, _ = self.counts(2, "Streams.*", Streams_Four={"hides": True})
        self.assertEqual(found, (3, 1, 1))
        self.assertIn("ran 4 tests of 5; not once: ['Streams.Four']", printed)

    def test_a_filter_that_no_test_matches_fails_the_suite(self):
        found, printed, _ = self.counts(2, "Streams.*:Timing.*")
        self.assertEqual(found, (4, 1, 1))
        self.assertIn("no tests: ['Timing.*']", printed)

    def test_a_file_outside_of_the_hash_fails_the_run(self):
        self.suites["package"]["files"] = ["python/test_*.py"]
        self.write()
        entries, printed = self.run_suites()
        self.assertEqual((entries["package"]["passed"], entries["package"]["failed"]), (1, 1))
        self.assertIn("python/package_under_test.py was loaded and is not in the hash", printed)


class Sanitizers(unittest.TestCase):
    CLEAN_OUTPUT = "[  PASSED  ] 4 tests.\n========= ERROR SUMMARY: 0 errors\n"

    def test_what_is_clean(self):
        found = (99, "")
        self.assertEqual(record.judged((0, self.CLEAN_OUTPUT), found), record.CLEAN)
        race = self.CLEAN_OUTPUT.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed")
        self.assertEqual(record.judged((0, race), found), record.CLEAN)
        for result, planted in (((0, self.CLEAN_OUTPUT), (0, "")), ((99, self.CLEAN_OUTPUT), found),
                                ((0, self.CLEAN_OUTPUT.replace("0 errors", "2 errors")), found),
                                ((0, race.replace("0 hazards", "1 hazard")), found),
                                ((0, self.CLEAN_OUTPUT.replace("4 tests", "0 tests")), found),
                                ((0, "[  PASSED  ] 4 tests."), found), ((0, "ERROR SUMMARY: 0 errors"), found)):
            self.assertNotEqual(record.judged(result, planted), record.CLEAN)

    def run_with(self, answer):
        """{suite: results} and the commands, where `answer(tool, program, number of the call)` is what a tool says."""
        calls = []

        def sanitize(tool, program, *_):
            calls.append((tool, pathlib.Path(program).name))
            return answer(tool, calls[-1][1], calls.count(calls[-1]))
        with mock.patch.object(record, "sanitize", sanitize), mock.patch("builtins.print"):
            return record.run_sanitizers(pathlib.Path("build"), ["core", "moe"]), calls

    def usual(self, tool, program, call):
        return (99, "ERROR SUMMARY: 1 error") if program == "gpu_planted_bug" else (0, self.CLEAN_OUTPUT)

    def test_every_tool_over_every_suite_and_the_planted_bug(self):
        results, calls = self.run_with(self.usual)
        clean = {tool: record.CLEAN for tool in record.TOOLS}
        self.assertEqual(results, {"core": clean, "moe": clean})
        programs = ("gpu_planted_bug", "gpu_test_core", "gpu_test_moe")
        self.assertEqual(sorted(calls), sorted((tool, program) for tool in record.TOOLS for program in programs))

    def test_a_planted_bug_that_is_not_found_condemns_the_tool(self):
        results, _ = self.run_with(lambda tool, program, call: (0, self.CLEAN_OUTPUT) if tool == "racecheck"
                                   else self.usual(tool, program, call))
        for suite in ("core", "moe"):
            self.assertEqual([tool for tool in record.TOOLS if results[suite][tool] != record.CLEAN], ["racecheck"])

    def test_only_a_tool_that_did_not_look_runs_again(self):
        def answer(tool, program, call):
            if (tool, program) == ("memcheck", "gpu_test_moe"):
                return (1, "no connection") if call == 1 else (0, self.CLEAN_OUTPUT)
            if (tool, program) == ("initcheck", "gpu_test_core"):
                return (99, self.CLEAN_OUTPUT.replace("0 errors", "2 errors")) if call == 1 else (0, self.CLEAN_OUTPUT)
            return self.usual(tool, program, call)
        results, calls = self.run_with(answer)
        self.assertEqual(results["moe"]["memcheck"], record.CLEAN)
        self.assertNotEqual(results["core"]["initcheck"], record.CLEAN)
        self.assertEqual(len(calls), 13)


if __name__ == "__main__":
    unittest.main()
