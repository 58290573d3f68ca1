"""What the documents show of whole models: which rows count as lost, which as level, what a profile's lines mean."""
import importlib
import pathlib
import sys
import tempfile
import unittest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"


class FromFolder(unittest.TestCase):
    FOLDER = MODULE = ""

    @classmethod
    def setUpClass(cls):
        sys.path.insert(0, str(BENCH / cls.FOLDER))
        cls.addClassCleanup(sys.path.remove, str(BENCH / cls.FOLDER))
        cls.report = importlib.import_module(cls.MODULE)


class Models(FromFolder):
    FOLDER, MODULE = "models", "model_tables"

    def rows(self, **rates):
        common = {"family": "olmoe-1b-7b", "format": "bf16", "layers": 2, "phase": "decode", "sequences": 8, "tokens": 1, "graph": True}
        return [{**common, "implementation": name, "tokens_per_s": rate} for name, rate in rates.items()]

    def test_the_fastest_other_one_counts(self):
        cell, = self.report.cells(self.rows(eager=10.0, grouped_mm=40.0, tessera=50.0))
        self.assertEqual(self.report.compared(cell), ("grouped_mm", 1.25))

    def test_a_lost_row_is_named(self):
        document = self.report.reported({"rows": self.rows(grouped_mm=40.0, tessera=38.0)})
        self.assertEqual(document["lost_table"]["rows"],
                         [["OLMoE-1B-7B, 2 layers", "bf16", "decode, 8 sequences", "grouped_mm", "40", "38", "0.95"]])
        self.assertEqual((document["summary"]["behind"], document["summary"]["rows"]), (1, 1))

    def test_a_row_without_tessera_is_no_comparison(self):
        document = self.report.reported({"rows": self.rows(eager=10.0, grouped_mm=40.0)})
        self.assertEqual((document["summary"], document["lost_table"]["rows"][0][0]), ({"rows": 0}, "none"))

    def test_what_was_left_out_says_why(self):
        left = {**self.rows(eager=1.0)[0], "implementation": "deepgemm", "tokens_per_s": None, "left_out": "no GPU. And more"}
        table = self.report.reported({"rows": [*self.rows(tessera=2.0), left]})["left_out_table"]
        self.assertEqual(table["rows"], [["OLMoE-1B-7B, 2 layers", "bf16", "deepgemm", "no GPU", 1]])


class Engines(FromFolder):
    FOLDER, MODULE = "engines", "vllm_tables"

    def test_repeats_that_reach_into_each_other_are_level(self):
        self.assertEqual(self.report.word([110.0, 112.0], [100.0, 101.0]), "ahead")
        self.assertEqual(self.report.word([95.0, 120.0], [100.0, 101.0]), "level")
        self.assertEqual(self.report.word([102.0, 102.0], [100.0, 101.0]), "level")
        self.assertEqual(self.report.word([90.0, 91.0], [100.0, 101.0]), "behind")

    def test_seconds_become_tokens(self):
        sides = {name: {"throughput": [900.0], "latency": {"8": [seconds]}} for name, seconds in (("tessera", 0.5), ("vllm", 1.0))}
        self.assertEqual(self.report.parts({"sides": sides})[1][1], {"tessera": [2048.0], "vllm": [1024.0]})

    def test_a_profile(self):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log"
            log.write_text("before\nPROFILE a prefill of 8 tokens: 66.09 ms, kernels 44.82 ms, of them a step, in us:\n"
                           "PROFILE    15643.7     24.0 x  void kernel<(Role)0>\nbetween\n")
            self.assertEqual(self.report.profile_of(log), [{"what": "a prefill of 8 tokens", "wall_ms": 66.09, "kernels_ms": 44.82,
                                                            "kernels": [[15643.7, 24.0, "void kernel<(Role)0>"]]}])


del FromFolder  # no tests of its own

if __name__ == "__main__":
    unittest.main()
