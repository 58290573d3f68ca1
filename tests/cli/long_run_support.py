"""A model slow enough to be broken off, and ways to break a run off."""
import json
import pathlib
import signal
import subprocess
import time

from cli_support import CliTest, TESSERA, TIMEOUT_SECONDS, tessera

NUM_RECORDS = 2400  # some seconds: the journal begins after one
BAD_RECORDS = (3, 1500)


def break_off(journal, arguments, number=signal.SIGKILL):
    """Starts a run and ends it by a signal once its journal counts something. Exit code and messages. On one thread:
    on many processors it would be over too soon."""
    process = subprocess.Popen([TESSERA, "classify", *map(str, arguments), "--threads", "1"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # some batches more, which the journal does not count
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT_SECONDS)
    if not journal.exists():
        raise AssertionError(f"the run ended too early, or no journal came: {err.decode()}")
    return process.returncode, err.decode()


class LongRunTest(CliTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.slow_model = cls.make_slow_model(NUM_RECORDS)
        cls.inputs = cls.make_inputs(cls.slow_model)

    @staticmethod
    def make_inputs(model):
        """The same sentences in every format, two of them records that fail."""
        row = len((model / "inputs.bin").read_bytes()) // NUM_RECORDS
        ids = bytearray((model / "inputs.bin").read_bytes())
        lines = (model / "inputs.txt").read_bytes().splitlines()
        for index in BAD_RECORDS:
            ids[index * row:index * row + 4] = (0x7FFFFFFF).to_bytes(4, "little")
            lines[index] = b"\xff"
        texts = [line.decode("latin-1") for line in lines]
        content = {
            "ids": bytes(ids),
            "text": b"\n".join(lines) + b"\n",
            "csv": b"id,text\r\n" + b"".join(b'"%d\n","%s"\r\n' % (i, line) for i, line in enumerate(lines)),
            "jsonl": "".join(json.dumps({"text": t}) + "\n" if i not in BAD_RECORDS else "{\n"
                             for i, t in enumerate(texts)).encode(),
        }
        inputs = {}
        for form, data in content.items():
            inputs[form] = pathlib.Path(model) / f"in.{form}"
            inputs[form].write_bytes(data)
        return inputs

    def slow_arguments(self, form, output, *more):
        return ["--model", self.slow_model, "--input", self.inputs[form], "--format", form, "--precision", "fp64",
                "--output", self.folder / output, *more]

    def whole(self, form, output_format, *more):
        """The output of a run that is not disturbed; a class makes each once."""
        cache = type(self).__dict__.get("outputs")
        if cache is None:
            cache = {}
            type(self).outputs = cache
        key = (form, output_format, more)
        if key not in cache:
            path = self.slow_model / f"whole.{form}.{output_format}.{len(cache)}"
            result = tessera("classify", *self.slow_arguments(form, path, "--output-format", output_format, *more))
            self.assert_code(result, 1)
            cache[key] = path.read_bytes()
        return cache[key]

    def break_off(self, *arguments, number=signal.SIGKILL, journal="o.journal"):
        return break_off(self.folder / journal, arguments, number)

    def last_checkpoint(self, name="o.journal"):
        return json.loads((self.folder / name).read_text().splitlines()[-1])
