"""tessera bench moe on the CPU back end: tiny layers, what is printed, what is written, what is refused."""
import importlib.util
import json
import os
import subprocess
import sys
import unittest

from cli_support import ROOT, CommandTest, tessera

TINY = ("--hidden", 64, "--intermediate", 32, "--experts", 8, "--top-k", 2, "--threads", 1)
BURST = ("--seconds", 0)


def bench(*arguments, env=None):
    return tessera("bench", "moe", *arguments, env=env)


class BenchMoeTest(CommandTest):
    def measured(self, *arguments):
        path = self.folder / "moe.json"
        result = bench(*arguments, "--device", "cpu", "--json", path)
        self.assert_code(result, 0)
        return result, json.loads(path.read_text())

    def test_words_and_json_agree(self):
        result, json_result = self.measured(*TINY, *BURST, "--tokens", "1,37", "--routing", "balanced,zipf")
        self.assertEqual(json_result["device"], "cpu")
        self.assertEqual(json_result["shape"], {"name": "custom", "hidden": 64, "intermediate": 32, "experts": 8,
                                                "top_k": 2, "activation": "SwiGLU", "first_expert": 0,
                                                "global_experts": 8})
        self.assertEqual([(c["tokens"], c["routing"]) for c in json_result["cases"]],
                         [(1, "balanced"), (1, "zipf"), (37, "balanced"), (37, "zipf")])
        for case in json_result["cases"]:
            self.assertEqual(case["rows"], 2 * case["tokens"])
            self.assertEqual(case["flops"], 6 * case["rows"] * 64 * 32)
            self.assertNotIn("sustained", case)
            spread = case["burst"]["layer_us"]
            self.assertLessEqual(0, spread["min"])
            self.assertLessEqual(spread["min"], spread["median"])
            self.assertLessEqual(spread["median"], spread["max"])
            self.assertAlmostEqual(case["burst"]["layer_tflops"], case["flops"] / spread["median"] / 1e6)
            self.assertTrue(case["check"]["passed"])
            self.assertGreater(case["check"]["largest_error_of_bound"], 0)
            self.assertEqual(case["check"]["tokens"], min(case["tokens"], 6))
            self.assertIn(f"\nT = {case['tokens']}, {case['routing']}: {case['rows']} rows on ", result.out)
        self.assertEqual(result.out.count(": ok\n"), 4)
        self.assertIn("GFLOP/s", result.out)
        self.assertLessEqual(max(map(len, result.lines)), 100)

    def test_sustained_blocks_last_as_long_as_asked(self):
        case = self.measured(*TINY, "--tokens", 16, "--seconds", 0.2)[1]["cases"][0]
        self.assertGreater(case["sustained"]["seconds_a_block"], 0.1)
        self.assertLess(case["sustained"]["seconds_a_block"], 1.0)

    def test_every_dtype_is_right(self):
        for dtype in ("bf16", "f16", "f32"):
            json_result = self.measured(*TINY, *BURST, "--tokens", 40, "--dtype", dtype, "--routing", "random,worst,one")[1]
            self.assertEqual(json_result["dtype"], dtype)
            self.assertTrue(all(case["check"]["passed"] for case in json_result["cases"]))

    def test_weights_of_8_bits_are_measured_and_right(self):
        for dtype, weights in (("bf16", "fp8-block"), ("f16", "fp8-block"), ("bf16", "fp8-channel")):
            sizes = ("--hidden", 272, "--intermediate", 144, *TINY[4:])
            result, json_result = self.measured(*sizes, *BURST, "--tokens", "1,40", "--routing", "random", "--dtype", dtype,
                                                "--format", weights)
            self.assertEqual(json_result["format"], weights)
            self.assertRegex(result.out, rf"(?m)^layer .*, {weights} weights, " + dtype)
            self.assertRegex(result.out, r"(?m)^dense +none: only weights without scales have them here$")
            for case in json_result["cases"]:
                self.assertTrue(case["check"]["passed"])
                self.assertGreater(case["check"]["largest_error_of_bound"], 0)
                self.assertNotIn("r", case["burst"])
                self.assertEqual(case["flops"], 6 * case["rows"] * 272 * 144)
        dense = self.measured(*sizes, *BURST, "--tokens", 1, "--routing", "random", "--no-dense")[1]
        self.assertEqual(dense["format"], "dense")
        matrices = 3 * dense["cases"][0]["experts_with_rows"]
        saved = dense["cases"][0]["bytes"] - json_result["cases"][0]["bytes"]
        self.assertAlmostEqual(saved / (matrices * 272 * 144), 1, delta=0.05)

    def test_dense_products_can_be_left_out(self):
        case = self.measured(*TINY, *BURST, "--tokens", 16, "--no-dense")[1]["cases"][0]
        self.assertNotIn("r", case["burst"])
        self.assertNotIn("dense_us", case["burst"])

    def test_dense_products_give_the_ratio(self):
        case = self.measured(*TINY, *BURST, "--tokens", 16)[1]["cases"][0]
        duel = case["burst"]
        self.assertLessEqual(duel["r"]["min"], duel["r"]["median"])
        self.assertAlmostEqual(duel["dense_tflops"], case["flops"] / duel["dense_us"]["median"] / 1e6)

    def test_without_a_gpu_the_cpu_takes_over_and_says_why(self):
        result = bench(*TINY, *BURST, "--tokens", 4, env={"CUDA_VISIBLE_DEVICES": ""})
        self.assert_code(result, 0)
        self.assertRegex(result.out, r"(?m)^device +cpu: (this build has no CUDA kernels|no GPU here: .+)$")
        self.assert_error(bench(*TINY, "--tokens", 4, "--device", "cuda", env={"CUDA_VISIBLE_DEVICES": ""}), 2,
                          "--device cuda")

    def test_options_of_a_gpu_are_refused_on_the_cpu(self):
        for option, *value in (("--order", "natural"), ("--back-every", 0), ("--cluster", 1), ("--ctas", 8), ("--floor",)):
            self.assert_error(bench(*TINY, "--tokens", 4, "--device", "cpu", option, *value), 2,
                              f"{option}: got the CPU back end, expected a GPU")


    def test_the_floor_needs_a_gpu_and_says_so(self):
        without = {"CUDA_VISIBLE_DEVICES": ""}
        self.assert_error(bench(*TINY, "--tokens", 4, "--floor", "--device", "cpu"), 2,
                          "--floor: got the CPU back end, expected a GPU")
        self.assert_error(bench(*TINY, "--tokens", 4, "--floor", "--json", self.folder / "floor.json", env=without), 2,
                          "--floor: got the CPU back end: ", "expected a GPU")
        self.assertFalse((self.folder / "floor.json").exists())
        self.assertNotIn("floor", self.measured(*TINY, *BURST, "--tokens", 4)[1]["cases"][0])


