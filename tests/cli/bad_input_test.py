"""Bad input gets a clear message and the right exit code; other records are still labelled and nothing is lost."""
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import unittest

from cli_support import CliTest, TESSERA, TIMEOUT_SECONDS, Result, as_bytes, floats


class BadRecords(CliTest):
    """Some records fail: exit code 1, each in its place, the others as if nothing were wrong."""

    def check(self, arguments, num_records, failed, stdin=b""):
        """`failed`: index -> what its message says. Returns the run's records."""
        result = self.classify(*arguments, "--output-format", "jsonl", stdin=stdin)
        self.assert_code(result, 1)
        records = result.json_lines
        self.assertEqual([record["index"] for record in records], list(range(num_records)))
        self.assertEqual([record["index"] for record in records if "error" in record], sorted(failed))
        self.assertIn(f"{len(failed)} of {num_records} records failed", result.err)
        self.assertIn(f"{num_records} records read, {num_records - len(failed)} labelled, {len(failed)} failed",
                      result.err)
        for index, part in failed.items():
            self.assertIn(part, records[index]["error"])
            self.assertIn(part, result.err)
        return records

    def test_invalid_utf8(self):
        records = self.check(["--input", "-"], 4, {1: "standard input:2", 2: "UTF-8"}, b"baba\nb\xffb\n\xc3\nbebe\n")
        good = self.classify("--input", "-", "--output-format", "jsonl", stdin=b"baba\nx\nx\nbebe\n").json_lines
        self.assertEqual((records[0], records[3]), (good[0], good[3]))

    def test_nul_byte(self):
        self.check(["--input", "-"], 3, {1: "NUL"}, b"baba\nb\0b\nbebe\n")

    def test_csv_row_without_the_column(self):
        path = self.write("a.csv", "id,text\n1,baba\n2\n3,bebe\n")
        self.check(["--input", path], 3, {1: f"{path}:3"})

    def test_csv_quote_that_never_closes(self):
        self.check(["--input", self.write("a.csv", 'text\nbaba\n"bebe\n')], 2, {1: "never closed"})

    def test_json_lines_that_are_none(self):
        lines = '{"text":"baba"}\nnonsense\n[1]\n{"tex":"b"}\n{"text":3}\n{"text":"a","text":"b"}\n{"text":"bebe"}\n'
        path = self.write("a.jsonl", lines)
        self.check(["--input", path], 7, {i: f"{path}:{i + 1}" for i in range(1, 6)})

    def test_ids_outside_the_vocabulary(self):
        ids = bytearray(self.ids.read_bytes())
        length = self.sequence_length
        struct.pack_into("<i", ids, 4 * (3 * length + 5), 100)
        struct.pack_into("<i", ids, 4 * (7 * length), -1)
        records = self.check(["--input", self.write("ids.bin", bytes(ids)), "--format", "ids"], 100,
                             {3: "record 3, position 5: got token id 100, expected an id in [0, 100)",
                              7: "record 7, position 0: got token id -1"})
        good = self.classify("--input", self.ids, "--format", "ids", "--output-format", "jsonl").json_lines
        for i in set(range(100)) - {3, 7}:
            self.assertEqual(records[i], good[i])

    def test_embeddings_that_are_not_finite(self):
        values = bytearray(self.embeddings.read_bytes())
        row = len(values) // 100
        for record, value in ((2, math.nan), (5, math.inf), (6, -math.inf)):
            struct.pack_into("<f", values, record * row + 4 * (self.sequence_length + 3), value)
        path = self.write("embeddings.bin", bytes(values))
        arguments = ["--input", path, "--format", "embeddings"]
        self.check(arguments, 100, {2: "record 2, channel 1, position 3: got nan, expected a finite number",
                                    5: "got inf", 6: "got -inf"})
        good = self.classify("--input", self.embeddings, "--format", "embeddings", "--output-format", "bin").out_bytes
        bad = self.classify(*arguments, "--output-format", "bin").out_bytes
        self.assertEqual(bad[:16], good[:16])
        self.assertEqual(bad[56:], good[56:])
        self.assertTrue(all(math.isnan(x) for x in floats(bad[16:24])))

    def test_a_record_cut_short_on_a_pipe(self):
        self.check(["--input", "-", "--format", "ids"], 3, {2: "record 2"},
                   self.ids.read_bytes()[:4 * self.sequence_length * 2 + 20])

    def test_a_line_that_is_too_long(self):
        self.check(["--input", "-"], 3, {1: "longer than"}, b"baba\n" + b"b" * ((16 << 20) + 1) + b"\nbebe\n")

    def test_every_output_format_keeps_the_place(self):
        stdin = b"baba\n\xff\nbebe\n"
        text = self.classify("--input", "-", stdin=stdin)
        self.assertEqual(text.lines[1].split("\t")[0], "error")
        self.assertEqual(len(text.lines), 3)
        rows = self.classify("--input", "-", "--output-format", "csv", stdin=stdin).lines
        self.assertEqual(rows[2], "1,,")
        logits = floats(self.classify("--input", "-", "--output-format", "bin", stdin=stdin).out_bytes)
        self.assertEqual([math.isnan(x) for x in logits], [False, False, True, True, False, False])

    def test_the_first_twenty_are_listed_and_all_are_counted(self):
        for quiet in ([], ["--quiet"]):
            result = self.classify("--input", "-", *quiet, stdin=b"\xff\n" * 150 + b"baba\n")
            self.assert_code(result, 1)
            self.assertIn("150 of 151 records failed", result.err)
            self.assertIn("[19]", result.err)
            self.assertNotIn("[20]", result.err)
            self.assertIn("and 130 more", result.err)

    def test_output_is_renamed_although_records_failed(self):
        self.assert_code(self.classify("--input", "-", "--output", self.folder / "o.csv", stdin=b"\xff\n"), 1)
        self.assert_nothing_left("o.csv")


