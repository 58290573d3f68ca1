"""tessera classify: every format in and out, and that results depend on the records alone."""
import csv
import io
import json
import unittest

from cli_support import CliTest, SHIPPED_MODEL, floats, tessera


class FormatsIn(CliTest):
    def labels_of(self, *arguments, stdin=b""):
        result = self.classify(*arguments, "--output-format", "jsonl", stdin=stdin)
        self.assert_code(result, 0)
        self.assertEqual([record["index"] for record in result.json_lines], list(range(len(result.lines))))
        return result.labels

    def test_text_ids_and_embeddings_of_the_same_sentences_agree(self):
        from_text = self.labels_of("--input", self.text)
        self.assertEqual(len(from_text), 100)
        self.assertEqual(set(from_text), {"negative", "positive"})
        self.assertEqual(self.labels_of("--input", self.ids, "--format", "ids"), from_text)
        self.assertEqual(self.labels_of("--input", self.embeddings, "--format", "embeddings"), from_text)

    def test_csv_and_jsonl_carry_the_same_sentences(self):
        sentences = self.text.read_text().splitlines()
        expected = self.labels_of("--input", self.text)
        rows = "id,text\r\n" + "".join(f'{i},"{s}"\r\n' for i, s in enumerate(sentences))
        self.assertEqual(self.labels_of("--input", self.write("a.csv", rows)), expected)
        objects = "".join(json.dumps({"id": i, "sentence": s}) + "\n" for i, s in enumerate(sentences))
        self.assertEqual(self.labels_of("--input", self.write("a.jsonl", objects)), expected)
        renamed = rows.replace("text", "review")
        self.assertEqual(self.labels_of("--input", self.write("b.csv", renamed), "--field", "review"), expected)

    def test_format_option_beats_the_extension(self):
        path = self.write("a.csv", "text\nbabe\n")
        self.assertEqual(len(self.labels_of("--input", path)), 1)
        self.assertEqual(len(self.labels_of("--input", path, "--format", "text")), 2)

    def test_standard_input(self):
        expected = self.labels_of("--input", self.text)
        self.assertEqual(self.labels_of("--input", "-", stdin=self.text.read_bytes()), expected)
        self.assertEqual(self.labels_of("--input", "-", "--format", "ids", stdin=self.ids.read_bytes()), expected)
        self.assertEqual(self.labels_of("--input", "-", "--format", "embeddings", stdin=self.embeddings.read_bytes()),
                         expected)

    def test_sentences_on_the_command_line(self):
        sentences = self.text.read_text().splitlines()[:3]
        arguments = [word for sentence in sentences for word in ("--text", sentence)]
        self.assertEqual(self.labels_of(*arguments), self.labels_of("--input", self.text)[:3])
        self.assertEqual(len(self.labels_of("--text", "")), 1)

    def test_blank_lines_are_records(self):
        self.assertEqual(len(self.labels_of("--input", "-", stdin=b"\n\nbaba\n\n")), 4)

    def test_last_line_without_newline_counts_and_crlf_is_one_line_end(self):
        with_newline = self.labels_of("--input", "-", stdin=b"baba\nbebe\n")
        self.assertEqual(self.labels_of("--input", "-", stdin=b"baba\r\nbebe"), with_newline)

    def test_empty_input_has_no_records_and_is_no_error(self):
        for form in ("text", "jsonl", "ids", "embeddings"):
            self.assertEqual(self.labels_of("--input", "-", "--format", form), [], form)
        self.assertEqual(self.labels_of("--input", self.write("empty.txt", "")), [])


class FormatsOut(CliTest):
    def setUp(self):
        super().setUp()
        self.records = self.classify("--input", self.text, "--output-format", "jsonl").json_lines

    def test_jsonl_members(self):
        self.assertEqual(list(self.records[0]), ["index", "label", "probability"])
        for record in self.records:
            self.assertTrue(0.5 <= record["probability"] <= 1, record)

    def test_text_is_label_tab_probability(self):
        result = self.classify("--input", self.text)
        for line, record in zip(result.lines, self.records, strict=True):
            label, probability = line.split("\t")
            self.assertEqual((label, float(probability)), (record["label"], record["probability"]))

    def test_show_text_adds_the_sentence(self):
        result = self.classify("--input", self.text, "--show-text")
        self.assertEqual([line.split("\t")[2] for line in result.lines], self.text.read_text().splitlines())

    def test_csv_has_a_header_and_the_same_values(self):
        rows = list(csv.DictReader(io.StringIO(self.classify("--input", self.text, "--output-format", "csv").out)))
        for row, record in zip(rows, self.records, strict=True):
            self.assertEqual({key: str(value) for key, value in record.items()} | {"probability": 0},
                             row | {"probability": 0})
            self.assertEqual(float(row["probability"]), record["probability"])

    def test_bin_holds_the_logits(self):
        logits = floats(self.classify("--input", self.text, "--output-format", "bin").out_bytes)
        self.assertEqual(len(logits), 2 * len(self.records))
        for record in self.records:
            negative, positive = logits[2 * record["index"]:][:2]
            self.assertEqual(record["label"], "positive" if positive > negative else "negative")

    def test_expert_weights_are_a_distribution(self):
        records = self.classify("--input", self.text, "--output-format", "jsonl", "--expert-weights").json_lines
        for record in records:
            self.assertEqual(len(record["expert_weights"]), 3)
            self.assertAlmostEqual(sum(record["expert_weights"]), 1, places=4)
        header, first = self.classify("--input", self.text, "--output-format", "csv", "--expert-weights").lines[:2]
        self.assertEqual(header, "index,label,probability,expert_0,expert_1,expert_2")
        self.assertEqual([float(x) for x in first.split(",")[3:]], records[0]["expert_weights"])
        self.assertEqual(self.classify("--input", self.text, "--expert-weights").lines[0].count("\t"), 4)

    def test_file_and_extension(self):
        for name, form in (("a.jsonl", "jsonl"), ("a.csv", "csv"), ("a.bin", "bin"), ("a.txt", "text"), ("a", "text")):
            expected = self.classify("--input", self.text, "--output-format", form).out_bytes
            result = self.classify("--input", self.text, "--output", self.folder / name)
            self.assert_code(result, 0)
            self.assertEqual(result.out_bytes, b"")
            self.assertEqual((self.folder / name).read_bytes(), expected, name)
        self.assert_nothing_left("a.jsonl", "a.csv", "a.bin", "a.txt", "a")

    def test_a_finished_run_replaces_what_was_there(self):
        path = self.write("a.jsonl", "old\n" * 10_000)
        self.classify("--input", self.text, "--output", path)
        self.assertEqual(len(path.read_text().splitlines()), 100)

    def test_empty_input_leaves_a_whole_file(self):
        result = self.classify("--input", "-", "--output", self.folder / "a.csv")
        self.assert_code(result, 0)
        self.assertEqual((self.folder / "a.csv").read_text(), "index,label,probability\n")


