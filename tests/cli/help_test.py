"""--help, --version, doctor, and what the command says when it is called wrongly."""
import os
import re
import shutil
import subprocess
import unittest

from cli_support import CliTest, tessera

COMMANDS = ("classify", "merge", "evaluate", "verify", "convert", "synth", "doctor", "inspect", "bench classify", "bench moe",
            "explain moe", "explain bits", "report", "completion", "manual")


class HelpTest(CliTest):
    def test_version(self):
        result = tessera("--version")
        self.assert_code(result, 0)
        self.assertRegex(result.out, r"^tessera \d+\.\d+\.\d+\n$")

    def test_help_names_every_command_and_exit_code(self):
        result = tessera("--help")
        self.assert_code(result, 0)
        for part in (*(command.split()[0] for command in COMMANDS), "Examples:", "Exit codes:", "130"):
            self.assertIn(part, result.out)

    def test_every_command_has_help_with_examples(self):
        for command in COMMANDS:
            result = tessera(*command.split(), "--help")
            self.assert_code(result, 0)
            self.assertIn("Examples:", result.out)
            self.assertRegex(result.out, rf"\n  tessera {command}\b")

    def test_the_options_in_the_examples_exist(self):
        for command in COMMANDS:
            options, _, examples = tessera(*command.split(), "--help").out.partition("Examples:")
            used = {option for line in examples.splitlines() if f"tessera {command}" in line
                    for option in re.findall(r"--[a-z-]+", line)}
            self.assertLessEqual(used, set(re.findall(r"--[a-z-]+", options)), command)

    def test_without_arguments_the_commands_are_listed(self):
        """Nothing was run: the exit code of a wrong call, and nothing on standard output."""
        for group, listed in (((), {command.split()[0] for command in COMMANDS}),
                              (("bench",), {"classify", "moe"}), (("explain",), {"moe", "bits"})):
            with self.subTest(group):
                result = tessera(*group)
                self.assert_code(result, 2)
                self.assertEqual(result.out, "")
                name = " ".join(("tessera", *group))
                body = result.err.partition("\nCommands:\n")[2]
                commands, _, example = body.partition("\n\nExample:\n")
                self.assertEqual({line.split()[0] for line in commands.splitlines()}, listed)
                for line in commands.splitlines():
                    self.assertRegex(line, r"^  [a-z]+ +\S+ \S+")
                self.assertRegex(example, rf"^  {name} [a-z]+ .*\n`{name} COMMAND --help` .*\n$")
                self.assertNotIn("tessera: error:", result.err)

    def test_help_is_a_word_too(self):
        for command in ("", "bench", "explain", *COMMANDS):
            with self.subTest(command):
                result = tessera("help", *command.split())
                self.assert_code(result, 0)
                self.assertEqual(result.out, tessera(*command.split(), "--help").out)
        self.assert_error(tessera("help", "clasify"), 2, "'clasify'")
        self.assert_error(tessera("help", "bench", "mo"), 2, "'mo'", "tessera bench --help")

    def test_groups_have_examples_of_their_own(self):
        for group in ("bench", "explain"):
            examples = tessera(group, "--help").out.partition("Examples:\n")[2].splitlines()
            self.assertGreater(len(examples), 1)
            for line in examples:
                self.assertTrue(line.startswith(f"  tessera {group} "), line)

    def test_an_option_shows_what_it_takes(self):
        """In the words of the reference, not in those of a compiler; a range is told, and told once."""
        shown = {}
        for command in COMMANDS:
            text = tessera(*command.split(), "--help").out
            shown |= {(command, option): kind for option, kind in re.findall(r"(?m)^  (?:-\w,)?(--[a-z-]+) ([A-Z]\S*)", text)}
            self.assertNotRegex(text, r"\b(INT|FLOAT|UINT)\b|:[A-Z]{3,}")
        self.assertEqual([option for (_, option), kind in shown.items() if kind.startswith("TEXT")], ["--text"])
        for (command, option), kind in {("classify", "--model"): "DIR", ("classify", "--input"): "FILE",
                                        ("classify", "--threads"): "N=0", ("classify", "--field"): "NAME",
                                        ("convert", "--output"): "DIR", ("merge", "--part"): "FILE",
                                        ("bench moe", "--tokens"): "N[,N...]", ("verify", "--text"): "FILE",
                                        ("classify", "--shard"): "I/N"}.items():
            self.assertEqual(shown[command, option], kind, (command, option))
        self.assertRegex(tessera("classify", "--help").out, r"--threads N=0 +0 = [a-z ]+; 0 to 1024\n")
        self.assertRegex(tessera("bench", "moe", "--help").out, r"--seconds NUMBER=2 .*; 0 to 600\n")

    def test_wrong_calls(self):
        self.assert_error(tessera("clasify"), 2, "'clasify'", "tessera --help")
        self.assert_error(tessera("clasify", "--help"), 2, "'clasify'")
        self.assert_error(tessera("--nonsense"), 2, "option: got '--nonsense'", "tessera --help")
        self.assert_error(tessera("--nonsense", "tessera"), 2, "option: got '--nonsense'")
        self.assert_error(tessera("bench", "--nonsense"), 2, "'--nonsense'", "tessera bench --help")
        self.assert_error(tessera("explain", "classify"), 2, "command: got 'classify'", "tessera explain --help")
        self.assert_error(tessera("classify"), 2, "neither --text nor --input")
        self.assert_error(tessera("verify"), 2, "verify")
        self.assert_error(tessera("bench", "moe"), 2, "--tokens", "(tessera bench moe --help)")
        self.assert_error(tessera("classify", "--model"), 2, "--model", "(tessera classify --help)")
        self.assert_error(tessera(""), 2, "command: got ''")
        self.assert_error(tessera("merge", "a", "b"), 2, "argument: got 'b'", "tessera merge --help")


