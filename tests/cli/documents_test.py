"""Documents that show what the program says, against the program."""
import os
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class CommandReference(unittest.TestCase):
    def test_docs_cli_is_what_the_program_says(self):
        done = subprocess.run([sys.executable, ROOT / "scripts" / "cli_reference.py", os.environ["TESSERA_BIN"]],
                              text=True, capture_output=True, check=True)
        self.assertIn("## classify", done.stdout)
        self.assertEqual((ROOT / "docs" / "reference" / "cli.md").read_text(), done.stdout,
                         "run scripts/cli_reference.py build/test/tools/tessera/tessera > docs/reference/cli.md")


if __name__ == "__main__":
    unittest.main()
