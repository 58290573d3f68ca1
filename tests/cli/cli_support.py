"""Runs the tessera command as a process. TESSERA_BIN names it, TESSERA_SHARED optional data beside the repository."""
import array
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TESSERA = os.environ.get("TESSERA_BIN") or str(ROOT / "build" / "test" / "tools" / "tessera" / "tessera")
SHARED = pathlib.Path(os.environ.get("TESSERA_SHARED") or ROOT.parent / "shared")
SHIPPED_MODEL = ROOT / "models" / "movie-reviews"
TIMEOUT_SECONDS = 120
SLOW_SIZES = {"embedding_size": 128, "num_filters": 128}


class Result:
    """Exit code, output and messages of a run that has ended."""

    def __init__(self, code, out, err):
        self.code, self.out_bytes, self.err = code, out, err.decode("utf-8", "replace")

    @property
    def out(self):
        return self.out_bytes.decode("utf-8")

    @property
    def lines(self):
        return self.out.splitlines()

    @property
    def json_lines(self):
        return [json.loads(line) for line in self.lines]

    @property
    def labels(self):
        return [record.get("label") for record in self.json_lines]


def tessera(*arguments, stdin=b"", env=None):
    """Runs the command to its end."""
    if isinstance(stdin, str):
        stdin = stdin.encode()
    done = subprocess.run([TESSERA, *map(str, arguments)], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=TIMEOUT_SECONDS, env={**os.environ, **(env or {})}, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def floats(data):
    values = array.array("f")
    values.frombytes(data)
    return list(values)


def as_bytes(code, values):
    return array.array(code, values).tobytes()


class CommandTest(unittest.TestCase):
    """A folder of its own for each test, and what the tests of all commands assert."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def assert_code(self, result, code):
        self.assertEqual(result.code, code, f"messages:\n{result.err}\noutput:\n{result.out_bytes[-2000:]!r}")

    def assert_error(self, result, code, *parts):
        """An exit code and one message line that starts as messages do and holds all the parts."""
        self.assert_code(result, code)
        lines = [line for line in result.err.splitlines() if line.startswith("tessera: error: ")]
        self.assertEqual(len(lines), 1, result.err)
        for part in parts:
            self.assertIn(str(part), lines[0])

    def assert_nothing_left(self, *names):
        """The test's folder holds just these names: no output, whole or partial."""
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), sorted(names))


class CliTest(CommandTest):
    """A small synthetic model with 100 inputs that all tests of a class share."""

    @classmethod
    def setUpClass(cls):
        cls.class_folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.class_folder.cleanup)
        cls.model = pathlib.Path(cls.class_folder.name) / "model"
        made = tessera("synth", "--preset", "small", "--seed", 1, "--output", cls.model, "--inputs", 100, "--embeddings")
        if made.code != 0:
            raise RuntimeError(f"synth failed: {made.err}")
        cls.sequence_length = json.loads((cls.model / "config.json").read_text())["sequence_length"]
        cls.ids = cls.model / "inputs.bin"
        cls.embeddings = cls.model / "input_embeddings.bin"
        cls.text = cls.model / "inputs.txt"

    @classmethod
    def make_slow_model(cls, num_inputs):
        """A checkpoint that takes the fp64 oracle some milliseconds a sentence: long enough to break a run off."""
        config = json.loads((cls.model / "config.json").read_text()) | SLOW_SIZES
        sizes = cls.model / "slow.json"
        sizes.write_text(json.dumps(config))
        slow_model = cls.model / "slow"
        made = tessera("synth", "--config", sizes, "--output", slow_model, "--inputs", num_inputs)
        if made.code != 0:
            raise RuntimeError(f"synth failed: {made.err}")
        return slow_model

    def classify(self, *arguments, stdin=b"", model=None):
        return tessera("classify", "--model", model or self.model, *arguments, stdin=stdin)
