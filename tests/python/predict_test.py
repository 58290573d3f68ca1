"""Classifier.predict on what analysts have: lists, generators, pandas and Arrow columns, Parquet files; the default model."""
import csv
import importlib.util
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from multiprocessing.reduction import ForkingPickler

import numpy
import tessera

TEXTS = ["A wonderful, moving film.", "Dull and far too long.", "", "qqqq zzzz", "good " * 200]
HAS_TABLES = all(importlib.util.find_spec(name) for name in ("pandas", "pyarrow"))


class Predict(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tessera.Classifier(device="cpu")
        cls.whole = cls.model.predict(TEXTS)

    def test_arrays(self):
        result = self.whole
        self.assertEqual(list(result.labels[:3]), ["positive", "negative", "empty"])
        self.assertEqual(result.tokens.tolist()[2:], [0, 2, 200])
        self.assertEqual(result.unknown.tolist()[2:4], [0, 2])
        self.assertEqual(result.truncated.tolist(), [False, False, False, False, True])
        self.assertTrue(math.isnan(result.scores[2]) and numpy.isnan(result.probabilities[2]).all())
        self.assertEqual((result.probabilities.shape, result.probabilities.dtype, result.scores.dtype),
                         ((5, 2), numpy.float32, numpy.float32))
        for i in (0, 1, 3, 4):
            self.assertAlmostEqual(float(result.probabilities[i].sum()), 1, 5)
            one = self.model(TEXTS[i])
            self.assertEqual(one.label, result.labels[i])
            self.assertAlmostEqual(one.score, float(result.scores[i]), 6)
        self.assertEqual(self.model("").label, "empty")

    def test_iterables_and_batches(self):
        for texts in (tuple(TEXTS), iter(TEXTS), (t for t in TEXTS), numpy.array(TEXTS, object)):
            self.assertEqual(list(self.model.predict(texts).labels), list(self.whole.labels))
        many = self.model.predict(text for _ in range(5000) for text in TEXTS)
        self.assertEqual(list(many.labels), list(self.whole.labels) * 5000)
        self.assertEqual(self.model.predict([]).labels.shape, (0,))
        self.assertEqual(self.model.predict([]).probabilities.shape, (0, 2))

    def test_progress(self):
        calls = []
        self.model.predict(["good"] * 20000, progress=lambda done, total: calls.append((done, total)))
        self.assertEqual(calls, [(8192, 20000), (16384, 20000), (20000, 20000)])
        program = "import tessera; tessera.Classifier(device='cpu').predict(['good'] * 10, progress=True)"
        shown = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=True).stderr
        self.assertRegex(shown, r"10 of 10 texts, [\d,]+/s\n$")
        with self.assertRaisesRegex(TypeError, "^progress"):
            self.model.predict(["good"], progress=3)

    def test_unsure(self):
        scores = self.whole.scores
        labels = self.model.predict(TEXTS, min_probability=float(numpy.nanmax(scores)))
        self.assertEqual([label for label in labels.labels].count("unsure"), 3)
        self.assertEqual(labels.labels[2], "empty")
        numpy.testing.assert_array_equal(labels.scores, scores)
        for wrong, kind in ((1.5, ValueError), (-1, ValueError), ("x", TypeError), (float("nan"), ValueError)):
            with self.assertRaisesRegex(kind, "^min_probability: got"):
                self.model.predict(TEXTS, min_probability=wrong)

    def test_a_row_that_is_no_text_is_named(self):
        with self.assertRaisesRegex(TypeError, r"^texts\[9000\]: got NoneType"):
            self.model.predict(["good"] * 9000 + [None])
        with self.assertRaisesRegex(ValueError, r"^texts\[8500\]: got a NUL"):
            self.model.predict(["good"] * 8500 + ["a\0b"])

    def test_what_they_print(self):
        self.assertRegex(repr(self.model), r"^tessera\.Classifier\('.*movie-reviews', classes=\['negative', 'positive'\], "
                                           r"vocab_size=\d+, sequence_length=\d+, num_experts=\d+, precision=default, "
                                           r"input=ids, device=cpu\)$")
        weights = numpy.ones((4, 16, 8), numpy.float32), numpy.ones((4, 8, 8), numpy.float32)
        self.assertEqual(repr(tessera.MoELayer(*weights, top_k=2)),
                         "tessera.MoELayer(hidden_size=8, intermediate_size=8, num_experts=4, top_k=2, dtype=float32, "
                         "weight_format=dense, device=cpu)")

    def test_pickling(self):
        again = ForkingPickler.loads(ForkingPickler.dumps(self.model))
        self.assertEqual(list(again.predict(TEXTS).labels), list(self.whole.labels))

    def test_the_default_model_is_found_anywhere(self):
        program = "import tessera; print(tessera.Classifier(device='cpu')('A wonderful film.').label)"
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        self.assertEqual(done.stdout, "positive\n")