class Suggestions(CliTest):
    """The nearest name, where one is near, on a line of its own behind the error."""

    def suggestion(self, *arguments):
        result = tessera(*arguments)
        self.assert_error(result, 2)
        lines = result.err.splitlines()
        self.assertTrue(lines[0].startswith("tessera: error: "), result.err)
        if len(lines) == 1:
            return None
        self.assertEqual(len(lines), 2, result.err)
        return re.fullmatch(r"tessera: did you mean '(.+)'\?", lines[1])[1]

    def test_commands(self):
        for typed, meant in ((["clasify"], "classify"), (["classfiy", "--text", "a"], "classify"), (["mrege"], "merge"),
                             (["bench", "mo"], "moe"), (["explain", "bit"], "bits"), (["help", "docter"], "doctor"),
                             (["frobnicate"], None), (["bench", "bits"], None)):
            with self.subTest(typed):
                self.assertEqual(self.suggestion(*typed), meant)

    def test_options(self):
        for typed, meant in (("--ouput", "--output"), ("--ouput=x", "--output"), ("--quite", "--quiet"),
                             ("--txet", "--text"), ("-input", "--input"), ("--batch_size", "--batch-size"),
                             ("--hlep", "--help"), ("--nonsense", None), ("-z", None), ("---", None)):
            with self.subTest(typed):
                self.assertEqual(self.suggestion("classify", "--model", self.model, typed), meant)
        self.assertEqual(self.suggestion("--versoin"), "--version")
        self.assertEqual(self.suggestion("explain", "bits", "--x", "1"), None)

    def test_the_unknown_is_told_before_the_missing(self):
        """A mistyped option that is required is both."""
        self.assert_error(tessera("classify", "--txet", "foo"), 2, "option: got '--txet'", "tessera classify --help")
        self.assert_error(tessera("classify", "--modle", self.model), 2, "option: got '--modle'")
        self.assert_error(tessera("bench", "moe", "--token", "4"), 2, "option: got '--token'", "tessera bench moe --help")
        self.assert_error(tessera("classify", "bad", "--ouput", "x"), 2, "argument: got 'bad'")

    def test_what_was_typed_is_escaped(self):
        for arguments in (("cla\nsify",), ("classify", "--ou\nput")):
            self.assert_error(tessera(*arguments), 2, r"\x0a")


