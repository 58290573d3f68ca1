"""Outputs: two runs with one name, one file in two roles, open descriptors, links, permissions, files beside the main one."""
import fcntl
import json
import os
import pathlib
import shutil
import stat
import subprocess
import time

from cli_support import CliTest, Result, TESSERA, TIMEOUT_SECONDS, tessera

TWO_TEXTS = "A lovely film.\nDull.\n"
NOBODY = 65534


class TwoWriters(CliTest):
    """One output has one writer: the second is refused before it touches anything."""

    def start(self, *arguments, env=None):
        """A run that reads from a pipe and has claimed its output."""
        output = pathlib.Path(arguments[arguments.index("--output") + 1])
        process = subprocess.Popen([TESSERA, "classify", "--quiet", "--model", self.model, "--input", "-", *arguments],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, **(env or {})})
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not pathlib.Path(f"{output}.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return process

    def finish(self, process, text):
        out, err = process.communicate(text.encode(), timeout=TIMEOUT_SECONDS)
        return Result(process.returncode, out, err)

    def test_the_second_run_is_refused_and_the_first_is_whole(self):
        output = self.folder / "o.jsonl"
        first = self.start("--output", output)
        other = self.write("other.txt", "other\n" * 3)
        self.assert_error(self.classify("--input", other, "--output", output), 2, "o.jsonl.partial",
                          "another run is writing")
        result = self.finish(first, "babe\n" * 500)
        self.assert_code(result, 0)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        self.assertEqual([line["index"] for line in lines], list(range(500)))
        self.assert_nothing_left("o.jsonl", "other.txt")

    def test_the_refused_run_leaves_the_journal_of_the_first_alone(self):
        output, text = self.folder / "o", self.write("in.txt", "babe\n" * 3)
        first = self.start("--output", output)
        journal = self.write("o.journal", "not touched\n")
        for more in ([], ["--resume"]):
            self.assert_error(self.classify("--input", text, "--output", output, *more), 2, "o.partial",
                              "another run is writing")
            self.assertEqual(journal.read_text(), "not touched\n")
        self.assert_code(self.finish(first, "babe\n"), 0)

    def test_processes_of_a_launcher_are_told_of_shards(self):
        first = self.start("--output", self.folder / "o")
        text = self.write("in.txt", "babe\n")
        ranks = {"PMI_RANK": "1", "PMI_SIZE": "4"}
        refused = tessera("classify", "--model", self.model, "--input", text, "--output", self.folder / "o", env=ranks)
        self.assert_error(refused, 2, "PMI_SIZE is 4", "--shard auto")
        self.assert_code(self.finish(first, ""), 0)

    def test_a_temporary_file_that_was_replaced_gets_no_name(self):
        first = self.start("--output", self.folder / "o")
        (self.folder / "o.partial").unlink()
        self.write("o.partial", "somebody else's\n")
        self.assert_error(self.finish(first, "babe\n"), 4, "o.partial", "another file")
        self.assertFalse((self.folder / "o").exists())
        self.assertEqual((self.folder / "o.partial").read_text(), "somebody else's\n")

    def test_every_writer_claims_its_output(self):
        parts = self.folder / "p"
        self.classify("--input", self.text, "--output", parts, "--shard", "0/1")
        runs = {"p": ["merge", parts],
                "j": ["verify", "--model", self.model, "--ids", self.ids, "--report", "--sample", 1, "--json",
                      self.folder / "j"],
                "s": ["classify", "--model", self.model, "--text", "babe", "--statistics", self.folder / "s"],
                "e": ["convert", "--model", self.model, "--ids", self.ids, "--to-embeddings", self.folder / "e"],
                "m/config.json": ["synth", "--preset", "small", "--output", self.folder / "m"]}
        (self.folder / "m").mkdir()
        for name, command in runs.items():
            with open(self.folder / f"{name}.partial", "wb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                self.assert_error(tessera(*command), 2, f"{name}.partial", "another run is writing")
        self.assertEqual([path.name for path in (self.folder / "m").iterdir()], ["config.json.partial"])


class OneFileInTwoRoles(CliTest):
    """Refused by name before anything is opened for writing: nothing is lost."""

    def setUp(self):
        super().setUp()
        self.input = self.write("in.txt", TWO_TEXTS)

    def refused(self, *arguments, parts, stdin=b""):
        before = {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}
        self.assert_error(self.classify(*arguments, stdin=stdin), 2, "a file of its own", *parts)
        self.assertEqual({path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}, before)

    def test_output_and_input(self):
        self.refused("--input", self.input, "--output", self.input, parts=["--output", "--input reads"])
        (self.folder / "link").symlink_to(self.input)
        os.link(self.input, self.folder / "hard")
        (self.folder / "d").symlink_to(self.folder)
        for name in ("link", "hard", "d/in.txt", "./in.txt"):
            with self.subTest(name):
                self.refused("--input", self.input, "--output", self.folder / name, parts=["--input reads"])

    def test_names_that_are_made_of_the_output(self):
        for suffix in (".partial", ".journal", ".journal.partial", ".manifest.json"):
            path = self.write(f"o{suffix}", TWO_TEXTS)
            self.refused("--input", path, "--format", "text", "--output", self.folder / "o", parts=["--input reads"])
            path.unlink()
        part = self.write("o.0-of-2", TWO_TEXTS)
        self.refused("--input", part, "--output", self.folder / "o", "--shard", "0/2", parts=["--input reads"])

    def test_statistics(self):
        self.refused("--input", self.input, "--output", self.folder / "o", "--statistics", self.input,
                     parts=["--statistics", "--input reads"])
        self.refused("--input", self.input, "--output", self.folder / "o", "--statistics", self.folder / "o",
                     parts=["--statistics", "--output writes"])
        self.refused("--input", self.input, "--output", self.folder / "o", "--statistics", self.folder / "o.journal",
                     parts=["--statistics", "--output writes"])

    def test_standard_input_and_output(self):
        with open(self.input, "rb") as given:
            done = subprocess.run([TESSERA, "classify", "--model", self.model, "--input", "-", "--output", self.input],
                                  stdin=given, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
        self.assert_error(Result(done.returncode, done.stdout, done.stderr), 2, "--input reads")
        with open(self.input, "ab") as appended:  # what it writes would be its next input
            done = subprocess.run([TESSERA, "classify", "--model", self.model, "--input", self.input], stdout=appended,
                                  stderr=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False)
        self.assert_error(Result(done.returncode, b"", done.stderr), 2, "standard output", "--input reads")
        self.assertEqual(self.input.read_text(), TWO_TEXTS)

    def test_files_of_the_model(self):
        model = self.folder / "model"
        shutil.copytree(self.model, model)
        for name in ("vocab.txt", "config.json", "model.safetensors"):
            before = (model / name).read_bytes()
            result = self.classify("--input", self.input, "--output", model / name, "--output-format", "text",
                                   model=model)
            self.assert_error(result, 2, "--model reads")
            self.assertEqual((model / name).read_bytes(), before)

    def test_other_commands(self):
        rows = self.write("rows.tsv", "babe\t0\n")
        self.assert_error(tessera("evaluate", "--model", self.model, "--input", rows, "--statistics", rows), 2,
                          "--input reads")
        answers = self.folder / "answers.bin"
        self.classify("--input", self.ids, "--format", "ids", "--output", answers)
        self.assert_error(tessera("verify", "--model", self.model, "--report", "--ids", self.ids, "--json", self.ids), 2,
                          "--ids reads")
        self.assert_error(tessera("convert", "--model", self.model, "--ids", self.ids, "--to-embeddings", self.ids), 2,
                          "--ids reads")
        self.assert_error(tessera("convert", "--model", self.model, "--to-school", self.model), 2, "--model reads")
        self.assert_error(tessera("synth", "--config", self.model / "config.json", "--output", self.model), 2,
                          "--config reads")
        self.assert_error(tessera("explain", "moe", "--preset", "qwen3-30b", "--tokens", 8, "--svg", self.folder / "x",
                                  "--json", self.folder / "x"), 2, "--svg writes")
        self.assertEqual(rows.read_text(), "babe\t0\n")

    def test_different_files_go_together(self):
        (self.folder / "link").symlink_to(self.folder / "o")
        result = self.classify("--input", self.input, "--output", self.folder / "link", "--statistics",
                               self.folder / "s.json")
        self.assert_code(result, 0)
        self.assert_code(self.classify("--input", self.input, "--output", "/dev/null", "--statistics", "/dev/null"), 0)


class OpenDescriptors(CliTest):
    """/dev/stdout and its like are what the shell opened, not a file to replace."""

    def shell(self, script):
        done = subprocess.run(["sh", "-c", script, TESSERA, self.model], cwd=self.folder, capture_output=True,
                              timeout=TIMEOUT_SECONDS, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_what_the_shell_wrote_stays(self):
        self.write("in.txt", "babe\n")
        run = '"$0" classify --quiet --model "$1" --input in.txt --output'
        for name, more in (("/dev/stdout", ""), ("/dev/fd/1", ""), ("/proc/self/fd/1", ""), ("/dev/stderr", "2>&1"),
                           ("/dev/fd/5", "5>&1"), ("link", "")):
            with self.subTest(name):
                (self.folder / "link").unlink(missing_ok=True)
                (self.folder / "link").symlink_to("/dev/stdout")
                self.write("o", "old\n")
                self.shell(f"{{ echo before; {run} {name} {more}; echo after; }} >> o")
                lines = (self.folder / "o").read_text().splitlines()
                self.assertEqual(lines[:2] + lines[3:], ["old", "before", "after"])
                self.assertRegex(lines[2], r"^(positive|negative)\t")
        self.assert_nothing_left("in.txt", "link", "o")


class LinksAndPermissions(CliTest):
    def label(self, output, **options):
        return subprocess.run([TESSERA, "classify", "--quiet", "--model", self.model, "--text", "babe", "--output",
                               output], capture_output=True, timeout=TIMEOUT_SECONDS, check=False, **options)

    def test_what_was_there_keeps_its_permissions(self):
        for mode in (0o600, 0o640, 0o666):
            path = self.write("o", "old\n")
            path.chmod(mode)
            self.assertEqual(self.label(path).returncode, 0)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode)
            self.assertNotEqual(path.read_text(), "old\n")

    def test_a_read_only_file_is_not_replaced(self):
        path = self.write("o", "old\n")
        path.chmod(0o444)
        self.folder.chmod(0o777)
        pathlib.Path(self.class_folder.name).chmod(0o755)
        as_nobody = {"user": NOBODY} if os.geteuid() == 0 else {}
        try:
            done = self.label(path, **as_nobody)
        except PermissionError:
            self.skipTest("another user cannot run the build here")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(b"o: cannot open for writing: Permission denied", done.stderr)
        self.assertEqual(path.read_text(), "old\n")

    def test_a_link_to_a_file_that_is_not_there_yet_is_followed(self):
        (self.folder / "deep").mkdir()
        (self.folder / "link").symlink_to("deep/o")
        self.assertEqual(self.label(self.folder / "link").returncode, 0)
        self.assertTrue((self.folder / "link").is_symlink())
        self.assertRegex((self.folder / "deep" / "o").read_text(), r"^(positive|negative)\t")
        (self.folder / "loop").symlink_to("loop")
        done = self.label(self.folder / "loop")
        self.assertEqual((done.returncode, b"circle" in done.stderr), (2, True), done.stderr)


class SideFiles(CliTest):
    """--statistics, --json, --svg: a bad place is found before the work; a failure after it is said as one."""

    def test_a_bad_place_is_found_before_the_work(self):
        text, nowhere = self.write("in.txt", "babe\n"), self.folder / "none" / "s"
        rows = self.write("rows.tsv", "babe\t0\n")
        for command in (["classify", "--model", self.model, "--input", text, "--output", self.folder / "o",
                         "--statistics", nowhere],
                        ["evaluate", "--model", self.model, "--input", rows, "--statistics", nowhere],
                        ["verify", "--model", self.model, "--report", "--ids", self.ids, "--json", nowhere],
                        ["explain", "moe", "--preset", "qwen3-30b", "--tokens", 8, "--json", nowhere],
                        ["explain", "moe", "--preset", "qwen3-30b", "--tokens", 8, "--svg", nowhere]):
            result = tessera(*command)
            self.assert_error(result, 2, "s.partial: cannot open for writing")
            self.assertEqual(result.out_bytes, b"")
        self.assertFalse((self.folder / "o").exists())

    def test_a_failure_after_the_work_says_that_the_results_are_whole(self):
        text = self.write("in.txt", "babe\n")
        result = self.classify("--input", text, "--output", self.folder / "o", "--statistics", "/dev/full")
        self.assert_error(result, 5, "--statistics: /dev/full", "No space left on device", "the results are whole")
        self.assertEqual(len((self.folder / "o").read_text().splitlines()), 1)

    def test_none_is_left_where_nothing_was_run(self):
        result = self.classify("--input", self.folder / "none.txt", "--statistics", self.folder / "s.json")
        self.assert_error(result, 2, "none.txt")
        self.assert_nothing_left()


class Checkpoints(CliTest):
    def test_one_that_is_replaced_is_said(self):
        make = ["synth", "--preset", "small", "--output", self.folder / "m"]
        self.assertNotIn("replaces", tessera(*make).err)
        self.assertIn("warning: replaces the checkpoint that lies in", tessera(*make).err)


class EmptyNames(CliTest):
    def test_an_unset_variable_is_no_name(self):
        text = self.write("in.txt", "babe\n")
        for option in ("--output", "--statistics", "--format", "--output-format", "--field", "--shard"):
            self.assert_error(self.classify("--input", text, option, ""), 2, f"{option}: got ''")
        self.assert_error(tessera("classify", "--input", text, "--model", ""), 2, "--model: got ''")
        self.assert_error(self.classify("--input", "", "--text", "babe"), 2, "--input: got ''")
        self.assert_error(tessera("synth", "--preset", "small", "--output", ""), 2, "--output: got ''")
        self.assert_error(tessera("merge", ""), 2, "output: got ''")
        self.assert_nothing_left("in.txt")
        self.assert_code(self.classify("--text", ""), 0)  # a sentence may be empty
