"""tessera verify: the judge of results is judged with planted errors."""
import math
import unittest

from cli_support import CliTest, as_bytes, floats, tessera


class OutputsTest(CliTest):
    def setUp(self):
        super().setUp()
        self.answers = floats(self.classify("--input", self.ids, "--format", "ids", "--output-format", "bin",
                                            "--precision", "fp64").out_bytes)
        self.answers_file = self.write("answers.bin", as_bytes("f", self.answers))

    def verify(self, outputs, *arguments):
        path = self.write("outputs.bin", as_bytes("f", outputs))
        return tessera("verify", "--outputs", path, "--answers", self.answers_file, *arguments)

    def assert_verdict(self, result, verified):
        self.assert_code(result, 0 if verified else 1)
        self.assertEqual(result.lines[-1], "verified" if verified else "NOT verified")

    def planted(self, index, value):
        outputs = list(self.answers)
        outputs[index] = value
        return outputs

    def test_equal_outputs(self):
        result = self.verify(self.answers, "--rule", "both")
        self.assert_verdict(result, True)
        self.assertIn("compared      100 records of 2 logits", result.out)
        self.assertIn("same label    100 of 100", result.out)
        self.assertIn("difference    at most 0, 0 on average", result.out)

    def test_one_wrong_value_is_found_and_named(self):
        result = self.verify(self.planted(77, self.answers[77] + 1))
        self.assert_verdict(result, False)
        self.assertIn("our rule      1 values over 0.001", result.out)
        self.assertIn("school's rule 1 values over 0.001", result.out)
        self.assertRegex(result.out, r"\n  record 38: got \[.*\], expected \[")

    def test_bounds_of_each_precision(self):
        for precision, ours in (("fp32", 1e-3), ("fp16", 2e-2), ("bf16", 0.15)):
            bound = ours * max(1, abs(self.answers[10]))
            for factor, verified in ((0.9, True), (1.1, False)):
                result = self.verify(self.planted(10, self.answers[10] + factor * bound), "--precision", precision)
                self.assert_verdict(result, verified)

    def test_nothing_is_not_verified(self):
        """Agreement of no records with no records is no verdict."""
        nothing = self.write("nothing.bin", b"")
        for command in (["--outputs", nothing, "--answers", nothing],
                        ["--model", self.model, "--ids", nothing, "--answers", nothing],
                        ["--model", self.model, "--text", nothing, "--answers", nothing],
                        ["--model", self.model, "--ids", nothing, "--against", "oracle"],
                        ["--model", self.model, "--text", nothing, "--against", "oracle"],
                        ["--model", self.model, "--ids", nothing, "--report"],
                        ["--model", self.model, "--embeddings", nothing, "--report"]):
            result = tessera("verify", *command)
            self.assert_error(result, 2, "no records", "at least one")
            self.assertNotIn("verified", result.out)

    def test_rules_differ_and_the_chosen_one_decides(self):
        outputs = self.planted(10, self.answers[10] + 0.1 * max(1, abs(self.answers[10])))
        self.assert_verdict(self.verify(outputs, "--precision", "bf16"), True)
        self.assert_verdict(self.verify(outputs, "--precision", "bf16", "--rule", "school"), False)
        self.assert_verdict(self.verify(outputs, "--precision", "bf16", "--rule", "both"), False)

    def test_values_that_are_not_finite_never_pass(self):
        for value in (math.nan, math.inf, -math.inf):
            for rule in ("ours", "school"):
                result = self.verify(self.planted(4, value), "--rule", rule, "--precision", "bf16")
                self.assert_verdict(result, False)
                self.assertIn("not finite    1 values", result.out)
        self.answers_file = self.write("answers.bin", as_bytes("f", self.planted(4, math.nan)))
        self.assert_verdict(self.verify(self.planted(4, math.nan), "--rule", "school"), False)

    def test_zeroed_and_swapped_outputs_fail(self):
        self.assert_verdict(self.verify([0.0] * 200, "--precision", "bf16"), False)
        swapped = self.answers[2:4] + self.answers[0:2] + self.answers[4:]
        self.assertGreater(abs(swapped[0] - self.answers[0]), 1e-2, "two records that differ")
        self.assert_verdict(self.verify(swapped), False)

    def test_sizes(self):
        self.assert_error(self.verify(self.answers[:-2]), 2, "100 records", "99, as many as there are outputs")
        self.assert_error(self.verify(self.answers[:-1]), 2, "outputs.bin", "a multiple of 8")
        self.assert_verdict(self.verify(self.answers, "--classes", 1), True)


