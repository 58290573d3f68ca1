"""What an analyst wants of a table: columns that go through, every probability, what is unsure or empty, counts."""
import csv
import gzip
import io
import json
import signal
import subprocess
import time
import unittest

from cli_support import CliTest, SHIPPED_MODEL, TESSERA, TIMEOUT_SECONDS, tessera

CSV = 'id,text,stars,label\n7,"A lovely, warm film",5,x\n8,,1,"y ""q"""\n9,Dull,1,\n'


def rows(text, delimiter=","):
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


class Kept(CliTest):
    def table(self, *arguments, code=0, name="a.csv", content=CSV, delimiter=",", form="csv"):
        result = self.classify("--input", self.write(name, content), "--output-format", form, *arguments)
        self.assert_code(result, code)
        return rows(result.out, delimiter)

    def test_columns_of_a_table(self):
        table = self.table("--keep", "stars,id")
        self.assertEqual(list(table[0]), ["index", "label", "probability", "stars", "id"])
        self.assertEqual([(row["id"], row["stars"]) for row in table], [("7", "5"), ("8", "1"), ("9", "1")])
        table = self.table("--keep", "all")
        self.assertEqual(list(table[0])[3:], ["id", "text", "stars", "input_label"])
        self.assertEqual([row["input_label"] for row in table], ["x", 'y "q"', ""])
        self.assertEqual([row["text"] for row in table], ["A lovely, warm film", "", "Dull"])
        self.assertEqual(self.table("--keep", "text")[0]["text"], "A lovely, warm film")

    def test_the_labels_are_those_without(self):
        plain = self.table()
        for keep in ("id", "all"):
            kept = self.table("--keep", keep)
            self.assertEqual([row["label"] for row in kept], [row["label"] for row in plain])
            self.assertEqual([row["probability"] for row in kept], [row["probability"] for row in plain])

    def test_tabs_and_other_delimiters(self):
        expected = self.table("--keep", "all")
        tabs = CSV.replace('"A lovely, warm film"', "A lovely; warm film").replace(",", "\t").replace(";", ",")
        self.assertEqual(self.table("--keep", "all", name="a.tsv", content=tabs), expected)
        self.assertEqual(self.table("--keep", "all", name="a.tsv", content=tabs, form="tsv", delimiter="\t"), expected)
        semicolons = tabs.replace("\t", ";")
        self.assertEqual(self.table("--keep", "all", "--delimiter", ";", content=semicolons), expected)
        self.assert_error(tessera("classify", "--input", self.folder / "a.csv"), 2, "--delimiter ';' if that is what separates columns")
        self.assertEqual(self.table("--keep", "all", "--delimiter", "tab", content=tabs), expected)
        out = self.folder / "o.tsv"
        self.assert_code(self.classify("--input", self.folder / "a.tsv", "--keep", "all", "--output", out), 0)
        self.assertEqual(rows(out.read_text(), "\t"), expected)

    def test_without_a_header(self):
        content = "positive\tA good film\nnegative\tDull\n"
        table = self.table("--no-header", "--field", "2", "--keep", "1", name="a.tsv", content=content)
        self.assertEqual([row["1"] for row in table], ["positive", "negative"])
        self.assertEqual(len(self.table("--no-header", content="good\ndull\nfine\n")), 3)
        self.assertEqual(len(self.table("--no-header", name="e.csv", content="")), 0)
        self.assert_error(self.classify("--input", self.folder / "a.tsv", "--no-header"), 2,
                          "2 columns without a header", "by its number")
        self.assert_error(self.classify("--input", self.folder / "a.tsv", "--no-header", "--field", "3"), 2, "'3'")
        self.assert_error(self.classify("--input", self.folder / "a.tsv"), 2, "'positive', 'A good film'", "--no-header")

    def test_members_of_json_lines(self):
        line = '{"id":17,"text":"good","big":12345678901234567890,"f":2.50,"deep":{"a":[1,"x\\n"],"b":null},"label":true}'
        path = self.write("a.jsonl", line + '\n{"text":"dull","id":null}\n{"id":3,"tex":"x"}\n')
        records = self.classify("--input", path, "--keep", "all", "--output-format", "jsonl")
        self.assert_code(records, 1)
        first, second, third = records.json_lines
        self.assertEqual(first["id"], 17)
        self.assertIn('"f":2.50,"deep":{"a":[1,"x\\n"],"b":null},"input_label":true}', records.lines[0])
        self.assertIn('"big":12345678901234567890', records.lines[0])
        self.assertIn(first["label"], ("positive", "negative"))
        self.assertEqual((second["id"], second["text"]), (None, "dull"))
        self.assertEqual((third["id"], "error" in third), (3, True))
        table = rows(self.classify("--input", path, "--keep", "id,deep", "--output-format", "csv").out)
        self.assertEqual([row["id"] for row in table], ["17", "", "3"])
        self.assertEqual(json.loads(table[0]["deep"]), {"a": [1, "x\n"], "b": None})
        self.assertNotIn("deep", self.classify("--input", path, "--keep", "id,deep", "--output-format", "jsonl").json_lines[1])
        self.assert_error(self.classify("--input", path, "--keep", "all", "--output-format", "csv"), 2, "--keep all",
                          "--keep NAME")

    def test_a_record_that_fails_keeps_its_columns(self):
        path = self.write("a.csv", b"id,text\n1,good\n2,b\xffd\n3\n\xff,fine\n5,dull\n")
        result = self.classify("--input", path, "--keep", "id", "--output-format", "csv")
        self.assert_code(result, 1)
        self.assertEqual([line.split(",")[-1] for line in result.lines[1:]], ["1", "2", "", "", "5"])
        self.assertIn("column 'id': got '\\xff'", result.err)

    def test_what_cannot_be_kept(self):
        path = self.write("a.csv", CSV)
        for arguments, parts in ((("--keep", "nope"), ("'id', 'text', 'stars', 'label'", "'nope' to keep")),
                                 (("--keep", "id,"), ("--keep: got 'id,'",)), (("--keep", "id,id"), ("'id' twice",)),
                                 (("--delimiter", ";;"), ("--delimiter: got ';;'",)),
                                 (("--delimiter", '"'), ("--delimiter",))):
            self.assert_error(self.classify("--input", path, "--output-format", "csv", *arguments), 2, *parts)
        for form in ("text", "bin"):
            self.assert_error(self.classify("--input", path, "--output-format", form, "--keep", "id"), 2,
                              f"--keep: got --output-format {form}, expected csv, tsv or jsonl")
        text = self.write("a.txt", "good\n")
        for option in ("--keep", "--delimiter"):
            self.assert_error(self.classify("--input", text, option, ";"), 2, option, "format text")
            self.assert_error(self.classify("--text", "x", option, ";"), 2, option, "no --input")


