"""The progress line: on a terminal, and only there."""
import os
import pty
import select
import subprocess
import time
import unittest

from cli_support import CliTest, TESSERA, TIMEOUT_SECONDS


class ProgressTest(CliTest):
    def run_on_terminal(self, *arguments, results_too=False, term="xterm"):
        """What the terminal behind standard error, and behind standard output if `results_too`, shows."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        process = subprocess.Popen([TESSERA, "classify", "--model", self.model, *map(str, arguments)],
                                   stdin=subprocess.DEVNULL, stdout=slave if results_too else subprocess.DEVNULL,
                                   stderr=slave, env={**os.environ, "TERM": term})
        os.close(slave)
        shown, deadline = b"", time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(master, 65536)
            except OSError:  # how Linux tells that the last writer has closed the terminal
                break
            if not piece:
                break
            shown += piece
        self.assertEqual(process.wait(timeout=TIMEOUT_SECONDS), 0)
        return shown.decode()

    def test_count_rate_and_time_left_where_the_size_is_known(self):
        for form, path in (("ids", self.ids), ("text", self.text)):
            shown = self.run_on_terminal("--input", path, "--format", form, "--batch-size", 10)
            self.assertRegex(shown, r"\r\[[# ]+\] \d+ done, \d+ %, \d+/s, \d+:\d\d left", form)

    def test_the_line_is_removed_before_the_statistics(self):
        shown = self.run_on_terminal("--input", self.ids, "--format", "ids")
        progress, _, after = shown.rpartition("\r\x1b[K")
        self.assertIn("done", progress)
        self.assertNotIn("done", after)
        self.assertIn("100 records read", after)

    def test_the_last_count_shown_is_no_more_than_there_is(self):
        shown = self.run_on_terminal("--input", self.ids, "--format", "ids", "--batch-size", 1)
        counts = [int(part.split(" done")[0].split()[-1]) for part in shown.split("\r") if " done" in part]
        self.assertTrue(counts and max(counts) <= 100, counts)
        self.assertEqual(counts, sorted(counts))

    def test_no_bar_among_results_on_the_same_terminal(self):
        shown = self.run_on_terminal("--input", self.ids, "--format", "ids", "--batch-size", 10, results_too=True)
        self.assertNotIn(" done", shown)
        self.assertNotIn("\x1b", shown)
        labels = [line for line in shown.splitlines() if "\t" in line]
        self.assertEqual(len(labels), 100)
        for line in labels:
            self.assertRegex(line, r"^(positive|negative)\t[0-9.]+$")
        shown = self.run_on_terminal("--input", self.ids, "--format", "ids", "--batch-size", 10, "--output",
                                     self.folder / "o", results_too=True)
        self.assertIn(" done", shown)

    def test_no_bar_where_lines_cannot_be_redrawn(self):
        self.assertNotIn("\x1b", self.run_on_terminal("--input", self.ids, "--format", "ids", "--batch-size", 10,
                                                      term="dumb"))

    def test_quiet_shows_nothing(self):
        self.assertEqual(self.run_on_terminal("--input", self.ids, "--format", "ids", "--quiet"), "")

    def test_absent_without_a_terminal(self):
        result = self.classify("--input", self.ids, "--format", "ids", "--batch-size", 1)
        self.assertNotIn("\r", result.err)
        self.assertNotIn(" done", result.err)


if __name__ == "__main__":
    unittest.main()
