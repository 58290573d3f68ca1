"""Ctrl-C, a second Ctrl-C, SIGTERM, and a reader of standard output that goes away."""
import json
import os
import signal
import subprocess
import time
import unittest

from cli_support import CliTest, TESSERA, TIMEOUT_SECONDS


class InterruptTest(CliTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.slow_model = cls.make_slow_model(20_000)

    def start(self, *arguments, stdin=subprocess.DEVNULL):
        process = subprocess.Popen([TESSERA, "classify", *map(str, arguments)], stdin=stdin, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        if process.poll() is None:
            process.kill()
        process.wait(timeout=TIMEOUT_SECONDS)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def start_slow(self):
        """A run of a minute and more, well under way."""
        process = self.start("--model", self.slow_model, "--input", self.slow_model / "inputs.bin", "--format", "ids",
                             "--precision", "fp64", "--output", self.folder / "o.jsonl")
        self.wait_for_results(process)
        return process

    def wait_for_results(self, process):
        """Until the partial output holds something: the handlers are in place before anything is written."""
        partial = self.folder / "o.jsonl.partial"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not partial.exists() or partial.stat().st_size == 0:
            self.assertIsNone(process.poll(), "the run ended too early")
            self.assertLess(time.monotonic(), deadline, "no results came")
            time.sleep(0.01)

    def finish(self, process, within):
        start = time.monotonic()
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        self.assertLess(time.monotonic() - start, within)
        return out, err.decode()

    def assert_no_output_but_partial(self):
        """Where the input is a file there may be the journal to resume from, too."""
        self.assertIn("o.jsonl.partial", [path.name for path in self.folder.iterdir()])
        (self.folder / "o.jsonl.journal").unlink(missing_ok=True)
        self.assert_nothing_left("o.jsonl.partial")

    def assert_valid_partial(self):
        """Whole JSON lines for the first records, and no final file. Returns their number."""
        self.assert_no_output_but_partial()
        content = (self.folder / "o.jsonl.partial").read_text()
        self.assertTrue(content.endswith("\n"))
        records = [json.loads(line) for line in content.splitlines()]
        self.assertEqual([record["index"] for record in records], list(range(len(records))))
        return len(records)

    def test_first_ctrl_c_finishes_what_is_in_flight(self):
        process = self.start_slow()
        process.send_signal(signal.SIGINT)
        _, err = self.finish(process, within=2.5)
        self.assertEqual(process.returncode, 130, err)
        count = self.assert_valid_partial()
        self.assertTrue(0 < count < 20_000)
        self.assertIn(f"{count} records read, {count} labelled, 0 failed; interrupted", err)
        self.assertIn(f"the first {count} results are in", err)

    def test_partial_results_are_those_of_a_whole_run(self):
        process = self.start_slow()
        process.send_signal(signal.SIGINT)
        self.finish(process, within=2.5)
        partial = (self.folder / "o.jsonl.partial").read_bytes()
        count = partial.count(b"\n")
        row = 4 * self.sequence_length
        ids = (self.slow_model / "inputs.bin").read_bytes()[:count * row]
        whole = self.classify("--input", "-", "--format", "ids", "--precision", "fp64", "--output-format", "jsonl",
                              stdin=ids, model=self.slow_model)
        self.assertEqual(whole.out_bytes, partial)

    def test_second_ctrl_c_exits_at_once(self):
        process = self.start_slow()
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # the first one gives what is in flight a second
        process.send_signal(signal.SIGINT)
        _, err = self.finish(process, within=2.5)
        self.assertEqual(process.returncode, 130)
        self.assertNotIn("records read", err, "the run was finished instead")
        self.assert_no_output_but_partial()

    def test_sigterm_is_like_ctrl_c(self):
        process = self.start_slow()
        process.send_signal(signal.SIGTERM)
        _, err = self.finish(process, within=2.5)
        self.assertEqual(process.returncode, 143, err)
        self.assertGreater(self.assert_valid_partial(), 0)

    def test_slow_pipe_what_came_is_labelled(self):
        process = self.start("--model", self.model, "--input", "-", "--output", self.folder / "o.jsonl",
                             "--batch-size", 1, stdin=subprocess.PIPE)
        for line in (b"baba\n", b"bebe\n", b"bibi\n"):
            process.stdin.write(line)
            process.stdin.flush()
        self.wait_for_results(process)
        process.stdin.write(b"half a li")
        process.stdin.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = self.finish_with_open_stdin(process)
        self.assertEqual(process.returncode, 130, err)
        self.assertEqual(self.assert_valid_partial(), 3)

    def finish_with_open_stdin(self, process):
        """The pipe stays open: the end must come from the signal, not from the end of the input."""
        process.wait(timeout=10)
        err = process.stderr.read().decode()
        process.stdin.close()
        return None, err

    def test_to_standard_output(self):
        process = self.start("--model", self.model, "--input", "-", "--batch-size", 1, stdin=subprocess.PIPE)
        process.stdin.write(b"baba\nbebe\n")
        process.stdin.flush()
        lines = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        _, err = self.finish_with_open_stdin(process)
        self.assertEqual(process.returncode, 130, err)
        self.assertEqual(process.stdout.read(), b"")
        self.assertTrue(all(line.count(b"\t") == 1 for line in lines), lines)

    def test_ignored_ctrl_c_stays_ignored(self):
        """As in a background job of a shell, which starts with SIGINT ignored."""
        command = ["bash", "-c", 'trap "" INT; exec "$0" "$@"', TESSERA, "classify", "--model", self.model, "--input",
                   "-", "--output", self.folder / "o.jsonl", "--batch-size", "1"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(self.end, process)
        process.stdin.write(b"baba\n")
        process.stdin.flush()
        self.wait_for_results(process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.communicate(b"bebe\n", timeout=TIMEOUT_SECONDS)
        self.assertEqual(process.returncode, 0)
        self.assertEqual(len((self.folder / "o.jsonl").read_text().splitlines()), 2)


class ClosedPipeTest(CliTest):
    def test_a_reader_that_goes_away_ends_the_run_quietly(self):
        big = self.write("big.txt", self.text.read_bytes() * 2000)
        process = subprocess.Popen([TESSERA, "classify", "--model", self.model, "--input", big, "--quiet"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(process.stdout.readline().count(b"\t"), 1)
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        self.assertEqual(process.wait(timeout=TIMEOUT_SECONDS), 141)
        self.assertEqual(err, b"")

    def test_in_a_shell_with_head(self):
        big = self.write("big.txt", self.text.read_bytes() * 2000)
        command = 'set -o pipefail; "$0" classify --model "$1" --input "$2" --quiet | head -n 3'
        done = subprocess.run(["bash", "-c", command, TESSERA, self.model, big], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=TIMEOUT_SECONDS, env=os.environ, check=False)
        self.assertEqual((done.returncode, done.stdout.count(b"\n"), done.stderr), (141, 3, b""))


if __name__ == "__main__":
    unittest.main()