class BadInput(CliTest):
    """Input that cannot be read at all: exit code 2, one message, no output file."""

    def check(self, arguments, *parts, stdin=b""):
        before = [path.name for path in self.folder.iterdir()]
        self.assert_error(self.classify(*arguments, "--output", self.folder / "out.txt", stdin=stdin), 2, *parts)
        self.assert_nothing_left(*before)

    def test_missing_file(self):
        self.check(["--input", self.folder / "none.txt"], "none.txt", "No such file")

    def test_directory(self):
        self.check(["--input", self.folder], "directory")

    def test_no_permission(self):
        if os.geteuid() == 0:
            self.skipTest("root may read everything")
        path = self.write("secret.txt", "x")
        path.chmod(0)
        self.check(["--input", path], "Permission denied")

    def test_csv_without_the_column(self):
        path = self.write("a.csv", "id,review\n1,x\n")
        self.check(["--input", path], "'id', 'review'", "'text'")
        self.check(["--input", path, "--field", "comment"], "'comment'")

    def test_binary_files_of_odd_sizes(self):
        path = self.write("ids.bin", bytes(4 * self.sequence_length + 1))
        self.check(["--input", path, "--format", "ids"], "ids.bin", 4 * self.sequence_length + 1)
        self.check(["--input", path, "--format", "embeddings"], "ids.bin")

    def test_bin_needs_a_format(self):
        self.check(["--input", self.ids], "--format ids or --format embeddings")

    def test_names_are_escaped(self):
        self.check(["--input", self.folder / "a\x1b[31mb"], "a\\x1b[31mb")


class BadOptions(CliTest):
    def test_messages(self):
        text = ["--text", "x"]
        for arguments, parts in (
                ([], ["neither --text nor --input", "one of them"]),
                ([*text, "--input", "-"], ["both --text and --input"]),
                ([*text, "--format", "csv"], ["--format", "no --input"]),
                ([*text, "--field", "a"], ["--field", "no --input"]),
                (["--input", "-", "--format", "xml"], ["'xml'", "text"]),
                ([*text, "--output-format", "xml"], ["'xml'", "jsonl"]),
                ([*text, "--device", "tpu"], ["'tpu'", "auto, cpu, cuda"]),
                ([*text, "--precision", "fp8"], ["'fp8'", "fp16, bf16, fp32 or fp64"]),
                ([*text, "--threads", "-1"], ["--threads", "-1"]),
                ([*text, "--threads", "x"], ["--threads"]),
                ([*text, "--batch-size", "-5"], ["--batch-size"]),
                ([*text, "--expert-weights", "--output-format", "bin"], ["--expert-weights", "logits only"]),
                ([*text, "--show-text", "--output-format", "csv"], ["--show-text"]),
                ([*text, "--nonsense"], ["--nonsense"])):
            with self.subTest(arguments=arguments):
                result = self.classify(*arguments)
                self.assert_error(result, 2, *parts)
                self.assertEqual(result.out, "")

    def test_bf16_where_it_is_missing_or_there(self):
        result = self.classify("--text", "x", "--precision", "bf16")
        self.assertIn(result.code, (0, 2))
        if result.code == 2:
            self.assert_error(result, 2, "bf16", "fp32")


