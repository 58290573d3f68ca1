"""Tests that run side by side: each once, whatever the others do, and no failure is lost."""
import importlib.util
import pathlib
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
specification = importlib.util.spec_from_file_location("side_by_side", ROOT / "tests" / "gpu" / "side_by_side.py")
side_by_side = importlib.util.module_from_spec(specification)
specification.loader.exec_module(side_by_side)

MODULES = {"test_mixed": """
import os, pathlib, sys, unittest
import support
print("printed while imported")

def setUpModule():
    support.ready = True

class Mixed(unittest.TestCase):
    def test_passes(self):
        self.assertTrue(support.ready)
        print("printed by a test that passes")

    def test_fails(self):
        print("printed by a test that fails")
        self.assertEqual(1, 2)

    def test_fails_in_subtests(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(number, 1)

    def test_raises(self):
        raise KeyError("planted")

    @unittest.skip("no reason")
    def test_skips(self):
        pass

    @unittest.expectedFailure
    def test_passes_unexpectedly(self):
        pass

    def test_reads_no_input(self):
        self.assertEqual(sys.stdin.read(), "")

@unittest.skipIf(True, "none of them")
class Skipped(unittest.TestCase):
    def test_one(self):
        pass
""", "test_dies": """
import os, sys, unittest

class Dies(unittest.TestCase):
    def test_dies(self):
        sys.stderr.write("last words")
        sys.stderr.flush()
        os._exit(3)

    def test_lives(self):
        pass
""", "test_hangs": """
import time, unittest

class Hangs(unittest.TestCase):
    def test_hangs(self):
        time.sleep(60)
""", "test_broken": "import no_such_module\n", "test_alone": """
import pathlib, unittest

def note(name):
    with open(pathlib.Path(__file__).with_name("order"), "a") as file:
        file.write(name + "\\n")

class Alone(unittest.TestCase):
    def test_b(self):
        note("b")

    def test_a(self):
        note("a")

class Together(unittest.TestCase):
    def test_c(self):
        note("c")

def made(self):
    note("d")

setattr(Together, "test_d", made)
""", "support": "ready = False\n"}
OUTCOMES = {"test_mixed.Mixed.test_passes": "passed", "test_mixed.Mixed.test_fails": "failed",
            "test_mixed.Mixed.test_fails_in_subtests": "failed", "test_mixed.Mixed.test_raises": "failed",
            "test_mixed.Mixed.test_skips": "skipped", "test_mixed.Mixed.test_passes_unexpectedly": "failed",
            "test_mixed.Mixed.test_reads_no_input": "passed", "test_mixed.Skipped.test_one": "skipped",
            "test_dies.Dies.test_dies": "failed", "test_dies.Dies.test_lives": "passed",
            "test_broken": "failed", "test_alone.Alone.test_a": "passed", "test_alone.Alone.test_b": "passed",
            "test_alone.Together.test_c": "passed", "test_alone.Together.test_d": "passed"}


class SideBySide(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()
        for name, text in MODULES.items():
            if name != "test_hangs":
                (self.folder / f"{name}.py").write_text(text)

    def run_all(self, num_workers, alone, first=(), seconds=side_by_side.TEST_SECONDS):
        with mock.patch.object(side_by_side.Worker.ask, "__defaults__", (seconds,)):
            results, loaded = side_by_side.run(self.folder, num_workers, {}, alone, first)
        return {result["test"]: result for result in results}, len(results), loaded

    def test_each_test_once_with_its_outcome(self):
        results, count, loaded = self.run_all(3, ("test_alone.Alone",))
        self.assertEqual(({name: result["outcome"] for name, result in results.items()}, count), (OUTCOMES, len(OUTCOMES)))
        self.assertEqual((self.folder / "order").read_text().split()[2:], ["a", "b"])  # after all others, in order
        for name, words in (("test_mixed.Mixed.test_fails", "1 != 2"), ("test_mixed.Mixed.test_fails", "by a test that fails"),
                            ("test_mixed.Mixed.test_fails_in_subtests", "(number=2)"),
                            ("test_mixed.Mixed.test_passes", "by a test that passes"),
                            ("test_mixed.Mixed.test_skips", "no reason"), ("test_mixed.Skipped.test_one", "none of them"),
                            ("test_dies.Dies.test_dies", "exit code 3\nlast words"),
                            ("test_broken", "no_such_module")):
            self.assertIn(words, results[name]["words"])
        self.assertNotIn("by a test that passes", results["test_mixed.Mixed.test_fails"]["words"])
        self.assertEqual({pathlib.Path(file).name for file in loaded if file.startswith(str(self.folder))},
                         {"test_mixed.py", "support.py", "test_dies.py", "test_alone.py"})

    def test_one_process_is_enough(self):
        results, count, _ = self.run_all(1, ())
        self.assertEqual(({name: result["outcome"] for name, result in results.items()}, count), (OUTCOMES, len(OUTCOMES)))

    def test_long_ones_begin_first(self):
        results, count, _ = self.run_all(1, (), first=("test_alone.Together", "test_dies.Dies.test_lives"))
        run = [name for name in results if name != "test_broken"]  # that one fails while modules are listed
        self.assertEqual(set(run[:3]), {"test_alone.Together.test_c", "test_alone.Together.test_d", "test_dies.Dies.test_lives"})
        self.assertEqual(({name: result["outcome"] for name, result in results.items()}, count), (OUTCOMES, len(OUTCOMES)))

    def test_one_that_hangs(self):
        for name in ("test_dies", "test_broken", "test_mixed"):
            (self.folder / f"{name}.py").unlink()
        (self.folder / "test_hangs.py").write_text(MODULES["test_hangs"])
        results, count, _ = self.run_all(2, (), seconds=12)
        self.assertIn("no end within 12 s", results.pop("test_hangs.Hangs.test_hangs")["words"])
        self.assertEqual(({result["outcome"] for result in results.values()}, count), ({"passed"}, 5))

    def test_a_name_that_is_no_test_fails(self):
        results, _, _ = self.run_all(2, ("test_alone.Alon", "test_alone.Alone.test_a"), first=("test_mixe",))
        self.assertIn("to run by itself, and is no test", results["test_alone.Alon"]["words"])
        self.assertIn("to run first, and is no test", results["test_mixe"]["words"])
        self.assertEqual({results[name]["outcome"] for name in ("test_alone.Alon", "test_mixe")}, {"failed"})
        self.assertEqual((self.folder / "order").read_text().split()[3:], ["a"])


if __name__ == "__main__":
    unittest.main()
