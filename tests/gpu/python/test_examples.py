"""The examples that need PyTorch run as they stand: on every GPU there is, else on the CPU."""
import pathlib
import subprocess
import sys
import unittest

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent.parent.parent / "examples"


class Examples(unittest.TestCase):
    def run_example(self, name, *arguments):
        done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False,
                              timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr[-2000:])
        return done.stdout

    def test_a_model_of_transformers(self):
        self.assertIn("the same next token", self.run_example("transformers_qwen3_moe.py"))

    def test_experts_over_two_processes_of_a_cpu(self):
        said = self.run_example("expert_parallel_moe.py", "--device", "cpu", "--processes", "2", "--tokens", "2,34")
        self.assertEqual(said.count("of ideal"), 2, said)
        self.assertNotIn("OTHER BITS", said)

    def test_experts_over_what_there_is(self):
        said = self.run_example("expert_parallel_moe.py", "--tokens", "8,64,512")
        self.assertEqual(said.count("of ideal"), 3, said)


if __name__ == "__main__":
    unittest.main()