class Invariance(CliTest):
    """The bytes of the output, logits included, depend on neither batches nor threads."""

    def test_batch_size_and_threads(self):
        inputs = {"text": self.text, "ids": self.ids, "embeddings": self.embeddings}
        for form, path in inputs.items():
            outputs = set()
            for batch_size in (1, 7, 1000):
                for threads in (1, 2, 3):
                    result = self.classify("--input", path, "--format", form, "--output-format", "bin",
                                           "--batch-size", batch_size, "--threads", threads)
                    self.assert_code(result, 0)
                    outputs.add(result.out_bytes)
            self.assertEqual(len(outputs), 1, form)
            self.assertEqual(len(outputs.pop()), 100 * 2 * 4)

    def test_a_sentence_alone_and_among_others(self):
        together = self.classify("--input", self.ids, "--format", "ids", "--output-format", "bin").out_bytes
        row = 4 * self.sequence_length
        ids = self.ids.read_bytes()
        for i in (0, 41, 99):
            alone = self.classify("--input", "-", "--format", "ids", "--output-format", "bin",
                                  stdin=ids[i * row:(i + 1) * row])
            self.assertEqual(alone.out_bytes, together[8 * i:8 * i + 8])

    def test_precisions_agree_with_the_oracle(self):
        oracle = floats(self.classify("--input", self.ids, "--format", "ids", "--output-format", "bin", "--precision",
                                      "fp64").out_bytes)
        self.assertEqual(len(oracle), 200)
        bounds = {"fp32": 1e-3}
        if "bf16 in hardware" in tessera("doctor").out:
            bounds |= {"bf16": 0.15, "auto": 0.15}
        for precision, bound in bounds.items():
            logits = floats(self.classify("--input", self.ids, "--format", "ids", "--output-format", "bin",
                                          "--precision", precision).out_bytes)
            for got, expected in zip(logits, oracle, strict=True):
                self.assertLessEqual(abs(got - expected), bound * max(1, abs(expected)), precision)


class Messages(CliTest):
    def test_statistics_on_stderr_and_clean_stdout(self):
        result = self.classify("--input", self.text)
        self.assertIn("100 records read, 100 labelled, 0 failed", result.err)
        self.assertIn("sentences/s", result.err)
        self.assertEqual(len(result.lines), 100)

    def test_quiet_is_silent(self):
        self.assertEqual(self.classify("--input", self.text, "--quiet").err, "")

    def test_truncated_sentences_and_unknown_words_are_counted(self):
        known = self.text.read_text().split()[0]
        text = f"{known} unheardof\n" + f"{known} " * (self.sequence_length + 1) + "\n"
        result = self.classify("--input", "-", stdin=text)
        self.assertIn(f"1 sentences truncated, 1 of {self.sequence_length + 3} words unknown", result.err)

    def test_statistics_file(self):
        result = self.classify("--input", self.text, "--threads", 2, "--quiet", "--statistics", self.folder / "s.json")
        self.assert_code(result, 0)
        told = json.loads((self.folder / "s.json").read_text())
        self.assertEqual((told["records_read"], told["records_ok"], told["records_failed"]), (100, 100, 0))
        self.assertEqual((told["threads"], told["interrupted"]), (2, False))
        self.assertGreater(told["sentences_per_second"], 0)
        self.assertGreaterEqual(told["process_seconds"], told["seconds"])
        self.assertGreater(told["peak_memory_bytes"], 1 << 20)


class ShippedModel(CliTest):
    def test_labels_real_sentences(self):
        result = self.classify("--output-format", "jsonl", "--text", "A tender, funny and beautifully acted film.",
                               "--text", "A dull, lazy and pointless mess.", model=SHIPPED_MODEL)
        self.assert_code(result, 0)
        self.assertEqual(result.labels, ["positive", "negative"])

    def test_raw_and_treebank_text_give_the_same_bits(self):
        raw = "It won't win; I didn't like the actors' jokes -- not at all.\n"
        treebank = "it wo n't win ; i did n't like the actors ' jokes -- not at all .\n"
        result = self.classify("--input", "-", "--output-format", "bin", stdin=raw + treebank, model=SHIPPED_MODEL)
        self.assertEqual(result.out_bytes[:8], result.out_bytes[8:])


if __name__ == "__main__":
    unittest.main()
