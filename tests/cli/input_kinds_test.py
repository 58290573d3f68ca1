"""What people give as input: other extensions, compressed files, UTF-16, old line ends, blank lines, files that shrink,
live pipes."""
import bz2
import json
import os
import subprocess
import threading
import time

from cli_support import CliTest, Result, TESSERA, TIMEOUT_SECONDS, tessera

CSV = "id,text\n1,\"A lovely, warm film\"\n2,Dull\n"
ANSWER_SECONDS = 0.1  # of a live pipe, beside what the machine adds (the test measures it)


class Formats(CliTest):
    """The format is that of the option or the extension; an extension of another format is refused, not labelled."""

    def test_capitals_do_not_matter(self):
        expected = self.classify("--input", self.write("r.csv", CSV), "--output-format", "csv").out
        self.assertEqual(len(expected.splitlines()), 3)
        self.assertEqual(self.classify("--input", self.write("R.CSV", CSV), "--output-format", "csv").out, expected)
        rows = "".join(json.dumps({"text": t}) + "\n" for t in ("A lovely, warm film", "Dull"))
        self.assertEqual(self.classify("--input", self.write("r.JsonL", rows), "--output-format", "csv").out, expected)
        self.classify("--input", self.folder / "r.csv", "--output", self.folder / "o.CSV")
        self.assertEqual((self.folder / "o.CSV").read_text(), expected)
        self.assert_error(self.classify("--input", self.write("x.BIN", b"")), 2, "a .bin file and no --format")

    def test_inputs_of_other_formats(self):
        for name in ("r.json", "r.JSON", "r.csv.bz2", "r.json.gz", "r.parquet", "r.npy", "r.xlsx", "r.xml"):
            path = self.write(name, CSV)
            self.assert_error(self.classify("--input", path), 2, "--format",
                              f"{name}: got a .{name.lower().removesuffix('.gz').split('.')[-1]} file")
        self.assert_error(self.classify("--input", self.folder / "r.parquet"), 2, "python -m tessera classify")
        self.assert_code(self.classify("--input", self.folder / "r.JSON", "--format", "text"), 0)
        for name in ("r.txt", "r", "r.log", "r.dat", "reviews.2024"):
            self.assert_code(self.classify("--input", self.write(name, "babe\n")), 0)

    def test_outputs_of_other_formats(self):
        text = self.write("in.txt", "babe\n")
        for name in ("o.json", "o.csv.gz", "o.parquet", "o.JSON"):
            self.assert_error(self.classify("--input", text, "--output", self.folder / name), 2, name, "--output-format")
        self.assert_nothing_left("in.txt")
        self.assert_code(self.classify("--input", text, "--output", self.folder / "o.json", "--output-format", "text"), 0)

    def test_a_field_of_a_format_without_fields(self):
        path = self.write("r.dat", CSV)
        for arguments in (["--input", path], ["--input", "-"], ["--input", self.ids, "--format", "ids"]):
            self.assert_error(self.classify(*arguments, "--field", "text", stdin=CSV), 2, "--field", "has no fields")
        self.assertEqual(len(self.classify("--input", path, "--format", "csv", "--field", "text").lines), 2)


