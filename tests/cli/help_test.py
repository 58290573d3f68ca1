"""--help, --version, doctor, and what the command says when it is called wrongly."""
import re
import unittest

from cli_support import CliTest, tessera

COMMANDS = ("classify", "merge", "evaluate", "verify", "convert", "synth", "doctor", "bench classify", "bench moe",
            "explain moe", "explain bits")


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

    def test_wrong_calls(self):
        self.assert_error(tessera(), 2, "subcommand")
        self.assert_error(tessera("clasify"), 2, "'clasify'", "tessera --help")
        self.assert_error(tessera("--nonsense"), 2)
        self.assert_error(tessera("bench"), 2, "subcommand")
        self.assert_error(tessera("explain", "classify"), 2)
        self.assert_error(tessera("classify"), 2, "--model")


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