class BadOutput(CliTest):
    def test_no_such_directory(self):
        self.assert_error(self.classify("--text", "x", "--output", self.folder / "no" / "o.csv"), 2, "o.csv",
                          "No such file or directory")

    def test_a_directory(self):
        self.assert_error(self.classify("--text", "x", "--output", self.folder), 2, "directory")

    def test_full_disk(self):
        if not pathlib.Path("/dev/full").exists():
            self.skipTest("this system has no /dev/full")
        self.assert_error(self.classify("--input", self.text, "--output", "/dev/full"), 4, "/dev/full",
                          "No space left on device")

    def test_full_standard_output(self):
        if not pathlib.Path("/dev/full").exists():
            self.skipTest("this system has no /dev/full")
        with open("/dev/full", "wb") as full:
            done = subprocess.run([TESSERA, "classify", "--model", self.model, "--input", self.text], stdout=full,
                                  stderr=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False)
        self.assert_error(Result(done.returncode, b"", done.stderr), 4, "standard output", "No space left on device")

    def test_file_size_limit_leaves_what_fitted(self):
        """A disk that fills up in the middle of a run, by way of ulimit."""
        big = self.write("big.txt", self.text.read_bytes() * 100)
        out = self.folder / "o.jsonl"
        command = f'trap "" XFSZ; ulimit -f 100; exec "$0" classify --model "$1" --input "$2" --output "$3"'
        done = subprocess.run(["bash", "-c", command, TESSERA, self.model, big, out], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False)
        self.assert_error(Result(done.returncode, b"", done.stderr), 4, "o.jsonl.partial", "File too large")
        self.assert_nothing_left("big.txt", "o.jsonl.partial")
        lines = (self.folder / "o.jsonl.partial").read_text().splitlines()
        self.assertEqual([json.loads(line)["index"] for line in lines[:-1]], list(range(len(lines) - 1)))

    def test_statistics_that_cannot_be_written(self):
        result = self.classify("--text", "x", "--statistics", self.folder / "no" / "s.json")
        self.assert_error(result, 2, "s.json")  # found before the work
        self.assertEqual(result.out, "")


class BadCheckpoint(CliTest):
    def setUp(self):
        super().setUp()
        self.copy = self.folder / "copy"
        shutil.copytree(self.model, self.copy)

    def check(self, *parts):
        self.assert_error(self.classify("--text", "x", model=self.copy), 2, *parts)

    def edit_config(self, **changes):
        path = self.copy / "config.json"
        config = json.loads(path.read_text())
        config.update(changes)
        path.write_text(json.dumps(config))

    def test_missing_directory_and_files(self):
        self.assert_error(self.classify("--text", "x", model=self.folder / "none"), 2, "none")
        (self.copy / "model.safetensors").unlink()
        self.check("model.safetensors", "No such file")
        (self.copy / "config.json").unlink()
        self.check("config.json", "No such file")

    def test_truncated_weights(self):
        path = self.copy / "model.safetensors"
        whole = path.read_bytes()
        for size in (0, 7, 8, 100, len(whole) - 1):
            path.write_bytes(whole[:size])
            self.check("model.safetensors")
        path.write_bytes(whole + b"\0")
        self.check("model.safetensors")

    def test_weights_of_another_shape(self):
        self.edit_config(num_filters=9)
        self.check("model.safetensors", "conv.0.weight", "[8, 8, 2]", "[9, 8, 2]")

    def test_a_weight_that_is_not_finite(self):
        path = self.copy / "model.safetensors"
        content = bytearray(path.read_bytes())
        struct.pack_into("<f", content, len(content) - 4, math.nan)
        path.write_bytes(content)
        self.check("model.safetensors", "output.bias", "finite")

    def test_odd_configurations(self):
        good = (self.copy / "config.json").read_text()
        for changes, part in (({"sequence_length": 4}, "filter"), ({"num_experts": 0}, "num_experts"),
                              ({"num_experts": "3"}, "num_experts"), ({"num_experts": 3.0}, "num_experts"),
                              ({"class_names": ["only"]}, "class_names")):
            (self.copy / "config.json").write_text(good)
            self.edit_config(**changes)
            self.check("config.json", part)
        for text in ("", "[]", "null", good[:-2], good + "x", good.replace("{", '{"num_experts": 3,', 1)):
            (self.copy / "config.json").write_text(text)
            self.check("config.json")

    def test_vocabulary_of_another_size(self):
        with open(self.copy / "vocab.txt", "a", encoding="utf-8") as vocabulary:
            vocabulary.write("onemore\n")
        self.check("vocab.txt", "101", "100")

    def test_text_needs_a_vocabulary_and_ids_do_not(self):
        (self.copy / "vocab.txt").unlink()
        self.check("vocab.txt", "which text needs")
        self.assert_code(self.classify("--input", self.ids, "--format", "ids", model=self.copy), 0)

    def test_an_unknown_member_is_a_warning(self):
        self.edit_config(flavour="mint")
        result = self.classify("--text", "x", model=self.copy)
        self.assert_code(result, 0)
        self.assertIn("tessera: warning: ", result.err)
        self.assertIn("flavour", result.err)

    def test_ids_in_embeddings_clothing(self):
        values = as_bytes("f", [0.5] * (8 * self.sequence_length))
        path = self.write("e.bin", values)
        self.assert_code(self.classify("--input", path, "--format", "embeddings", model=self.copy), 0)


if __name__ == "__main__":
    unittest.main()
