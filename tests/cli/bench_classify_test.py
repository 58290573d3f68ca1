"""tessera bench classify on the CPU back end, and the table and the picture that are made of what it writes."""
import importlib.util
import json
import subprocess
import sys
import time
import unittest
import unittest.mock

from cli_support import ROOT, CommandTest, as_bytes, tessera

SMALL = ("--preset", "small", "--seconds", 0.2, "--threads", 1)
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def bench(*arguments, env=None):
    return tessera("bench", "classify", *arguments, env=env)


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with unittest.mock.patch.object(sys, "path", [str(path.parent), *sys.path]):  # it imports what lies beside it
        spec.loader.exec_module(module)
    return module


class BenchClassifyTest(CommandTest):
    def measured(self, *arguments):
        path = self.folder / "classify.json"
        result = bench(*SMALL, "--device", "cpu", "--json", path, *arguments)
        self.assert_code(result, 0)
        return result, json.loads(path.read_text())

    def assert_spread(self, spread):
        self.assertLess(0, spread["min"])
        self.assertLessEqual(spread["min"], spread["median"])
        self.assertLessEqual(spread["median"], spread["max"])

    def test_words_and_json_agree(self):
        result, told = self.measured("--sentences", 300, "--check", 7)
        self.assertEqual([told[name] for name in ("device", "devices", "sentences", "ids", "embeddings")],
                         ["cpu", [], 300, "random sentences", "random, N(0, 1)"])
        self.assertEqual([(c["path"], c["precision"], c["form"]) for c in told["cases"]],
                         [("embeddings", "fp32", "auto"), ("ids", "fp32", "auto")])
        self.assertEqual([(c["path"], c["reason"]) for c in told["left_out"]],
                         [("resident", "there is no device memory without a GPU")])
        for case in told["cases"]:
            self.assertEqual(case["latency"]["sentences"], 300)
            self.assert_spread(case["latency"]["seconds"])
            self.assertAlmostEqual(case["latency"]["sentences_per_second"] * case["latency"]["seconds"]["median"], 300)
            sustained = case["sustained"]
            self.assert_spread(sustained["sentences_per_second"])
            self.assertEqual(sustained["blocks"], 2)
            self.assertGreaterEqual(sustained["seconds_a_block"], 0.2)
            self.assertLess(sustained["seconds_a_block"], 2.0)
            self.assertNotIn("limit", case)
            check = case["check"]
            self.assertEqual((check["records"], check["bound"], check["bits_agree"], check["passed"]),
                             (7, 1e-3, True, True))
            self.assertLess(0, check["largest_error"])
            self.assertLess(check["largest_error"], 1e-3)
            self.assertIn(f"\n{case['path']}, fp32, form auto\n", result.out)
            shown = f"{sustained['sentences_per_second']['median']:,.0f} sentences/s"
            self.assertIn(shown, result.out)
        embeddings, ids = told["cases"]
        self.assertAlmostEqual(embeddings["sustained"]["flops_per_second"],
                               embeddings["sustained"]["sentences_per_second"]["median"] * told["flops_per_sentence"])
        self.assertNotIn("flops_per_second", ids["sustained"])
        self.assertEqual(result.out.count(": ok\n"), 2)
        self.assertLessEqual(max(map(len, result.lines)), 100)

    def test_rows_of_a_file_go_round_and_are_the_embeddings(self):
        ids = self.write("rows.bin", as_bytes("i", [i % 50 for i in range(16 * 5)]))
        told = self.measured("--ids", ids, "--sentences", 12, "--data", "ids")[1]
        self.assertEqual((told["ids"], told["embeddings"]), ("rows.bin, 5 rows", "of the ids"))
        self.assertTrue(all(case["check"]["passed"] for case in told["cases"]))
        self.assertEqual(told["cases"][0]["check"]["records"], 4)

    def test_a_model_of_ones_own(self):
        self.assert_code(tessera("synth", "--preset", "small", "--output", self.folder / "model"), 0)
        path = self.folder / "own.json"
        self.assert_code(bench("--model", self.folder / "model", "--path", "ids", "--seconds", 0, "--device", "cpu",
                               "--json", path), 0)
        self.assertEqual(json.loads(path.read_text())["model"], str(self.folder / "model"))

    def test_without_a_gpu_auto_takes_the_cpu_and_says_why(self):
        result = bench(*SMALL, "--path", "ids", env=NO_GPU)
        self.assert_code(result, 0)
        self.assertRegex(result.out, r"(?m)^device +cpu: \S+")
        for device in ("cuda", "cuda:0", "cuda:0,1"):
            self.assert_error(bench(*SMALL, "--device", device, env=NO_GPU), 2, f"--device: got '{device}'")

    def test_what_cannot_be_measured_is_named(self):
        cpu = (*SMALL, "--device", "cpu")
        odd = self.write("odd.bin", b"123")
        beyond = self.write("beyond.bin", as_bytes("i", [0] * 31 + [1 << 20]))
        for arguments, parts in (
                (("--path", "text"), ("--path: got 'text'", "embeddings, resident or ids")),
                (("--path", "ids,"), ("--path: got ''",)),
                (("--precision", "fp64"), ("--precision: got 'fp64'",)),
                (("--form", "fast"), ("--form: got 'fast'", "distinct")),
                (("--data", "zeros"), ("--data: got 'zeros'", "random or ids")),
                (("--device", "tpu"), ("--device: got 'tpu'", "cuda:0,2")),
                (("--preset", "large"), ("preset: got 'large'",)),
                (("--model", "here", "--preset", "small"), ("--model, --preset: got both",)),
                ((*cpu, "--precision", "fp16"), ("fp16 is for GPUs",)),
                ((*cpu, "--form", "vocab"), ("chooses its form itself",)),
                ((*cpu, "--path", "resident"), ("no device memory without a GPU",)),
                ((*cpu, "--ids", odd), ("odd.bin: got 3 bytes", "rows of 64 bytes")),
                ((*cpu, "--ids", self.folder), ("cannot open",)),
                ((*cpu, "--ids", beyond), ("beyond.bin: record 1: got token id 1048576",)),
                ((*cpu, "--sentences", -1), ("--sentences",)),
                ((*cpu, "--check", 0), ("--check",)),
                ((*cpu, "--json", "/nowhere/x.json"), ("/nowhere/x.json",))):
            with self.subTest(arguments=arguments):
                self.assert_error(bench(*arguments), 2, *parts)
        self.assert_nothing_left("odd.bin", "beyond.bin")


