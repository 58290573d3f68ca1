"""The GPU record's own check: it must refuse what did not run in full."""
import importlib.util
import json
import pathlib
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
specification = importlib.util.spec_from_file_location("record", ROOT / "tests" / "gpu" / "record.py")
record = importlib.util.module_from_spec(specification)
specification.loader.exec_module(record)


class Record(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "python").mkdir()
        for name in ("a.py", "b.pyi", "c.h", "d.txt"):
            (self.root / "python" / name).write_text(name)
        self.suites = {"kernels": {"sources": ["python/*"], "sanitized": "*"},
                       "package": {"sources": ["python/*"], "suffixes": [".py", ".pyi"], "unittest": "python",
                                   "sanitizer": "none: a reason"}}
        for name, value in (("ROOT", self.root), ("RECORD", self.root / "RECORD.json"), ("STALE", self.root / "STALE.md"),
                            ("SUITES", self.root / "suites.json")):
            patch = mock.patch.object(record, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        record.SUITES.write_text(json.dumps(self.suites))
        self.entries = {suite: {"passed": 3, "failed": 0, "skipped": 0, "sources_sha256": record.sources_sha256(suite)}
                        for suite in self.suites}
        self.entries["kernels"]["sanitizer"] = {tool: record.CLEAN for tool in record.TOOLS}
        self.entries["package"]["sanitizer"] = "none: a reason"

    def problems(self):
        record.RECORD.write_text(json.dumps(self.entries))
        return record.check()[0]

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

    def test_each_suite_sees_its_own_kinds_of_sources(self):
        for name, seen_by in (("a.py", {"package"}), ("b.pyi", {"package"}), ("c.h", {"kernels", "package"}), ("d.txt", set())):
            (self.root / "python" / name).write_text("changed")
            changed = {problem.split()[1].rstrip(":") for problem in self.problems()}
            self.assertEqual(changed, seen_by, name)
            (self.root / "python" / name).write_text(name)

    def test_counts_of_unittest(self):
        for code, end, expected in ((0, "Ran 7 tests in 1s\n\nOK\n", (7, 0, 0)),
                                    (0, "Ran 7 tests in 1s\n\nOK (skipped=2)\n", (5, 0, 2)),
                                    (1, "Ran 7 tests in 1s\n\nFAILED (failures=1, errors=2, skipped=1)\n", (3, 3, 1)),
                                    (1, "Ran 1 test in 1s\n\nFAILED (unexpected successes=1)\n", (0, 1, 0)),
                                    (124, "Ran 7 tests in 1s\n\nOK\n", (6, 1, 0)), (139, "crashed", (0, 1, 0)),
                                    (0, "Ran 0 tests in 0s\n\nOK\n", (0, 0, 0))):
            counts = record.count_unittest(code, "test_a ... ok\n" + end)
            self.assertEqual((counts["passed"], counts["failed"], counts["skipped"]), expected, end)


if __name__ == "__main__":
    unittest.main()