class OneWording(CliTest):
    """What the parser finds wrong reads as everything else: where, got, expected."""

    def test_every_kind_of_wrong_call(self):
        for arguments, message in (
                (("bench", "moe"), "--tokens: got nothing, expected a value (tessera bench moe --help)"),
                (("merge",), "output: got nothing, expected a value (tessera merge --help)"),
                (("classify", "--model"), "--model: got no value, expected DIR (tessera classify --help)"),
                (("classify", "--field", "a", "--field", "b"),
                 "--field: got it 2 times, expected it once (tessera classify --help)"),
                (("classify", "--expert-threshold", "x"),
                 "--expert-threshold: got 'x', expected a number (tessera classify --help)"),
                (("classify", "--threads", "x"), "--threads: got 'x', expected an integer from 0 to 1024"),
                (("bench", "moe", "--preset", "olmoe", "--tokens", "4", "--seconds", "900"),
                 "--seconds: got '900', expected a number from 0 to 600 (tessera bench moe --help)"),
                (("explain", "moe", "--preset", "olmoe", "--tokens", "4", "--hbm-tb-s", "-5"),
                 "--hbm-tb-s: got '-5', expected a number above 0 (tessera explain moe --help)")):
            with self.subTest(arguments):
                result = tessera(*arguments)
                self.assert_code(result, 2)
                self.assertEqual(result.err, f"tessera: error: {message}\n")

    def test_every_command_tells_its_own_exit_codes(self):
        for command in COMMANDS:
            text = tessera(*command.split(), "--help").out
            self.assertEqual(text.count("Exit codes: 0 "), 1, command)
            self.assertIn("; 2 an option, a file or a model is wrong", text.replace("\n", " "), command)

    def test_short_options(self):
        text = self.write("in.txt", "good film\n")
        out = self.folder / "out.csv"
        result = tessera("classify", "-q", "-m", self.model, "-i", text, "-o", out)
        self.assert_code(result, 0)
        self.assertEqual(result.err, "")
        self.assertEqual(len(out.read_text().splitlines()), 2)
        for command in ("evaluate", "verify", "merge", "convert", "synth"):
            self.assertRegex(tessera(command, "--help").out, r"(?m)^  -[a-z],--(model|input|output|quiet) ")

    def test_one_line_for_people_and_the_engine_under_verbose(self):
        plain, verbose = (tessera("classify", "-m", self.model, "--device", "cpu", "--text", "x", *more).err
                          for more in ((), ("--verbose",)))
        self.assertNotIn("folded into the experts", plain)
        self.assertIn("folded into the experts", verbose)
        self.assertRegex(plain, r"(?m)^tessera: on the CPU, fp32, \d+ threads?$")


class Printed(CliTest):
    """Completion and manual know what the help knows."""

    def complete(self, *words):
        script = self.write("completion.bash", tessera("completion", "bash").out)
        program = (f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _tessera; "
                   'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "-c", program], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True,
                              cwd=self.folder)
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def test_bash_completes_commands_options_and_files(self):
        self.assertEqual(set(self.complete("tessera", "''")) & {"classify", "bench", "help"}, {"classify", "bench", "help"})
        self.assertEqual(self.complete("tessera", "cla"), ["classify"])
        self.assertEqual(self.complete("tessera", "bench", "m"), ["moe"])
        self.assertEqual(self.complete("tessera", "help", "ben"), ["bench"])
        self.assertEqual(self.complete("tessera", "classify", "--prob"), ["--probabilities"])
        self.assertEqual(self.complete("tessera", "explain", "moe", "--tr"), ["--trace"])
        self.write("reviews.csv", "x")
        self.assertEqual(self.complete("tessera", "classify", "--input", "rev"), ["reviews.csv"])
        self.assertEqual(self.complete("tessera", "classify", "--field", "re"), [])
        for command in COMMANDS:
            options = set(re.findall(r"(?m)^  (?:-\w,)?(--[a-z0-9-]+)", tessera(*command.split(), "--help").out))
            self.assertLessEqual(options, set(self.complete("tessera", *command.split(), "--")), command)

    def test_other_shells(self):
        for shell, start in (("zsh", "#compdef tessera\n"), ("fish", "# fish completion")):
            script = tessera("completion", shell).out
            self.assertTrue(script.startswith(start))
            self.assertIn("probabilities", script)
            if shutil.which(shell):
                subprocess.run([shell, "-n"], input=script, text=True, check=True)
        self.assert_error(tessera("completion", "csh"), 2, "shell: got 'csh', expected bash, zsh or fish")

    def test_the_manual_page(self):
        page = tessera("manual").out
        self.assertTrue(page.startswith(".TH TESSERA 1 "))
        plain = page.replace("\\-", "-").replace("\\e", "\\")
        for command in COMMANDS:
            self.assertIn(f"\n.SS tessera {command}\n", plain)
            for option in re.findall(r"(?m)^  (?:-\w,)?(--[a-z0-9-]+)", tessera(*command.split(), "--help").out):
                self.assertIn(option, plain)
        if shutil.which("man"):
            subprocess.run(["man", "-l", "--warnings=all", "-"], input=page, text=True, check=True, stdout=subprocess.PIPE,
                           env={**os.environ, "MANPAGER": "cat"})


class DoctorTest(CliTest):
    def test_tells_about_the_machine_and_is_healthy(self):
        result = tessera("doctor")
        self.assert_code(result, 0)
        for name in ("processor", "features", "threads", "memory", "products", "GPU"):
            self.assertRegex(result.out, rf"(?m)^{name} +\S")
        self.assertRegex(result.out, r"fp32: agrees with the oracle, off by at most \S+, \d+ sentences/s")
        self.assertEqual(result.lines[-1], "healthy")


if __name__ == "__main__":
    unittest.main()
