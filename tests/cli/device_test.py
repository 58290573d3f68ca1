"""--device, --precision, --form and what goes with them, on the machine at hand: with a usable GPU, or without."""
import json
import re
import unittest

from cli_support import CliTest, floats, tessera


class DeviceTest(CliTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        lines = re.findall(r"(?m)^GPU +(.*)$", tessera("doctor").out)
        cls.gpus = [int(re.match(r"GPU (\d+) ", line)[1]) for line in lines if line.endswith(": usable")]
        none = re.match(r"none: (.*)", lines[0])
        cls.why = none[1] if none else lines[0].partition(": ")[2]  # why the CPU is used

    def needs_gpu(self):
        if not self.gpus:
            self.skipTest(f"no usable GPU: {self.why}")

    def needs_no_gpu(self):
        if self.gpus:
            self.skipTest("this machine has a usable GPU")

    def logits(self, *arguments, form="ids"):
        result = self.classify("--input", self.ids if form == "ids" else self.embeddings, "--format", form,
                               "--output-format", "bin", *arguments)
        self.assert_code(result, 0)
        return result.out_bytes


class WithoutGpu(DeviceTest):
    def setUp(self):
        super().setUp()
        self.needs_no_gpu()

    def test_auto_takes_the_cpu_and_says_why_once(self):
        for arguments in (["classify"], ["verify", "--against", "oracle"]):
            result = tessera(*arguments, "--verbose", "--model", self.model, "--text" if arguments[0] == "verify" else "--input",
                             self.text)
            self.assert_code(result, 0)
            self.assertEqual(len(re.findall("tessera: on the CPU, fp32, .*: " + re.escape(self.why), result.err)), 1, result.err)
        rows = "".join(f"{line}\t0\n" for line in self.text.read_text().splitlines())
        result = tessera("evaluate", "-v", "--model", self.model, "--input", "-", stdin=rows)
        self.assert_code(result, 0)
        self.assertEqual(len(re.findall("tessera: on the CPU, fp32, .*: " + re.escape(self.why), result.err)), 1, result.err)

    def test_cpu_asked_for_needs_no_reason(self):
        result = self.classify("--text", "x", "--device", "cpu")
        self.assertRegex(result.err, r"(?m)^tessera: on the CPU, fp32, \d+ threads?$")
        self.assertNotIn(self.why, result.err)

    def test_the_defaults_are_fp32_on_the_cpu(self):
        self.assertEqual(self.logits(), self.logits("--device", "cpu", "--precision", "fp32"))

    def test_what_needs_a_gpu_is_refused(self):
        for device in ("cuda", "cuda:0", "cuda:0,1"):
            self.assert_error(self.classify("--text", "x", "--device", device), 2, "--device", f"'{device}'", self.why)
        for arguments, parts in ((["--precision", "fp16"], ["'fp16' on the CPU", "bf16 or fp32"]),
                                 (["--form", "direct"], ["'direct' on the CPU", "auto"]),
                                 (["--layer-precision", "head=fp32"], ["'head=fp32' on the CPU"]),
                                 (["--expert-threshold", "0.25"], ["0.25 on the CPU"])):
            self.assert_error(self.classify("--text", "x", *arguments), 2, arguments[0], self.why, *parts)


class WithGpu(DeviceTest):
    def setUp(self):
        super().setUp()
        self.needs_gpu()

    def test_auto_takes_it_and_says_so(self):
        result = self.classify("--text", "x")
        self.assertRegex(result.err, rf"tessera: on GPU {self.gpus[0]} \(")
        self.assertEqual(self.logits(), self.logits("--device", "cuda", "--precision", "fp16"))

    def test_every_precision_agrees_with_the_oracle(self):
        for form in ("ids", "embeddings"):
            oracle = floats(self.logits("--device", "cpu", "--precision", "fp64", form=form))
            for precision, bound in (("fp16", 2e-2), ("bf16", 0.15), ("fp32", 1e-3)):
                got = floats(self.logits("--device", "cuda", "--precision", precision, form=form))
                for a, b in zip(got, oracle, strict=True):
                    self.assertLessEqual(abs(a - b), bound * max(1, abs(b)), (form, precision))

    def test_fp64_is_the_cpus(self):
        result = self.classify("--text", "x", "--precision", "fp64", "--verbose")
        self.assertRegex(result.err, "tessera: on the CPU, fp64, .*: fp64, the oracle, runs there")
        self.assert_error(self.classify("--text", "x", "--precision", "fp64", "--device", "cuda"), 2, "'fp64' on a GPU")

    def test_one_lane_or_many_devices_give_the_same_bits(self):
        one = self.logits("--device", f"cuda:{self.gpus[0]}")
        self.assertEqual(one, self.logits("--device", "cuda"))
        for batch_size in (1, 7):
            self.assertEqual(one, self.logits("--device", "cuda", "--batch-size", batch_size))

    def test_skipped_experts_are_announced(self):
        result = self.classify("--text", "x", "--quiet", "--expert-threshold", "0.25")
        self.assertIn("experts whose router weight is below 0.25 are skipped", result.err)

    def test_gpus_that_are_not_there(self):
        self.assert_error(self.classify("--text", "x", "--device", "cuda:77"), 2, "'cuda:77'", f"GPU {self.gpus[0]} (")
        twice = f"cuda:{self.gpus[0]},{self.gpus[0]}"
        self.assert_error(self.classify("--text", "x", "--device", twice), 2, "twice")


class Words(DeviceTest):
    def test_words_are_refused_on_every_machine(self):
        for arguments, parts in (
                (["--device", "gpu"], ["'gpu'", "auto, cpu, cuda"]), (["--device", ""], ["''"]),
                (["--precision", "half"], ["'half'", "fp16"]), (["--form", "fft"], ["'fft'", "dft"]),
                (["--layer-precision", "gate=fp16"], ["'gate=fp16'", "convolutions, experts, head"]),
                (["--layer-precision", "head=fp64"], ["'head=fp64'"]),
                (["--layer-precision", "head=fp16,head=bf16"], ["'head' twice"]),
                (["--expert-threshold", "1"], ["got 1", "[0, 1)"]), (["--expert-threshold", "-0.5"], ["got -0.5"]),
                (["--expert-threshold", "nan"], ["got nan"]), (["--expert-threshold", "x"], ["--expert-threshold"])):
            for command in (["classify", "--text", "x"], ["evaluate", "--input", self.text],
                            ["verify", "--text", self.text, "--against", "oracle"]):
                with self.subTest(command=command[0], arguments=arguments):
                    self.assert_error(tessera(*command, "--model", self.model, *arguments), 2, *parts)

    def test_a_wrong_option_is_told_before_the_model_is_read(self):
        self.assert_error(self.classify("--text", "x", "--form", "fft", model=self.folder / "none"), 2, "--form")


class Report(DeviceTest):
    def report(self, *arguments):
        path = self.folder / "report.json"
        result = tessera("verify", "--model", self.model, "--report", "--json", path, *arguments)
        self.assert_code(result, 0)
        self.assertEqual(result.lines[-1], "verified")
        return json.loads(path.read_text())["rows"], result

    def check(self, rows, inputs, precisions):
        self.assertEqual([(row["input"], row["precision"]) for row in rows],
                         [(name, precision) for name in inputs for precision in precisions])
        bounds = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.15}
        for row in rows:
            self.assertEqual(row["bound"], bounds[row["precision"]])
            self.assertLessEqual(row["max_error"], row["bound"])
            self.assertTrue(row["holds"])
            self.assertGreater(row["sentences_per_second"], 0)
            self.assertEqual(row["device"].split()[0], "GPU" if self.gpus else "CPU")

    def precisions(self):
        if self.gpus:
            return ["fp16", "bf16", "fp32"]
        return ["fp32", "bf16"] if "bf16 in hardware" in tessera("doctor").out else ["fp32"]

    def test_made_up_input_in_every_precision(self):
        rows, result = self.report()
        self.check(rows, ["token ids", "embeddings"], self.precisions())
        self.assertEqual(sum(" yes " in line for line in result.lines), len(rows))

    def test_files(self):
        for option, path, name in (("--ids", self.ids, "token ids"), ("--embeddings", self.embeddings, "embeddings"),
                                   ("--text", self.text, "text")):
            rows, _ = self.report(option, path, "--sample", 30)
            self.check(rows, [name], self.precisions())
            self.assertEqual({(row["sample"], row["sentences"]) for row in rows}, {(30, 100)})

    def test_one_precision(self):
        rows, _ = self.report("--ids", self.ids, "--precision", "fp32", "--device", "cpu")
        self.assertEqual([(row["device"], row["precision"], row["form"]) for row in rows], [("CPU", "fp32", "auto")])
        errors = [row["max_error"] for row in rows]
        self.assertGreater(errors[0], 0, "fp32 is not fp64")

    def test_a_record_that_fails_does_not_verify(self):
        ids = bytearray(self.ids.read_bytes())
        ids[0:4] = b"\xff\xff\xff\xff"
        result = tessera("verify", "--model", self.model, "--report", "--ids", self.write("ids.bin", bytes(ids)))
        self.assert_code(result, 1)
        self.assertEqual(result.lines[-1], "NOT verified")
        self.assertIn(" NO ", result.out)

    def test_forms_and_thresholds_on_a_gpu(self):
        self.needs_gpu()
        rows, _ = self.report("--ids", self.ids, "--all-forms")
        self.assertEqual({row["form"] for row in rows}, {"direct", "dft", "distinct", "vocab"})
        rows, _ = self.report("--ids", self.ids, "--precision", "fp16", "--expert-threshold", 0.3)
        self.assertEqual([row["expert_threshold"] for row in rows], [0, 0.3])
        self.assertIn("added_error", rows[1])

    def test_combinations_of_options(self):
        for arguments in (["--report"], ["--report", "--model", self.model, "--ids", self.ids, "--text", self.text],
                          ["--report", "--model", self.model, "--answers", "a"],
                          ["--report", "--model", self.model, "--outputs", "o"],
                          ["--report", "--model", self.model, "--against", "oracle"],
                          ["--report", "--model", self.model, "--all-forms", "--form", "direct"],
                          ["--model", self.model, "--ids", self.ids, "--against", "oracle", "--json", "j"],
                          ["--model", self.model, "--ids", self.ids, "--against", "oracle", "--all-forms"],
                          ["--report", "--model", self.model, "--ids", self.folder / "none.bin"]):
            with self.subTest(arguments=arguments):
                self.assert_error(tessera("verify", *arguments), 2)


if __name__ == "__main__":
    unittest.main()
