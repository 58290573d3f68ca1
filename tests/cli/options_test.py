"""Numbers of options, descriptors that the parent closed, limits on processes, and what a message may promise."""
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

from cli_support import CliTest, Result, ROOT, TESSERA, TIMEOUT_SECONDS, tessera

SOME_USER = 54321  # that has no process of its own


class Integers(CliTest):
    """Decimal, whole, in range, or an error that shows the text and the range."""

    def seed_of(self, text):
        result = tessera("synth", "--preset", "small", "--output", self.folder / "m", "--seed", text)
        self.assert_code(result, 0)
        return result.err.split("seed ")[1].split(",")[0]

    def test_zero_padded_numbers_are_decimal(self):
        self.assertEqual(self.seed_of("010"), "10")
        self.assertEqual(self.seed_of("008"), "8")
        self.assertEqual(self.seed_of("18446744073709551615"), "18446744073709551615")
        expected = self.classify("--text", "babe").out
        for option in ("--threads", "--batch-size"):
            for text in ("010", "0128", "008", "0"):
                self.assertEqual(self.classify("--text", "babe", option, text).out, expected)
        json_path = self.folder / "x.json"
        self.assert_code(tessera("explain", "moe", "--hidden", "064", "--intermediate", "0128", "--experts", "08",
                                 "--top-k", "02", "--tokens", "16", "--json", json_path), 0)
        shape = json.loads(json_path.read_text())["shape"]
        self.assertEqual((shape["hidden"], shape["intermediate"], shape["experts"]), (64, 128, 8))

    def test_what_is_no_number_or_out_of_range(self):
        classify = ["classify", "--model", self.model, "--text", "babe"]
        synth = ["synth", "--preset", "small", "--output", self.folder / "m"]
        for command, option, texts, expected in (
                (synth, "--seed", ("18446744073709551616", "99999999999999999999999", "-1", "1.0", "0x10", "1e3", " 1",
                                   "+1", "one", "1_000"), "an integer from 0 to 18446744073709551615"),
                (synth, "--inputs", ("-1", "4294967297", "9223372036854775808"), "an integer from 0 to 4294967296"),
                (classify, "--threads", ("-1", "1025", "4294967297", "2x"), "an integer from 0 to 1024"),
                (classify, "--batch-size", ("-1", "1048577", "18446744073709551617"), "an integer from 0 to 1048576"),
                (["evaluate", "--model", self.model, "--input", "none"], "--text-column", ("0", "-1"),
                 "an integer from 1 to 9223372036854775807"),
                (["bench", "moe", "--preset", "qwen3-30b", "--tokens", "1"], "--seed", ("-1", "1.5"), "an integer from 0")):
            for text in texts:
                with self.subTest(option, text=text):
                    self.assert_error(tessera(*command, f"{option}={text}"), 2, f"{option}: got '{text}'", expected)
        self.assert_nothing_left()


class ClosedDescriptors(CliTest):
    def run_closed(self, *arguments, close, stdin=subprocess.DEVNULL):
        """The command with these of its standard streams closed by its parent."""
        return subprocess.Popen([TESSERA, *map(str, arguments)], stdin=stdin, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, close_fds=True,
                                preexec_fn=lambda: [os.close(number) for number in close])

    def test_messages_do_not_land_in_the_output(self):
        process = self.run_closed("classify", "--model", self.model, "--input", "-", "--output", self.folder / "o",
                                  "--batch-size", 1, close=(1, 2), stdin=subprocess.PIPE)
        process.stdin.write(b"babe\nbad \xff record\nbaba\n")
        process.stdin.flush()
        partial = self.folder / "o.partial"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and not (partial.exists() and partial.read_bytes().count(b"\n") >= 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(TIMEOUT_SECONDS), 130)
        process.stdin.close()
        lines = partial.read_text().splitlines()
        self.assertEqual(len(lines), 3, lines)
        for line in (lines[0], lines[2]):
            self.assertRegex(line, r"^(positive|negative)\t[0-9.]+$")

    def test_a_finished_run_with_everything_closed(self):
        path = self.write("in.txt", "babe\nbaba\n")
        for close in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
            process = self.run_closed("classify", "--model", self.model, "--input", path, "--output", self.folder / "o",
                                      close=close)
            self.assertEqual(process.wait(TIMEOUT_SECONDS), 0, close)
            self.assertEqual(len((self.folder / "o").read_text().splitlines()), 2)

    def test_what_was_closed_cannot_be_used(self):
        for close, arguments, words in (((0,), ["--input", "-"], b"standard input: cannot open"),
                                        ((1,), ["--text", "babe"], b"standard output: cannot write")):
            process = subprocess.Popen([TESSERA, "classify", "--quiet", "--model", str(self.model), *arguments],
                                       stderr=subprocess.PIPE, preexec_fn=lambda: [os.close(n) for n in close])
            _, err = process.communicate(timeout=TIMEOUT_SECONDS)
            self.assertNotEqual(process.returncode, 0)
            self.assertIn(words, err)


class FewProcesses(CliTest):
    """A limit on processes, as containers and ulimit -u set: fewer threads, or an error; never an abort."""

    def test_every_limit(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to be a user without other processes")
        pathlib.Path(self.class_folder.name).chmod(0o755)
        expected = self.classify("--input", self.text).out_bytes

        def limit(number):
            os.setgid(SOME_USER)
            os.setuid(SOME_USER)
            resource.setrlimit(resource.RLIMIT_NPROC, (number, number))

        outcomes = {}
        for number in (1, 2, 3, 5, 8, 11, 14, 18, 40):
            try:
                done = subprocess.run([TESSERA, "classify", "--quiet", "--model", self.model, "--input", self.text,
                                       "--threads", "8"], stdin=subprocess.DEVNULL, capture_output=True,
                                      timeout=TIMEOUT_SECONDS, check=False, preexec_fn=lambda n=number: limit(n))
            except PermissionError:
                self.skipTest("another user cannot run the build here")
            result = Result(done.returncode, done.stdout, done.stderr)
            if b"Permission denied" in done.stderr:
                self.skipTest("another user cannot read the build here")
            outcomes[number] = done.returncode
            with self.subTest(number):
                if done.returncode == 0:
                    self.assertEqual(result.out_bytes, expected)
                else:
                    self.assert_error(result, 2, "threads", "limit on processes")
        self.assertEqual((outcomes[1], outcomes[40]), (2, 0), outcomes)


class Promises(CliTest):
    def test_resume_is_promised_only_where_a_checkpoint_is(self):
        """A disk that is full within the first second: there is no journal yet."""
        path = self.write("in.txt", "babe\n" * 40_000)
        command = 'trap "" XFSZ; ulimit -f 100; exec "$0" classify --model "$1" --input "$2" --output "$3" --precision fp32'
        done = subprocess.run(["bash", "-c", command, TESSERA, self.model, path, self.folder / "o"], check=False,
                              capture_output=True, timeout=TIMEOUT_SECONDS)
        result = Result(done.returncode, done.stdout, done.stderr)
        self.assert_error(result, 4, "File too large")
        has_journal = (self.folder / "o.journal").exists()
        self.assertEqual("--resume continues" in result.err, has_journal, result.err)
