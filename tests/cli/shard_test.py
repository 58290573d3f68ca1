"""tessera classify --shard and tessera merge: together they give the bytes of one run over the whole input."""
import json
import os
import shutil
import signal
import subprocess
import unittest

from cli_support import CliTest, TESSERA, TIMEOUT_SECONDS, tessera
from long_run_support import LongRunTest, NUM_RECORDS, break_off

RANK_VARIABLES = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"),
                  ("SLURM_PROCID", "SLURM_NTASKS"))
OUTPUT_FORMATS = ("text", "csv", "jsonl", "bin")


def without_ranks():
    """The environment without what a launcher of this test itself may have set."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI_", "SLURM_"))}


class ShardCase(CliTest):
    """An input of some blocks of 1,024 records in every format; records 7 and 2,000 fail."""

    NUM_RECORDS = 3500

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        row = 4 * cls.sequence_length
        ids = bytearray(cls.ids.read_bytes() * (cls.NUM_RECORDS // 100))
        lines = cls.text.read_bytes().splitlines() * (cls.NUM_RECORDS // 100)
        for index in (7, 2000):
            ids[index * row:index * row + 4] = (0x7FFFFFFF).to_bytes(4, "little")
            lines[index] = b"\xff"
        cls.inputs = {"ids": bytes(ids), "text": b"\n".join(lines),
                      "csv": b"text,id\n" + b"".join(b'"%s",%d\n' % (line, i) for i, line in enumerate(lines)),
                      "jsonl": b"".join(b'{"text": "%s"}\n' % line for line in lines)}
        for form, data in cls.inputs.items():
            path = cls.model / f"big.{form}"
            path.write_bytes(data)
            cls.inputs[form] = path

    def shard(self, form, output_format, which, *more, name="o"):
        return self.classify("--input", self.inputs[form], "--format", form, "--output", self.folder / name,
                             "--output-format", output_format, "--shard", which, *more)

    def whole(self, form, output_format, *more):
        result = self.classify("--input", self.inputs[form], "--format", form, "--output-format", output_format, *more)
        self.assert_code(result, 1)
        return result.out_bytes

    def manifest(self, which, name="o"):
        index, count = which.split("/")
        return json.loads((self.folder / f"{name}.{index}-of-{count}.manifest.json").read_text())

    def merge(self, *arguments):
        return tessera("merge", self.folder / "o", *arguments)

    def make_parts(self, count=3, form="ids", output_format="csv"):
        for i in range(count):
            self.assertIn(self.shard(form, output_format, f"{i}/{count}").code, (0, 1))


class ShardTest(ShardCase):
    def test_every_format_in_and_out(self):
        for form in self.inputs:
            for output_format in OUTPUT_FORMATS:
                with self.subTest(f"{form} to {output_format}"):
                    more = ["--expert-weights"] if output_format in ("csv", "jsonl") else []
                    for i in range(3):
                        self.assertIn(self.shard(form, output_format, f"{i}/3", *more).code, (0, 1))
                    self.assert_code(self.merge("--remove-parts"), 1)
                    self.assertTrue((self.folder / "o").read_bytes() == self.whole(form, output_format, *more))
                    self.assert_nothing_left("o")

    def test_binary_formats_are_cut_into_ranges(self):
        self.make_parts(count=3)
        for i in range(3):
            manifest = self.manifest(f"{i}/3")
            begin, end = self.NUM_RECORDS * i // 3, self.NUM_RECORDS * (i + 1) // 3
            self.assertEqual((manifest["records"]["begin"], manifest["records"]["end"]), (begin, end))
            rows = (self.folder / f"o.{i}-of-3").read_text().splitlines()
            self.assertEqual([int(row.split(",")[0]) for row in rows[1:]], list(range(begin, end)))

    def test_text_formats_take_turns_by_blocks(self):
        self.make_parts(count=2, form="text", output_format="jsonl")
        for i in range(2):
            lines = (self.folder / f"o.{i}-of-2").read_text().splitlines()
            expected = [index for index in range(self.NUM_RECORDS) if index // 1024 % 2 == i]
            self.assertEqual([json.loads(line)["index"] for line in lines], expected)
            manifest = self.manifest(f"{i}/2")
            self.assertEqual(manifest["ok"] + manifest["failed"], len(expected))
            self.assertEqual(manifest["failed"], sum(index in expected for index in (7, 2000)))
            self.assertEqual(manifest["total_records"], self.NUM_RECORDS)

    def test_more_shards_than_records_and_none_at_all(self):
        for name, content in (("few", b"baba\nbebe\n"), ("none", b"")):
            path = self.write(name, content)
            for i in range(3):
                self.assert_code(self.classify("--input", path, "--output", self.folder / "o", "--output-format",
                                               "csv", "--shard", f"{i}/3"), 0)
            self.assert_code(self.merge("--remove-parts"), 0)
            whole = self.classify("--input", path, "--output-format", "csv")
            self.assertEqual((self.folder / "o").read_bytes(), whole.out_bytes)

    def test_results_name_the_record_of_the_whole_input(self):
        result = self.shard("ids", "csv", "1/2")
        self.assert_code(result, 1)
        self.assertIn("[2000] record 2000", result.err)

    def test_wrong_shards(self):
        for which in ("2/2", "-1/2", "1", "x", "0/0", "0/1001", ""):
            if which:
                self.assert_error(self.shard("ids", "csv", which), 2, f"--shard: got '{which}'")
        self.assert_error(self.classify("--input", "-", "--output", self.folder / "o", "--shard", "0/2"), 2, "--shard",
                          "--input -")
        self.assert_error(self.classify("--input", self.text, "--shard", "0/2"), 2, "--shard", "--output -")
        self.assert_error(self.classify("--text", "baba", "--output", self.folder / "o", "--shard", "0/2"), 2, "--shard")
        self.assert_nothing_left()

    def test_auto_takes_the_rank_of_the_launcher(self):
        arguments = ["classify", "--model", self.model, "--input", self.inputs["ids"], "--format", "ids", "--output",
                     self.folder / "o", "--shard", "auto"]

        def run(**variables):
            return subprocess.run([TESSERA, *map(str, arguments)], env=without_ranks() | variables, text=True,
                                  capture_output=True, timeout=TIMEOUT_SECONDS, check=False)

        for rank, size in RANK_VARIABLES:
            done = run(**{rank: "1", size: "4"})
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(self.manifest("1/4")["shard"], 1)
            (self.folder / "o.1-of-4.manifest.json").unlink()
            done = run(**{rank: "4", size: "4"})
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"--shard auto: {rank} and {size}", done.stderr)
        done = run(OMPI_COMM_WORLD_RANK="1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--shard auto: got no rank in the environment, expected OMPI_COMM_WORLD_RANK", done.stderr)


class MergeTest(ShardCase):
    def setUp(self):
        super().setUp()
        self.make_parts()

    def assert_refused(self, *parts):
        before = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.assert_error(self.merge(), 2, *parts)
        self.assertEqual({path.name: path.read_bytes() for path in self.folder.iterdir()}, before)

    def test_parts_stay_unless_told_otherwise(self):
        before = {path.name for path in self.folder.iterdir()}
        result = self.merge()
        self.assert_code(result, 1)
        self.assertIn(f"merged 3 parts: {self.NUM_RECORDS} records, {self.NUM_RECORDS - 2} labelled, 2 failed",
                      result.err)
        self.assertEqual({path.name for path in self.folder.iterdir()}, before | {"o"})
        self.assertEqual(self.merge("--quiet").err, "")

    def test_checksum_is_the_one_of_xxh128sum(self):
        if shutil.which("xxh128sum") is None:
            self.skipTest("no xxh128sum on this machine (Debian package xxhash)")
        done = subprocess.run(["xxh128sum", self.folder / "o.0-of-3"], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.split()[0], self.manifest("0/3")["xxh128"])

    def test_missing_shard(self):
        (self.folder / "o.1-of-3.manifest.json").unlink()
        self.assert_refused("missing shard 1")

    def test_missing_part(self):
        (self.folder / "o.1-of-3").unlink()
        self.assert_refused("o.1-of-3: cannot open")

    def test_shard_twice(self):
        parts = [option for i in (0, 1, 1, 2) for option in ("--part", self.folder / f"o.{i}-of-3")]
        self.assert_error(self.merge(*parts), 2, "shard 1 of 3: got two parts")

    def test_corrupted_part(self):
        path = self.folder / "o.2-of-3"
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
        self.assert_refused("o.2-of-3: got the checksum")
        path.write_bytes(content[:-10])
        self.assert_refused("o.2-of-3: got ", "bytes, expected the")

    def test_part_of_another_run(self):
        self.assert_code(self.shard("ids", "csv", "1/3", "--expert-weights"), 1)
        self.assert_refused("made by another run: 'expert weights'")

    def test_parts_of_two_counts(self):
        self.shard("ids", "csv", "0/2")
        self.assert_refused("parts of 2 shards and of 3")

    def test_nothing_to_merge(self):
        self.assert_error(tessera("merge", self.folder / "p"), 2, "no p.I-of-N.manifest.json beside it")


class ResumedShardTest(LongRunTest):
    def test_a_killed_shard_is_resumed_and_a_finished_one_is_left_alone(self):
        for form, output_format in (("text", "csv"), ("ids", "bin")):
            arguments = self.slow_arguments(form, "o", "--output-format", output_format)
            first, second = [*arguments, "--shard", "0/2"], [*arguments, "--shard", "1/2"]
            code, _ = break_off(self.folder / "o.0-of-2.journal", first)
            self.assertEqual(code, -signal.SIGKILL)
            self.assertFalse((self.folder / "o.0-of-2.manifest.json").exists())
            self.assert_error(tessera("merge", self.folder / "o"), 2, "no o.I-of-N.manifest.json")
            resumed = tessera("classify", *first, "--resume")
            self.assertIn("resumes behind", resumed.err)
            self.assert_code(tessera("classify", *second, "--resume"), 1)
            again = tessera("classify", *second, "--resume")
            self.assert_code(again, 1)
            self.assertIn("o.1-of-2 is complete already", again.err)
            self.assert_code(tessera("merge", self.folder / "o", "--remove-parts"), 1)
            self.assertTrue((self.folder / "o").read_bytes() == self.whole(form, output_format))
            self.assert_nothing_left("o")
            (self.folder / "o").unlink()

    def test_a_finished_part_of_another_run_is_no_reason_to_stop(self):
        arguments = self.slow_arguments("ids", "o", "--shard", "0/40")
        self.assert_code(tessera("classify", *arguments), 1)
        self.assert_error(tessera("classify", *arguments, "--expert-weights", "--resume"), 2,
                          "made by another run: 'expert weights'")
        self.assert_code(tessera("classify", *arguments, "--expert-weights"), 1)


class MpiTest(ShardCase):
    MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe")
    # Else mpirun ends the other ranks when one has listed a record that failed (exit code 1).
    KEEP_GOING = ("--mca", "orte_abort_on_non_zero_status", "0")

    def setUp(self):
        super().setUp()
        if shutil.which("mpirun") is None:
            self.skipTest("no mpirun on this machine (Debian package openmpi-bin)")

    def mpirun(self, count, form, output, *options):
        command = [*self.MPIRUN, *options, "-np", count, TESSERA, "classify", "--model", self.model, "--input",
                   self.inputs[form], "--format", form, "--output", self.folder / output, "--shard", "auto"]
        return subprocess.run([str(word) for word in command], env=without_ranks(), capture_output=True, text=True,
                              timeout=TIMEOUT_SECONDS, check=False)

    def test_two_ranks_and_a_merge_give_the_output_of_one_run(self):
        for form in ("text", "ids"):
            done = self.mpirun(2, form, "o.csv", *self.KEEP_GOING)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stderr.count("1 of "), 2, "each rank lists what failed")
            self.assert_code(tessera("merge", self.folder / "o.csv", "--remove-parts"), 1)
            self.assertTrue((self.folder / "o.csv").read_bytes() == self.whole(form, "csv"))
            self.assert_nothing_left("o.csv")

    def test_ranks_that_fail_make_the_launch_fail(self):
        done = self.mpirun(2, "ids", "no/such/folder/o.csv")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("tessera: error: no/such/folder".replace("no", str(self.folder / "no"), 1), done.stderr)


if __name__ == "__main__":
    unittest.main()
