"""tessera classify --resume: a run that was broken off ends with the bytes of one that was not."""
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import unittest

from cli_support import TESSERA, TIMEOUT_SECONDS, tessera
from long_run_support import BAD_RECORDS, LongRunTest, NUM_RECORDS, break_off


class ResumeCase(LongRunTest):
    def resume(self, *arguments):
        return tessera("classify", *arguments, "--resume")

    def assert_same_bytes(self, name, expected, left=".manifest.json"):
        """`left`: beside the output, by a run with --resume."""
        self.assertTrue((self.folder / name).read_bytes() == expected, "the output differs from an undisturbed run's")
        if left:
            (self.folder / f"{name}{left}").unlink()
        self.assert_nothing_left(name)


class ResumeTest(ResumeCase):
    def kill_and_resume(self, form, output_format, *more):
        arguments = self.slow_arguments(form, "o", "--output-format", output_format, *more)
        code, _ = self.break_off(*arguments)
        self.assertEqual(code, -signal.SIGKILL)
        self.assertFalse((self.folder / "o").exists())
        last = self.last_checkpoint()
        done = last["ok"] + last["failed"]
        self.assertTrue(0 < done < NUM_RECORDS)
        statistics = self.folder / "statistics"
        result = self.resume(*arguments, "--statistics", statistics)
        self.assert_code(result, 1)
        counts = json.loads(statistics.read_text())
        statistics.unlink()
        self.assertEqual(counts["records_resumed"], done)
        self.assertEqual(counts["records_read"], NUM_RECORDS - done, "no record is labelled twice")
        self.assertEqual(counts["records_failed"] + counts["records_resumed_failed"], len(BAD_RECORDS))
        self.assertIn(f"resumes behind {done} finished records", result.err)
        self.assert_same_bytes("o", self.whole(form, output_format, *more))

    def test_killed_ids_to_logits(self):
        self.kill_and_resume("ids", "bin")

    def test_killed_text_to_csv(self):
        self.kill_and_resume("text", "csv", "--expert-weights")

    def test_killed_csv_to_jsonl(self):
        self.kill_and_resume("csv", "jsonl")

    def test_killed_jsonl_to_text(self):
        self.kill_and_resume("jsonl", "text", "--show-text")

    def test_interrupted_then_killed_then_finished(self):
        """An input long enough that what waits at Ctrl-C is not finished within its grace."""
        path = self.write("in", self.inputs["ids"].read_bytes() * 3)
        arguments = ["--model", self.slow_model, "--input", path, "--format", "ids", "--precision", "fp64", "--output",
                     self.folder / "o", "--output-format", "csv"]
        code, err = self.break_off(*arguments, number=signal.SIGINT)
        self.assertEqual(code, 130, err)
        self.assertIn("--resume continues", err)
        first = self.last_checkpoint()
        self.assertEqual(first["bytes"], (self.folder / "o.partial").stat().st_size, "all that was written counts")
        self.assertIn(f"the first {first['ok'] + first['failed']} results are in", err)

        process = subprocess.Popen([TESSERA, "classify", *map(str, arguments), "--resume", "--threads", "1"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.last_checkpoint() == first and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait(timeout=TIMEOUT_SECONDS)
        self.assertGreater(self.last_checkpoint()["ok"], first["ok"])

        self.assert_code(self.resume(*arguments), 1)
        path.unlink()
        once = self.whole("ids", "csv").splitlines(keepends=True)
        rows = [row.partition(b",")[2] for row in once[1:]]
        expected = once[0] + b"".join(b"%d,%s" % (i, row) for i, row in enumerate(rows * 3))
        self.assert_same_bytes("o", expected)

    def test_full_disk_then_resumed(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write says it, as on a full disk

        arguments = self.slow_arguments("ids", "o", "--output-format", "bin")
        done = subprocess.run([TESSERA, "classify", *map(str, arguments), "--threads", "1"], stdin=subprocess.DEVNULL, preexec_fn=limit,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn(b"o.partial: cannot write", done.stderr)
        self.assertIn(b"--resume continues", done.stderr)
        self.assert_code(self.resume(*arguments), 1)
        self.assert_same_bytes("o", self.whole("ids", "bin"))

    def test_records_that_failed_before_count_in_the_exit_code(self):
        mended = bytearray(self.inputs["ids"].read_bytes())
        row = len(mended) // NUM_RECORDS
        late = BAD_RECORDS[1]
        mended[late * row:late * row + row] = bytes(row)
        arguments = ["--model", self.slow_model, "--input", self.write("in", bytes(mended)), "--format", "ids",
                     "--precision", "fp64", "--output", self.folder / "o"]
        self.break_off(*arguments)
        result = self.resume(*arguments)
        self.assert_code(result, 1)
        self.assertIn("1 of them failed; in this run", result.err)
        self.assertNotIn("records failed:", result.err, "none of those read now")


class BrokenOffTest(ResumeCase):
    """One run, killed once; every test gets what it left behind and does something to it."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.left = cls.slow_model / "left"
        cls.left.mkdir()
        break_off(cls.left / "o.journal", ["--model", cls.slow_model, "--input", cls.inputs["text"], "--precision",
                                           "fp64", "--output", cls.left / "o", "--output-format", "csv"])

    def setUp(self):
        super().setUp()
        shutil.copytree(self.left, self.folder, dirs_exist_ok=True)
        self.arguments = self.slow_arguments("text", "o", "--output-format", "csv")

    def edit(self, name, change):
        path = self.folder / name
        path.write_bytes(change(path.read_bytes()))

    def assert_refused(self, arguments, *parts):
        before = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.assert_error(self.resume(*arguments), 2, *parts)
        self.assertEqual({path.name: path.read_bytes() for path in self.folder.iterdir()}, before, "nothing is lost")

    def assert_resumes(self):
        self.assert_code(self.resume(*self.arguments), 1)
        self.assert_same_bytes("o", self.whole("text", "csv"))

    def test_torn_last_line_of_the_journal(self):
        self.edit("o.journal", lambda text: text + text.splitlines()[-1][:20])
        self.assert_resumes()

    def test_bytes_behind_those_that_count_are_dropped(self):
        self.edit("o.partial", lambda text: text + b"half a li")
        self.assert_resumes()

    def test_partial_output_shorter_than_the_journal_says(self):
        self.edit("o.partial", lambda text: text[:100])
        self.assert_refused(self.arguments, "o.partial: got 100 bytes, expected at least the",
                            self.last_checkpoint()["bytes"])

    def test_partial_output_that_was_changed(self):
        self.edit("o.partial", lambda text: text[:50] + b"!" + text[51:])
        self.assert_refused(self.arguments, "o.partial: got other bytes in its first")

    def test_journal_that_is_none(self):
        self.edit("o.journal", lambda text: b"notes\n" + text)
        self.assert_refused(self.arguments, "o.journal: line 1")

    def test_another_run_is_named(self):
        for name, arguments in (
                ("'output format'", [*self.arguments[:-1], "jsonl"]),
                ("'expert weights'", [*self.arguments, "--expert-weights"]),
                ("'arithmetic'", [a if a != "fp64" else "fp32" for a in self.arguments]),
                ("'input format'", [a if a != "text" else "jsonl" for a in self.arguments])):
            with self.subTest(name):
                self.assert_refused(arguments, "o.journal: made by another run: " + name)

    def test_another_input_is_named(self):
        content = self.inputs["text"].read_bytes()
        modified = self.inputs["text"].stat()
        other = self.folder / "other"
        position = self.arguments.index(self.inputs["text"])
        self.arguments[position] = other
        for name, changed, time_ns in (("'input bytes'", content + b"baba\n", modified.st_mtime_ns),
                                       ("'input sample'", content.replace(b"\n", b" ", 1), modified.st_mtime_ns),
                                       ("'input modified'", content, modified.st_mtime_ns + 1_000_000_000)):
            with self.subTest(name):
                other.write_bytes(changed)
                os.utime(other, ns=(time_ns, time_ns))
                self.assert_refused(self.arguments, "o.journal: made by another run: " + name + (": got '20" if "modified" in name else ""))
        other.write_bytes(content)  # the same under another name is the same
        os.utime(other, ns=(modified.st_mtime_ns, modified.st_mtime_ns))
        self.assert_code(self.resume(*self.arguments), 1)

    def test_another_model_is_named(self):
        model = self.folder / "model"
        shutil.copytree(self.slow_model, model, ignore=shutil.ignore_patterns("left", "in.*", "whole.*"))
        position = self.arguments.index(self.slow_model)
        self.arguments[position] = model
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-4] ^= 1
        (model / "model.safetensors").write_bytes(weights)
        self.assert_error(self.resume(*self.arguments), 2, "made by another run: 'model.safetensors'")
        shutil.copy(self.slow_model / "model.safetensors", model)
        self.assert_code(self.resume(*self.arguments), 1)

    def test_without_resume_a_run_starts_over(self):
        result = tessera("classify", *self.arguments)
        self.assert_code(result, 1)
        self.assertIn("starts over; --resume would have continued", result.err)
        self.assert_same_bytes("o", self.whole("text", "csv"), left="")

    def test_without_a_journal_or_a_partial_output_it_starts_from_the_beginning_and_says_so(self):
        for name in ("o.journal", "o.partial"):
            with self.subTest(name):
                shutil.copytree(self.left, self.folder, dirs_exist_ok=True)
                (self.folder / name).unlink()
                result = self.resume(*self.arguments)
                self.assert_code(result, 1)
                self.assertIn(f"{name}): starts from the beginning", result.err)
                self.assert_same_bytes("o", self.whole("text", "csv"))


class FinishedTest(ResumeCase):
    """What a run with --resume finished is left alone by the next, as long as it is that run's."""

    def setUp(self):
        super().setUp()
        self.input = self.write("in.txt", b"babe\n\xff\nbaba\n")
        self.arguments = ["--model", self.model, "--input", self.input, "--output", self.folder / "o"]
        self.assert_code(self.resume(*self.arguments), 1)
        self.labels = (self.folder / "o").read_bytes()
        self.times = self.stamps()

    def stamps(self):
        return {path.name: path.stat().st_mtime_ns for path in self.folder.iterdir()}

    def assert_labelled_again(self, *arguments, code=1, message="starts from the beginning"):
        result = self.resume(*arguments)
        self.assert_code(result, code)
        self.assertIn(message, result.err)
        self.assertNotEqual(self.stamps()["o"], self.times["o"])

    def test_it_is_left_alone(self):
        self.assertEqual(sorted(self.times), ["in.txt", "o", "o.manifest.json"])
        for _ in range(2):
            result = self.resume(*self.arguments)
            self.assert_code(result, 1)  # a record failed, then as now
            self.assertIn("o is complete already: 3 records", result.err)
            self.assertEqual(self.stamps(), self.times)

    def test_another_input_is_labelled(self):
        self.input.write_bytes(b"baba\n\xff\nbabe\nbaba babe\n")
        self.assert_labelled_again(*self.arguments, message="not the output of this run")
        self.assertEqual((self.folder / "o").read_bytes().count(b"\n"), 4)
        self.times = self.stamps()
        os.utime(self.input, ns=(1, 1))  # bytes that the sample leaves out may have changed
        self.assert_labelled_again(*self.arguments, message="'input modified'")

    def test_other_options_label_it(self):
        self.assert_labelled_again(*self.arguments, "--show-text", message="'show text'")

    def test_an_output_that_was_changed_or_removed_is_made_again(self):
        (self.folder / "o").write_bytes(b"x" + self.labels[1:])
        self.assert_labelled_again(*self.arguments, message="a file that was changed")
        self.assertEqual((self.folder / "o").read_bytes(), self.labels)
        (self.folder / "o").unlink()
        self.assert_labelled_again(*self.arguments)
        self.assertEqual((self.folder / "o").read_bytes(), self.labels)

    def test_a_manifest_that_cannot_be_read_stops_nothing(self):
        self.write("o.manifest.json", "{")
        self.assert_labelled_again(*self.arguments, message="not the output of this run")

    def test_without_resume_it_is_labelled_and_no_manifest_is_left(self):
        self.assert_code(tessera("classify", *self.arguments), 1)
        self.assertNotEqual(self.stamps()["o"], self.times["o"])
        (self.folder / "o").unlink()
        (self.folder / "o.manifest.json").unlink()
        self.assert_code(tessera("classify", *self.arguments), 1)
        self.assert_nothing_left("in.txt", "o")


class CannotResumeTest(ResumeCase):
    def test_standard_input_and_output(self):
        self.assert_error(self.resume("--model", self.model, "--input", "-", "--output", self.folder / "o"), 2,
                          "--resume", "--input -")
        self.assert_error(self.resume("--model", self.model, "--input", self.text), 2, "--resume", "--output -")
        self.assert_error(self.resume("--model", self.model, "--text", "baba", "--output", self.folder / "o"), 2,
                          "--resume", "no --input")
        self.assert_error(self.resume("--model", self.model, "--input", self.text, "--output", "/dev/null"), 2,
                          "--resume", "--output /dev/null")
        self.assert_nothing_left()

    def test_first_run_of_a_script_that_always_resumes(self):
        result = self.resume("--model", self.model, "--input", self.text, "--output", self.folder / "o")
        self.assert_code(result, 0)
        self.assertIn("nothing to resume", result.err)
        self.assert_same_bytes("o", self.classify("--input", self.text).out_bytes)


if __name__ == "__main__":
    unittest.main()