# The command as the table script sees it: results for `bench classify`, statistics for `classify`; what holds "bad" fails.
FAKE = """#!{python}
import json, sys
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
if arguments[0] == "bench":
    if "{bad}" in (value("--precision"), value("--path")):
        sys.exit("tessera: error: planted")
    told = json.load(open({measured!r}))
    told["cases"] = told["cases"][:1]
    json.dump(told, open(value("--json"), "w"))
else:
    assert value("--format") == "text" and len(open(value("--input")).readlines()) > 0
    json.dump({{"sentences_per_second": 2e6}}, open(value("--statistics"), "w"))
"""
FAKE_TORCH = """#!{python}
import json, sys
value = lambda name: sys.argv[sys.argv.index(name) + 1]
rate = {{"sustained_sentences_per_second": 2000.0}}
json.dump({{"embeddings": rate, "ids": rate, "compute": {{"256": rate, "1024": {{"sustained_sentences_per_second": 2500.0}}}}}},
          open(value("--json"), "w"))
"""


class TableTest(CommandTest):
    """bench/gpu/classify_table.py with commands that answer as on a GPU."""

    @classmethod
    def setUpClass(cls):
        cls.script = ROOT / "bench" / "gpu" / "classify_table.py"
        cls.table = load_script(cls.script)

    def measured(self, rate=4000.0, gpu="NVIDIA H100 80GB HBM3, 132 multiprocessors"):
        """As the command writes it on a GPU: the CPU's, and a limit and clocks, which the CPU has none of."""
        path = self.folder / "cpu.json"
        self.assert_code(bench(*SMALL, "--device", "cpu", "--path", "embeddings", "--json", path), 0)
        told = json.loads(path.read_text())
        path.unlink()
        told |= {"device": "cuda", "devices": [0], "machine": {"GPU 0": gpu, "driver": "1", "host": "16 processors"}}
        case = told["cases"][0]
        case["sustained"]["sentences_per_second"] = {"median": rate, "min": 0.9 * rate, "max": 1.1 * rate}
        case["limit"] = {"what": "host-to-device copies", "unit": "B", "per_sentence": 1e6, "sentences_per_second": 5000.0,
                         "rate": {"median": 5e9, "min": 5e9, "max": 5e9}, "reached_rate": rate * 1e6,
                         "fraction": {"median": 0.8, "min": 0.7, "max": 0.9}}
        case["states"] = [{"sm_mhz": 1500.0, "watts": 600.0}]
        return told

    def script_file(self, name, text, **values):
        path = self.write(name, text.format(python=sys.executable, **values))
        path.chmod(0o755)
        return path

    def run_table(self, measured, *arguments, bad="nothing"):
        canned = self.write("measured.json", json.dumps(measured))
        tessera_command = self.script_file("tessera", FAKE, measured=str(canned), bad=bad)
        python = self.script_file("python", FAKE_TORCH)
        done = subprocess.run([sys.executable, self.script, tessera_command, "--python", python, "--text-sentences", "2000",
                               "--output", self.folder / "table.json", *arguments], text=True, capture_output=True,
                              check=False)
        path = self.folder / "table.json"
        return done, json.loads(path.read_text()) if path.exists() else None

    def test_all_cases_with_two_rounds_against_torch(self):
        done, results = self.run_table(self.measured(), "--rounds", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(results["failed"], {})
        self.assertEqual(set(results["runs"]), set(self.table.CASES))
        self.assertEqual({name: len(runs) for name, runs in results["runs"].items() if len(runs) > 1},
                         dict.fromkeys((*self.table.DUELS, "torch"), 2))
        self.assertEqual(set(results["cases"]), set(self.table.WORDS))
        case = results["cases"]["embeddings_fp16"]
        self.assertEqual((case["sentences_per_second"], case["fraction"], case["reached_gb_per_s"], case["rounds"]),
                         (4000.0, 0.8, 4.0, 2))
        self.assertEqual(results["ratios"]["embeddings_fp16_to_torch"], {"median": 2.0, "min": 2.0, "max": 2.0})
        self.assertEqual(results["ratios"]["resident_fp16_to_torch"]["median"], 1.6)  # its best batch
        self.assertEqual(results["ratios"]["embeddings_fp16_to_seed"], 0.1)
        self.assertEqual(results["ratios"]["resident_ids_fp16_distinct_to_direct"], 1.0)
        self.assertEqual(results["text"]["text_bin"], {"sentences_per_second": 2e6})
        self.assertEqual([len(row) for row in results["table"]["rows"]], [6] * len(self.table.WORDS))
        self.assertNotIn("host", results["machine"])
        self.assertEqual(results["gpu"], "NVIDIA H100 80GB HBM3")
        self.assertIn("source", results["seed"])

    def test_a_case_that_fails_is_recorded_and_the_rest_goes_on(self):
        done, results = self.run_table(self.measured(), bad="fp32")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(results["failed"], dict.fromkeys(("embeddings_fp32", "embeddings_fp32_direct", "ids_fp32"),
                                                          "exit code 1: tessera: error: planted"))
        self.assertEqual(set(results["cases"]), set(self.table.WORDS) - set(results["failed"]))

    def test_what_the_budget_has_no_time_for_is_recorded(self):
        done, results = self.run_table(self.measured(), "--budget", "0", "--cases", "embeddings_fp16,torch")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(results["failed"], dict.fromkeys(("embeddings_fp16", "torch"),
                                                          "not run: the budget of time was spent"))

    def test_cases_of_one_machine_come_together_others_are_dropped(self):
        for case, gpu, expected in (("ids_fp16", "A", {"ids_fp16"}), ("ids_fp32", "A", {"ids_fp16", "ids_fp32"}),
                                    ("embeddings_fp16", "B", {"embeddings_fp16"})):
            results = self.run_table(self.measured(gpu=gpu), "--cases", case)[1]
            self.assertEqual(set(results["cases"]), expected)

    def test_a_slow_case_is_ended(self):
        slow = self.write("slow", f"#!/bin/sh\n(sleep 2; echo x > {self.folder}/left) &\nwait\n")
        slow.chmod(0o755)
        with self.assertRaisesRegex(self.table.Failed, "no end within 0 s"):
            self.table.run([slow], 0.2)
        time.sleep(2.2)
        self.assertFalse((self.folder / "left").exists())  # what it had started is ended too
        with self.assertRaisesRegex(self.table.Failed, "No such file"):
            self.table.run([self.folder / "nothing"], 5)

    def test_names(self):
        for gpu, name in (("NVIDIA H100 80GB HBM3, 132", "classify_h100x1.json"), ("NVIDIA H200, 132", "classify_h200x1.json"),
                          ("a processor", "classify_gpux1.json")):
            self.assertEqual(self.table.file_name({"GPU 0": gpu}, 1), name)
        done = self.run_table({"cases": []}, "--cases", "ids_fp8")[0]
        self.assertIn("got ids_fp8, expected some of embeddings_fp16", done.stderr)

    def test_the_picture_has_a_row_for_each_result_there_is(self):
        picture = load_script(ROOT / "docs" / "figures" / "classifier_speed.py")
        self.enterContext(unittest.mock.patch.object(picture.charts, "RESULTS", self.folder))

        def rows():
            return [[tuple(row) for row in part] for _, part in picture.content()]

        self.assertEqual([len(part) for part in rows()], [1, 0])
        results = self.run_table(self.measured(rate=400000.0))[1]
        self.write("classify_h100x1.json", json.dumps(results))
        self.assertEqual([[row[:2] for row in part] for part in rows()],
                         [[("School project, best published, 4 GPUs", 40000), ("PyTorch, 1 H100", 2000.0),
                           ("Tessera, 1 H100", 400000.0)],
                          [("PyTorch, 1 H100", 2000.0), ("Tessera, 1 H100", 400000.0)]])
        self.assertEqual(rows()[0][2][3], 5000.0)  # the limit
        self.write("classify_h200x4.json", json.dumps(results))
        self.assertEqual([len(part) for part in rows()], [5, 4])
        self.write("classify_h200x1.json", json.dumps(results))
        self.assertEqual([row[0] for row in rows()[1]],
                         ["PyTorch, 1 H200", "Tessera, 1 H200", "PyTorch, 4 H200", "Tessera, 4 H200"])


class TorchPeerTest(unittest.TestCase):
    def test_its_arithmetic(self):
        done = subprocess.run([sys.executable, ROOT / "bench" / "peers" / "torch_classifier.py", "--self-test"], text=True,
                              capture_output=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, "self-test passed\n"), done.stderr)


if __name__ == "__main__":
    unittest.main()