@unittest.skipUnless(HAS_TABLES, "pandas and pyarrow are not installed")
class Tables(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tessera.Classifier(device="cpu")
        cls.whole = cls.model.predict(TEXTS)
        cls.columns = ["label", "score", "probability_negative", "probability_positive", "tokens", "unknown", "truncated"]

    def test_pandas(self):
        import pandas
        frame = pandas.DataFrame({"review": TEXTS}, index=[9, 7, 5, 3, 1])
        table = self.model.predict(frame.review)
        self.assertEqual(list(table.columns), self.columns)
        self.assertEqual(list(table.index), [9, 7, 5, 3, 1])
        self.assertEqual(list(table.label), list(self.whole.labels))
        joined = frame.join(table)
        self.assertEqual(joined.loc[7, "label"], "negative")
        self.assertEqual(self.model(frame.review)[0].label, "positive")
        for missing in (None, float("nan"), pandas.NA):
            with self.assertRaisesRegex(TypeError, r"^texts\[1\]"):
                self.model.predict(pandas.Series(["good", missing], dtype=object))
        string = self.model.predict(frame.review.astype("string"))
        pandas.testing.assert_frame_equal(string, table)

    def test_arrow(self):
        import pyarrow
        for column in (pyarrow.array(TEXTS), pyarrow.chunked_array([TEXTS[:2], TEXTS[2:]])):
            table = self.model.predict(column)
            self.assertEqual(table.column_names, self.columns)
            self.assertEqual(table["label"].to_pylist(), list(self.whole.labels))
            self.assertIsNone(table["score"].to_pylist()[2])
        with self.assertRaisesRegex(TypeError, r"^texts\[1\]: got NoneType"):
            self.model.predict(pyarrow.array(["good", None]))


def run(*arguments, environment=None):
    done = subprocess.run([sys.executable, "-m", "tessera", *map(str, arguments)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=120, check=False,
                          env={**os.environ, "TESSERA_COMMAND": "", "PATH": "", **(environment or {})})
    return done.returncode, done.stdout, done.stderr


class Module(unittest.TestCase):
    """python -m tessera."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_texts_and_csv_without_a_command(self):
        code, out, err = run("classify", "--text", "A wonderful film.", "--text", "")
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"^positive\t0\.\d+\nempty\t\n$")
        self.assertIn("empty: 1, 50.0 %\n", err)
        path = self.folder / "in.csv"
        path.write_text('id,review,label\n7,"A wonderful, moving film",x\n8,Dull,y\n')
        out = self.folder / "out.csv"
        code, _, err = run("classify", "-q", "-i", path, "--field", "review", "--keep", "id,label", "-o", out)
        self.assertEqual((code, err), (0, ""))
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
        self.assertEqual([(row["id"], row["label"], row["input_label"]) for row in rows],
                         [("7", "positive", "x"), ("8", "negative", "y")])
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["in.csv", "out.csv"])

    def test_wrong_calls(self):
        (self.folder / "in.csv").write_text("id\n1\n")
        for arguments, part in (((), "neither --text nor --input"), (("-i", self.folder / "in.csv"), "columns 'id'"),
                                (("-i", self.folder / "none.csv"), "none.csv"), (("-i", "x.json"), "--input: got '.json'"),
                                (("--text", "x", "-o", "x.xlsx"), "--output: got '.xlsx'"),
                                (("--text", "x", "--keep", "id"), "--keep: got 'id'"),
                                (("-i", self.folder / "in.csv", "-o", self.folder / "in.csv"), "--output: got the input file")):
            code, out, err = run("classify", *arguments)
            self.assertEqual((code, out), (2, ""), err)
            self.assertTrue(err.startswith("tessera: error: ") and part in err, err)
        code, _, err = run("bench", "moe")
        self.assertEqual(code, 2)
        self.assertIn("TESSERA_COMMAND", err)
        self.assertEqual(run()[0], 2)
        self.assertEqual(run("--help")[0], 0)

    def test_the_command_is_called_where_there_is_one(self):
        command = self.folder / "tessera"
        command.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
        command.chmod(0o755)
        self.assertEqual(run("bench", "moe", "--tokens", "4", environment={"TESSERA_COMMAND": str(command)})[:2],
                         (7, "bench moe --tokens 4\n"))

    def test_parquet_needs_arrow_and_says_so(self):
        (self.folder / "pyarrow.py").write_text("raise ImportError('none')")
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        code, _, err = run("classify", "-i", "x.parquet", environment={"PYTHONPATH": path})
        self.assertEqual(code, 2)
        self.assertIn("--input: got no pyarrow, expected pip install 'tessera[arrow]'", err)

    @unittest.skipUnless(HAS_TABLES, "pandas and pyarrow are not installed")
    def test_parquet(self):
        import pyarrow
        from pyarrow import parquet
        count = 40_000
        table = pyarrow.table({"id": list(range(count)), "text": [TEXTS[i % 3] for i in range(count)],
                               "stars": [None if i % 5 else 2.5 for i in range(count)]})
        parquet.write_table(table, self.folder / "in.parquet", row_group_size=7000)
        code, _, err = run("classify", "-i", self.folder / "in.parquet", "--keep", "all", "--probabilities", "-o",
                           self.folder / "out.parquet")
        self.assertEqual(code, 0, err)
        out = parquet.read_table(self.folder / "out.parquet")
        self.assertEqual(out.column_names, ["index", "label", "probability", "probability_negative", "probability_positive",
                                            "id", "text", "stars"])
        self.assertEqual(out["id"].to_pylist(), table["id"].to_pylist())
        self.assertEqual(out["stars"].to_pylist(), table["stars"].to_pylist())
        self.assertEqual(out["label"].to_pylist()[:3], ["positive", "negative", "empty"])
        self.assertIsNone(out["probability"].to_pylist()[2])
        code, _, _ = run("classify", "-q", "-i", self.folder / "in.parquet", "--keep", "id", "-o", self.folder / "o.jsonl")
        lines = (self.folder / "o.jsonl").read_text().splitlines()
        self.assertEqual((code, len(lines), json.loads(lines[-1])["id"]), (0, count, count - 1))


if __name__ == "__main__":
    unittest.main()