class ModelTest(CliTest):
    def test_a_model_run_against_answers(self):
        answers = self.classify("--input", self.ids, "--format", "ids", "--output-format", "bin").out_bytes
        path = self.write("answers.bin", answers)
        for form in (["--ids", self.ids], ["--embeddings", self.embeddings], ["--text", self.text]):
            result = tessera("verify", "--model", self.model, *form, "--answers", path, "--rule", "both")
            self.assert_code(result, 0)
        wrong = self.write("wrong.bin", answers[8:] + answers[:8])
        self.assert_code(tessera("verify", "--model", self.model, "--ids", self.ids, "--answers", wrong), 1)
        short = self.write("short.bin", answers[8:])
        self.assert_error(tessera("verify", "--model", self.model, "--ids", self.ids, "--answers", short), 2, "short.bin")

    def test_a_failed_record_is_a_difference(self):
        answers = self.classify("--input", self.ids, "--format", "ids", "--output-format", "bin").out_bytes
        ids = bytearray(self.ids.read_bytes())
        ids[0:4] = as_bytes("i", [1000])
        result = tessera("verify", "--model", self.model, "--ids", self.write("ids.bin", bytes(ids)), "--answers",
                         self.write("answers.bin", answers))
        self.assert_code(result, 1)
        self.assertIn("not finite    2 values", result.out)

    def test_against_the_oracle_on_a_sample(self):
        result = tessera("verify", "--model", self.model, "--ids", self.ids, "--against", "oracle", "--sample", 10)
        self.assert_code(result, 0)
        self.assertIn("compared      10 records", result.out)
        result = tessera("verify", "--model", self.model, "--text", self.text, "--against", "oracle", "--sample", 1000)
        self.assertIn("compared      100 records", result.out)
        result = tessera("verify", "--model", self.model, "--embeddings", self.embeddings, "--against", "oracle")
        self.assertIn("compared      16 records", result.out)
        self.assert_code(result, 0)

    def test_the_sample_spreads_over_the_input(self):
        ids = bytearray(self.ids.read_bytes())
        row = 4 * self.sequence_length
        for record in range(50, 100):
            ids[record * row:record * row + 4] = as_bytes("i", [-1])
        result = tessera("verify", "--model", self.model, "--ids", self.write("ids.bin", bytes(ids)), "--against",
                         "oracle", "--sample", 10)
        self.assert_code(result, 1)
        self.assertIn("not finite    10 values", result.out)
        self.assertIn("  record 90: got [nan, nan]", result.out)

    def test_combinations_of_options(self):
        for arguments in ([], ["--against", "oracle"], ["--answers", "a"], ["--outputs", "o"],
                          ["--outputs", "o", "--answers", "a", "--model", self.model],
                          ["--outputs", "o", "--answers", "a", "--ids", self.ids],
                          ["--model", self.model, "--answers", "a"],
                          ["--model", self.model, "--ids", self.ids, "--text", self.text, "--answers", "a"],
                          ["--model", self.model, "--ids", self.ids, "--answers", "a", "--against", "oracle"],
                          ["--outputs", "o", "--answers", "a", "--against", "luck"],
                          ["--outputs", "o", "--answers", "a", "--rule", "lenient"],
                          ["--outputs", "o", "--answers", "a", "--precision", "fp8"]):
            with self.subTest(arguments=arguments):
                self.assert_error(tessera("verify", *arguments), 2)

    def test_options_that_would_have_no_effect(self):
        answers = self.write("answers.bin", as_bytes("f", [0.0] * 2))
        files = ["--outputs", answers, "--answers", answers]
        for option, value in (("--device", "cpu"), ("--threads", 1), ("--batch-size", 8), ("--form", "direct"),
                              ("--layer-precision", "head=bf16"), ("--expert-threshold", 0.1), ("--sample", 2)):
            self.assert_error(tessera("verify", *files, option, value), 2, f"{option}: got --outputs")
        run = ["--model", self.model, "--ids", self.ids]
        self.assert_error(tessera("verify", *run, "--answers", answers, "--sample", 2), 2,
                          "--sample: got --answers", "expected --against oracle or --report with it")
        self.assert_error(tessera("verify", *run, "--against", "oracle", "--classes", 2), 2, "--classes: got --model")
        for option, value in (("--rule", "ours"), ("--classes", 2)):
            self.assert_error(tessera("verify", *run, "--report", option, value), 2, f"{option}: got --report")


if __name__ == "__main__":
    unittest.main()
