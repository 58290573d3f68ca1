"""tessera evaluate: the accuracy it prints is the one its own labels have."""
import json
import re
import unittest

from cli_support import CliTest, tessera


class EvaluateTest(CliTest):
    def setUp(self):
        super().setUp()
        self.sentences = self.text.read_text().splitlines()
        self.labels = self.classify("--input", self.text, "--output-format", "jsonl").labels

    def evaluate(self, *arguments, model=None, stdin=b""):
        return tessera("evaluate", "--model", model or self.model, *arguments, stdin=stdin)

    def rows(self, labels, form="{text}\t{label}\n"):
        return self.write("rows.tsv", "".join(form.format(text=t, label=label)
                                              for t, label in zip(self.sentences, labels, strict=True)))

    def test_right_and_planted_wrong_labels(self):
        result = self.evaluate("--input", self.rows(self.labels))
        self.assert_code(result, 0)
        self.assertIn("accuracy 100.00 % (100 of 100)", result.out)
        opposite = {"negative": "positive", "positive": "negative"}
        planted = [opposite[label] if i in (3, 50, 99) else label for i, label in enumerate(self.labels)]
        result = self.evaluate("--input", self.rows(planted))
        self.assert_code(result, 0)
        self.assertIn("accuracy 97.00 % (97 of 100)", result.out)
        for label in opposite:
            right = sum(a == b == label for a, b in zip(planted, self.labels))
            wrong = sum(a == label != b for a, b in zip(planted, self.labels))
            counts = {label: right, opposite[label]: wrong}
            self.assertIn(f"of {label}: {counts['negative']} labelled negative, {counts['positive']} labelled positive",
                          result.out)

    def test_columns_and_class_indices(self):
        indices = [["negative", "positive"].index(label) for label in self.labels]
        path = self.rows(indices, "7\t{label}\tx\t{text}\n")
        result = self.evaluate("--input", path, "--label-column", 2, "--text-column", 4)
        self.assertIn("accuracy 100.00 % (100 of 100)", result.out)

    def test_standard_input_and_no_rows(self):
        result = self.evaluate("--input", "-", stdin=f"{self.sentences[0]}\t{self.labels[0]}\n")
        self.assertIn("(1 of 1)", result.out)
        for nothing in (b"", b"\n \n"):
            result = self.evaluate("--input", "-", "--statistics", self.folder / "s.json", stdin=nothing)
            self.assert_error(result, 2, "no rows", "at least one")
            self.assertEqual(result.out, "")
        self.assert_nothing_left()

    def test_of_no_sentence_there_is_no_accuracy(self):
        path = self.write("rows.tsv", "no label\nagain none\n")
        result = self.evaluate("--input", path, "--statistics", self.folder / "s.json")
        self.assert_code(result, 1)
        self.assertIn("accuracy unknown", result.out)
        self.assertNotIn("%", result.out)
        told = json.loads((self.folder / "s.json").read_text())
        self.assertEqual((told["accuracy_percent"], told["sentences"]), (None, 0))

    def test_labels_as_tables_write_them(self):
        index = {"negative": 0, "positive": 1}
        for form in (str.capitalize, str.upper, " {} ".format, "{}\r".format, lambda label: str(index[label]),
                     lambda label: f"{index[label]}.0", lambda label: f" {index[label]} "):
            result = self.evaluate("--input", self.rows([form(label) for label in self.labels]))
            self.assert_code(result, 0)
            self.assertIn("accuracy 100.00 % (100 of 100)", result.out)
        for label in ("1.5", "0.00", "posit", "", "1.0.0", "2.0"):
            result = self.evaluate("--input", self.write("rows.tsv", f"babe\t{label}\n"))
            self.assert_code(result, 1)
            self.assertIn("expected 'negative', 'positive', or an index from 0 to 1", result.err)

    def test_files_of_other_formats(self):
        for name in ("rows.csv", "rows.CSV", "rows.jsonl"):
            result = self.evaluate("--input", self.write(name, "text,label\nbabe,0\n"))
            self.assert_error(result, 2, name, "rows with tabs")

    def test_bad_rows_are_listed_and_not_counted(self):
        text, label = self.sentences[0], self.labels[0]
        path = self.write("rows.tsv", f"{text}\t{label}\nno label\n{text}\tmaybe\n{text}\t2\n".encode() +
                          b"\xff\tnegative\n" + f"{text}\t{label}\n".encode())
        result = self.evaluate("--input", path)
        self.assert_code(result, 1)
        self.assertIn("(2 of 2)", result.out)
        self.assertIn("4 of 6 records failed", result.err)
        for line, part in ((2, "got 1 columns"), (3, "'maybe'"), (4, "'2'"), (5, "UTF-8")):
            self.assertRegex(result.err, rf"rows\.tsv:{line}: .*{re.escape(part)}")

    def test_show_prints_sentences_over_the_whole_file(self):
        result = self.evaluate("--input", self.rows(self.labels), "--show", 5)
        shown = [line for line in result.lines if line.startswith("right")]
        self.assertEqual(len(shown), 5)
        for line, i in zip(shown, range(0, 100, 20)):
            self.assertRegex(line, rf"^right {self.labels[i]} [01]\.\d+  experts( [01]\.\d\d){{3}}  ")
            self.assertTrue(line.endswith(self.sentences[i]))

    def test_statistics_file(self):
        self.evaluate("--input", self.rows(self.labels), "--statistics", self.folder / "s.json", "--quiet")
        told = json.loads((self.folder / "s.json").read_text())
        self.assertEqual((told["accuracy_percent"], told["correct"], told["sentences"]), (100, 100, 100))

    def test_errors(self):
        self.assert_error(self.evaluate("--input", self.folder / "none.tsv"), 2, "none.tsv")
        self.assert_error(self.evaluate("--input", "-", "--text-column", 0), 2, "--text-column")
        self.assert_error(tessera("evaluate", "--input", "-"), 2, "no rows")


if __name__ == "__main__":
    unittest.main()