class TableTest(CommandTest):
    """bench/gpu/moe_table.py turns what the command writes into the shape of the committed results."""

    @classmethod
    def setUpClass(cls):
        spec = importlib.util.spec_from_file_location("moe_table", ROOT / "bench" / "gpu" / "moe_table.py")
        cls.table = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cls.table)
        cls.committed = json.loads((ROOT / "bench" / "results" / "moe_h100.json").read_text())

    def measured(self):
        """One load as a GPU would be reported: the CPU's figures, and kernels that a CPU does not measure alone."""
        path = self.folder / "row.json"
        self.assert_code(bench(*TINY, "--tokens", 16, "--seconds", 0.01, "--device", "cpu", "--json", path), 0)
        measured = json.loads(path.read_text())
        gemm = {"us": 2.0, "tflops": 600.4, "gb_per_s": 1.0, "dense_tflops": 700.0, "of_dense": 0.8577}
        measured["cases"][0]["kernels"] = {"plan": {"us": 15.26, "gb_per_s": 1.0}, "gemm1": gemm, "gemm2": gemm,
                                           "combine": {"us": 40.0, "gb_per_s": 2459.0}}
        measured["cases"][0]["launch"] = {"GEMM 1": "some_kernel"}
        return measured

    def test_rows_have_the_members_of_the_committed_ones(self):
        results = {"burst": {}, "sustained": {}}
        self.table.add_row(results, "mixtral", self.measured())
        for kind in ("burst", "sustained"):
            # What ran is told load by load; the committed file is of when it was told once.
            self.assertEqual(results[kind]["mixtral"].keys() - {"launch"}, self.committed[kind]["mixtral"].keys() -
                             {"launch", "layer_sm_mhz", "layer_watts", "dense_sm_mhz", "dense_watts"})
        self.assertEqual(results["burst"]["mixtral"]["launch"], {"GEMM 1": "some_kernel"})
        self.assertEqual(results["burst"]["mixtral"]["gemm1_of_dense"], 0.858)
        for name in ("layer_table", "combine_table"):
            table = getattr(self.table, name)(results)
            self.assertEqual(table["columns"], self.committed[name]["columns"])
            self.assertEqual([len(row) for row in table["rows"]], [len(table["columns"])])
            self.assertEqual(table["rows"][0][0], "mixtral")

    def run_table(self, measured, *arguments, exit_code=0):
        """The script with a command that writes `measured` wherever it is told to."""
        command = self.folder / "tessera"
        command.write_text("#!/bin/sh\nwhile [ \"$1\" != --json ]; do shift; done\n"
                           f"cp {self.write('measured.json', json.dumps(measured))} \"$2\"\nexit {exit_code}\n")
        command.chmod(0o755)
        return subprocess.run([sys.executable, ROOT / "bench" / "gpu" / "moe_table.py", command, "--output",
                               self.folder / "table.json", *arguments], text=True, capture_output=True, check=False)

    def test_rows_of_one_machine_come_together_others_are_dropped(self):
        measured = self.measured()
        measured["machine"] = {"GPU": "a GPU", "CUDA": "13", "dense": "cuBLASLt"}
        for rows, machine, expected in (("qwen30", "a GPU", ["qwen30"]), ("mixtral", "a GPU", ["mixtral", "qwen30"]),
                                        ("dsv3", "another GPU", ["dsv3"])):
            measured["machine"]["GPU"] = machine
            done = self.run_table(measured, "--rows", rows)
            self.assertEqual(done.returncode, 0, done.stderr)
            table = json.loads((self.folder / "table.json").read_text())
            self.assertEqual([row[0] for row in table["layer_table"]["rows"]], expected)
            self.assertIn(machine, table["what"])

    def test_one_process_measures_every_routing_of_a_load(self):
        measured = self.measured() | {"machine": {"GPU": "NVIDIA H200, 132", "CUDA": "13", "dense": "cuBLASLt"}}
        other = json.loads(json.dumps(measured["cases"][0]))
        other["kernels"]["plan"]["us"] = 99.0
        measured["cases"].append(other)
        done = self.run_table(measured, "--rows", "mixtral,mixtral-r")
        self.assertEqual(done.returncode, 0, done.stderr)
        plans = {row[0]: row[2] for row in json.loads((self.folder / "table.json").read_text())["plan_table"]["rows"]}
        self.assertEqual(plans, {"mixtral": 15.3, "mixtral-r": 99.0})
        self.assertIn("qwen3-30b 16384 balanced: got 2 cases, expected 1", self.run_table(measured, "--rows", "qwen30").stderr)
        self.assertEqual(self.table.groups(["qwen57", "mixtral", "qwen57-best"]),
                         {("qwen2-57b", 4096): ["qwen57", "qwen57-best"], ("mixtral-8x7b", 4096): ["mixtral"]})
        self.assertEqual(self.table.file_name(measured["machine"], "moe"), ROOT / "bench" / "results" / "moe_h200.json")

    def test_a_wrong_result_or_row_writes_nothing(self):
        done = self.run_table(self.measured() | {"machine": {}}, "--rows", "mixtral", exit_code=1)
        self.assertEqual((done.returncode, done.stderr), (1, "moe_table: mixtral-8x7b 4096 balanced: exit code 1\n"))
        self.assertIn("got qwen9, expected some of mixtral", self.run_table({}, "--rows", "qwen9").stderr)
        self.assertFalse((self.folder / "table.json").exists())

    def test_the_rows_are_the_committed_ones(self):
        self.assertEqual(set(self.table.ROWS), set(self.committed["burst"]))