class FirstBytes(CliTest):
    """What is no text is refused by its first bytes, with the cure, and no line of it is labelled."""

    OTHERS = {
        "bzip2": (bz2.compress(CSV.encode()), "bzcat"),
        "zip": (b"PK\x03\x04\x14\x00\x00\x00" + b"dull\n" * 9, "export it as CSV"),
        "Parquet": (b"PAR1\x15\x04\x15\x20dull\nfilm\nPAR1", "CSV or JSON lines"),
        "NumPy": (b"\x93NUMPY\x01\x00v\x00{'descr': '<i4'}\ndull\n", "bytes alone"),
    }

    def test_files_and_pipes(self):
        for name, (data, cure) in self.OTHERS.items():
            path = self.write("in.dat", data)
            for form in ("text", "csv", "jsonl"):
                with self.subTest(name, form=form):
                    for result in (self.classify("--input", path, "--format", form),
                                   self.classify("--input", "-", "--format", form, stdin=data)):
                        self.assert_error(result, 2, name, cure)
                        self.assertEqual(result.out_bytes, b"")

    def test_text_that_begins_almost_so_is_text(self):
        for data in (b"PAR1 is a start\n", b"PK\n", b"BZh9 is one too\n", b"B\n", b"\xef\xbb\xbfbabe\n", b"P", b"ARROW1\n"):
            with self.subTest(data):
                self.assert_code(self.classify("--input", self.write("in.txt", data)), 0)
                self.assertEqual(len(self.classify("--input", "-", stdin=data).lines), 1)

    def test_more_than_one_carriage_return_is_one_line_end(self):
        expected = self.classify("--input", self.write("a.csv", CSV), "--output-format", "csv").out
        twice = CSV.replace("\n", "\r\r\n").encode()
        self.assertEqual(self.classify("--input", self.write("b.csv", twice), "--output-format", "csv").out, expected)
        shown = self.classify("--input", "-", "--show-text", stdin=b"Dull\r\r\nGood\r\r\n").lines
        self.assertEqual([line.split("\t")[2] for line in shown], ["Dull", "Good"])

    def test_a_pointer_or_a_page_instead_of_a_file(self):
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
        self.assert_error(self.classify("--input", self.write("in.txt", pointer)), 2, "a Git LFS pointer", "git lfs pull")
        for content, words in ((pointer, "a Git LFS pointer"), ("<!DOCTYPE html>\n<html>\n", "an HTML page"),
                               ("\n<html lang='en'>" + " " * 200, "an HTML page")):
            for name in ("model.safetensors", "config.json", "vocab.txt"):
                model = self.folder / "model"
                model.mkdir(exist_ok=True)
                for source in ("model.safetensors", "config.json", "vocab.txt"):
                    (model / source).write_bytes((self.model / source).read_bytes())
                (model / name).write_text(content)
                self.assert_error(self.classify("--text", "babe", model=model), 2, f"{name}: got {words}")


class BlankLines(CliTest):
    """Blank lines between the records of csv and jsonl are no records: indices are those of every other reader."""

    def records(self, name, content, *more):
        path = self.write(name, content)
        result = self.classify("--input", path, "--output-format", "jsonl", *more)
        self.assert_code(result, 0)
        piped = self.classify("--input", "-", "--format", name.split(".")[-1], "--output-format", "jsonl", *more,
                              stdin=path.read_bytes())
        self.assertEqual(piped.out, result.out)
        return result

    def test_csv(self):
        expected = self.records("a.csv", "id,text\n1,good\n2,dull\n").out
        for content in ("id,text\n\n1,good\n\n2,dull\n\n", "\n\nid,text\n1,good\n2,dull", "id,text\r\n\r\n1,good\r\n \t\r\n"
                        "2,dull\r\n\r\n", "id,text\n1,good\n2,dull\n  "):
            self.assertEqual(self.records("b.csv", content).out, expected, content)

    def test_csv_of_one_column(self):
        self.assertEqual(len(self.records("a.csv", "text\ngood\n\ndull\n\n").lines), 2)
        # What is in quotes is a record, empty or not.
        self.assertEqual(len(self.records("a.csv", 'text\ngood\n""\n"\n"\ndull\n').lines), 4)

    def test_jsonl(self):
        expected = self.records("a.jsonl", '{"text":"good"}\n{"text":"dull"}\n').out
        for content in ('{"text":"good"}\n\n{"text":"dull"}\n\n', '\n \r\n{"text":"good"}\r\n\t\n{"text":"dull"}'):
            self.assertEqual(self.records("b.jsonl", content).out, expected, content)

    def test_messages_name_the_line_of_the_file(self):
        result = self.classify("--input", self.write("a.jsonl", '{"text":"good"}\n\n\nbroken\n'), "--statistics",
                               self.folder / "s")
        self.assert_code(result, 1)
        self.assertIn("[1] ", result.err)
        self.assertIn("a.jsonl:4:", result.err)
        self.assertIn("2 blank lines are no records", result.err)
        self.assertEqual(json.loads((self.folder / "s").read_text())["blank_lines"], 2)
        result = self.classify("--input", self.write("a.csv", "id,text\n\n1,good\n\n2\n"))
        self.assertIn("a.csv:5:", result.err)

    def test_shards_and_resumed_runs_count_alike(self):
        lines = "".join(f'{{"text":"babe {i}"}}\n' + "\n" * (i % 3) for i in range(3000))
        path = self.write("a.jsonl", lines)
        whole = self.classify("--input", path, "--output-format", "csv").out
        for shard in ("0/2", "1/2"):
            self.assert_code(self.classify("--input", path, "--output", self.folder / "o.csv", "--shard", shard), 0)
        self.assert_code(tessera("merge", self.folder / "o.csv"), 0)
        self.assertEqual((self.folder / "o.csv").read_text(), whole)
        self.assertEqual(len(whole.splitlines()), 3001)

    def test_evaluate(self):
        rows = self.write("rows.tsv", "babe\t0\n\nbaba\t1\n\n")
        result = tessera("evaluate", "--model", self.model, "--input", rows)
        self.assert_code(result, 0)
        self.assertIn("of 2)", result.out)

    def test_plain_text_keeps_them(self):
        self.assertEqual(len(self.classify("--input", self.write("a.txt", "good\n\n\n")).lines), 3)