class Numbers(CliTest):
    def test_the_probability_of_every_class(self):
        path = self.write("a.txt", "A good film\nDull\n")
        table = rows(self.classify("--input", path, "--probabilities", "--output-format", "csv").out)
        records = self.classify("--input", path, "--probabilities", "--output-format", "jsonl").json_lines
        lines = [line.split("\t") for line in self.classify("--input", path, "--probabilities").lines]
        for row, record, line in zip(table, records, lines):
            two = [float(row["probability_negative"]), float(row["probability_positive"])]
            self.assertAlmostEqual(sum(two), 1, 5)
            self.assertEqual(row[f"probability_{row['label']}"], row["probability"])
            self.assertEqual(list(record["probabilities"].values()), two)
            self.assertEqual([float(x) for x in line[2:]], two)

    def test_words_of_each_text(self):
        long = " ".join(["film"] * 99)
        content = f"qqqq film\n{long}\n\n"
        arguments = ("--token-counts", "--model", SHIPPED_MODEL)
        result = tessera("classify", "--input", self.write("a.txt", content), "--output-format", "jsonl", *arguments)
        counts = [(r["tokens"], r["unknown"], r["truncated"]) for r in result.json_lines]
        self.assertEqual(counts, [(2, 1, False), (99, 0, True), (0, 0, False)])
        row = tessera("classify", "--input", self.folder / "a.txt", "--output-format", "csv", *arguments).lines
        self.assertTrue(row[0].endswith(",tokens,unknown,truncated"))
        self.assertTrue(row[1].endswith(",2,1,false") and row[2].endswith(",99,0,true"), row)
        self.assert_error(self.classify("--input", self.ids, "--format", "ids", "--token-counts"), 2, "--token-counts")

    def test_what_is_not_probable_enough_is_unsure(self):
        path = self.write("a.txt", "A good film\nDull\nfine\nbaba\n")
        plain = rows(self.classify("--input", path, "--output-format", "csv").out)
        middle = sorted(float(row["probability"]) for row in plain)[2] - 1e-5
        for least in (0, middle, 1):
            table = rows(self.classify("--input", path, "--output-format", "csv", "--min-probability", least).out)
            for before, row in zip(plain, table):
                self.assertEqual(row["probability"], before["probability"])
                expected = before["label"] if float(before["probability"]) >= least else "unsure"
                self.assertEqual(row["label"], expected)
        for wrong in ("x", "-0.1", "1.1", "nan", "0.5x"):
            self.assert_error(self.classify("--input", path, "--min-probability", wrong), 2, "--min-probability: got",
                              "a number from 0 to 1")

    def test_a_text_without_words_is_empty(self):
        path = self.write("a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ("", "  ", "good")))
        records = self.classify("--input", path, "--output-format", "jsonl", "--probabilities").json_lines
        self.assertEqual(records[:2], [{"index": 0, "label": "empty"}, {"index": 1, "label": "empty"}])
        self.assertEqual([r["label"] for r in rows(self.classify("--input", path, "--output-format", "csv").out)][:2],
                         ["empty", "empty"])
        self.assertEqual(self.classify("--text", "").out, "empty\t\n")

    def test_counts_at_the_end(self):
        path = self.write("a.txt", "A good film\nDull\n\nfine\n")
        result = self.classify("--input", path, "--statistics", self.folder / "s", "--output-format", "csv")
        labels = json.loads((self.folder / "s").read_text())["labels"]
        table = rows(result.out)
        for entry in labels:
            mine = [float(row["probability"] or 0) for row in table if row["label"] == entry["label"]]
            self.assertEqual(entry["count"], len(mine))
            if mine and entry["label"] != "empty":
                self.assertAlmostEqual(entry["mean_probability"], sum(mine) / len(mine), 5)
        self.assertEqual({entry["label"] for entry in labels}, {"negative", "positive", "empty"})
        self.assertRegex(result.err, r"(?m)^tessera: empty: 1, 25\.0 %$")
        self.assertRegex(result.err, r"(?m)^tessera: (positive|negative): \d, \d+\.0 %, mean probability 0\.\d{3}$")


class ShippedModel(CliTest):
    def test_it_is_the_default_wherever_one_stands(self):
        done = subprocess.run([TESSERA, "classify", "--quiet", "--text", "Tender, funny and beautifully acted."], cwd="/",
                              stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_SECONDS, check=True)
        named = tessera("classify", "--quiet", "-m", SHIPPED_MODEL, "--text", "Tender, funny and beautifully acted.")
        self.assertEqual(done.stdout, named.out)
        self.assertRegex(done.stdout, "^positive\t")


class Resumed(CliTest):
    """A compressed table in another encoding, with all that goes through: broken off and continued, the same bytes."""

    def test_continues_and_knows_other_options(self):
        model = self.make_slow_model(1)
        content = "id;text\n" + "".join(f"{i};" + ("" if i % 7 == 0 else f"good film {i}") + "\n" for i in range(1500))
        path = self.write("in.csv.gz", gzip.compress(content.encode("utf-16")))
        options = ["--input", path, "--delimiter", ";", "--keep", "id", "--probabilities", "--token-counts",
                   "--min-probability", "0.6", "--precision", "fp64", "--threads", "1"]
        whole, out = self.folder / "whole.csv", self.folder / "out.csv"
        self.assert_code(self.classify(*options, "--output", whole, model=model), 0)
        process = subprocess.Popen([TESSERA, "classify", "--quiet", "--model", model, *map(str, options), "--output", out],
                                   stderr=subprocess.PIPE)
        journal = self.folder / "out.csv.journal"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_SECONDS)
        if process.returncode == 0:
            self.skipTest("the run was over before it could be broken off")
        self.assertEqual(process.returncode, 130)
        other = [option for option in options if option not in ("--probabilities",)]
        self.assert_error(self.classify(*other, "--output", out, "--resume", model=model), 2, "probabilities")
        self.assert_code(self.classify(*options, "--output", out, "--resume", model=model), 0)
        self.assertEqual(out.read_bytes(), whole.read_bytes())

    def test_shards(self):
        path = self.write("in.tsv", "id\ttext\n" + "".join(f"{i}\tgood film {i}\n" for i in range(3000)))
        options = ["--input", path, "--keep", "all", "--probabilities"]
        whole, out = self.folder / "whole.tsv", self.folder / "out.tsv"
        self.assert_code(self.classify(*options, "--output", whole), 0)
        for shard in ("0/2", "1/2"):
            self.assert_code(self.classify(*options, "--output", out, "--shard", shard), 0)
        self.assert_code(tessera("merge", out), 0)
        self.assertEqual(out.read_bytes(), whole.read_bytes())


if __name__ == "__main__":
    unittest.main()