class CallOverheadTest(CommandTest):
    """bench/gpu/call_overhead.py, but for the calls themselves."""

    SCRIPT = ROOT / "bench" / "gpu" / "call_overhead.py"

    def test_the_quietest_round_counts_way_by_way(self):
        spec = importlib.util.spec_from_file_location("call_overhead", self.SCRIPT)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        self.assertEqual(script.quietest([{"a": 2.0, "b": 1.004}, {"a": 1.5, "b": 9.0}]), {"a": 1.5, "b": 1.0})
        for gpu, name in (("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA GH200 480GB", "gh200"),
                          ("Tesla V100-SXM2-16GB", "v100")):
            self.assertEqual(script.result_name(gpu), f"call_overhead_{name}.json")
        committed = json.loads((ROOT / "bench" / "results" / "call_overhead_h100.json").read_text())
        self.assertEqual(script.result_name(committed["gpu"]), "call_overhead_h100.json")

    def test_without_a_gpu_it_writes_nothing(self):
        path = self.folder / "figures.json"
        done = subprocess.run([sys.executable, self.SCRIPT, "--output", path], text=True, capture_output=True, check=False,
                              env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "^call_overhead: (No module named '.+': it needs torch|no GPU here)")
        self.assertFalse(path.exists())


class BadInputTest(CommandTest):
    def test_what_cannot_be_measured_is_named(self):
        for arguments, parts in (
                (("--preset", "qwen9", "--tokens", 8), ("preset: got 'qwen9'", "mixtral-8x7b")),
                ((*TINY, "--tokens", 0), ("--tokens: got '0'",)),
                ((*TINY, "--tokens=-1"), ("--tokens: got '-1'",)),
                ((*TINY, "--tokens", 3, "--routing", "worst"), ("routing worst: got 3 tokens x 2",)),
                ((*TINY[:6], "--top-k", 9, "--tokens", 4), ("--top-k: got 9", "1..8")),
                ((*TINY, "--tokens", 4, "--dtype", "f64"), ("--dtype: got 'f64'",)),
                ((*TINY, "--tokens", 4, "--format", "fp8"), ("--format: got 'fp8'", "dense, fp8-block, fp8-channel")),
                (("--hidden", 72, *TINY[2:], "--tokens", 4, "--format", "fp8-block"),
                 ("--hidden: got 72", "a multiple of 16")),
                ((*TINY, "--tokens", 4, "--device", "tpu"), ("--device: got 'tpu'", "auto, cpu or cuda")),
                ((*TINY, "--tokens", 4, "--device", "cpu", "--json", "/nowhere/x.json"), ("/nowhere/x.json",))):
            with self.subTest(arguments=arguments):
                self.assert_error(bench(*arguments), 2, *parts)
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main()