class ShrinkingInput(CliTest):
    """A file that ends before the size it had is an error, whatever its format: what is missing is not left out."""

    def test_every_text_format(self):
        line = {"text": "good film\n", "csv": "good film\n", "jsonl": '{"text":"good film"}\n'}
        for form, content in line.items():
            head = "text\n" if form == "csv" else ""
            path = self.write(f"in.{form}", head + content * 200_000)
            process = subprocess.Popen([TESSERA, "classify", "--quiet", "--model", self.model, "--input", path, "--format",
                                        form, "--output", self.folder / form, "--output-format", "text"],
                                       stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            partial = self.folder / f"{form}.partial"
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.001)
            os.truncate(path, 100_000)
            _, err = process.communicate(timeout=TIMEOUT_SECONDS)
            with self.subTest(form):
                self.assert_error(Result(process.returncode, b"", err), 4, f"in.{form}", "that it had when it was opened")
                self.assertFalse((self.folder / form).exists())


class LivePipes(CliTest):
    def test_each_line_is_answered_when_it_comes(self):
        process = subprocess.Popen([TESSERA, "classify", "--quiet", "--model", self.model, "--input", "-"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        watchdog = threading.Timer(TIMEOUT_SECONDS, process.kill)
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        answers = []
        for text in ("babe\n", "bebe\n", "baba\nbabe\n"):
            begin = time.monotonic()
            process.stdin.write(text.encode())
            process.stdin.flush()
            for _ in text.splitlines():
                self.assertRegex(process.stdout.readline().decode(), r"^(positive|negative)\t")
            answers.append(time.monotonic() - begin)
        # The first holds the start. A loaded machine may be late once, not each time.
        self.assertLess(min(answers[1:]), ANSWER_SECONDS)
        process.stdin.write(b"an unfinished line")
        process.stdin.close()
        self.assertRegex(process.stdout.read().decode(), r"^(positive|negative)\t")
        process.stdout.close()
        self.assertEqual(process.wait(), 0)

    def test_a_fast_pipe_is_still_read_in_batches(self):
        text = b"babe\n" * 50_000
        result = self.classify("--input", "-", "--statistics", self.folder / "s", stdin=text)
        self.assert_code(result, 0)
        self.assertEqual(result.out, self.classify("--input", self.write("in.txt", text)).out)
