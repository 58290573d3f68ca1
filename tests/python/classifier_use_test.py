"""tessera.Classifier as people use it: containers of texts, copies, Ctrl-C, odd names and devices, limits on processes."""
import copy
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import unittest

import numpy
import tessera

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "movie-reviews"
TEXTS = ("A wonderful, moving film.", "Dull.")
SOME_USER = 54321  # that has no process of its own


class ArrowScalar:
    """As the elements of an Arrow array."""

    def __init__(self, text):
        self.text = text

    def as_py(self):
        return self.text


class Series:
    """As of pandas: iterable, no Sequence."""

    def __init__(self, texts):
        self.texts = list(texts)

    def __iter__(self):
        return iter(self.texts)

    def __len__(self):
        return len(self.texts)


class Use(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tessera.Classifier(MODEL, device="cpu")
        cls.expected = cls.model(list(TEXTS))

    def test_containers(self):
        for texts in (TEXTS, numpy.array(TEXTS), numpy.array(TEXTS, object), Series(TEXTS), iter(TEXTS),
                      (text for text in TEXTS), dict.fromkeys(TEXTS).keys(), [ArrowScalar(text) for text in TEXTS]):
            self.assertEqual(self.model(texts), self.expected, type(texts))

    def test_what_is_no_list_of_texts(self):
        for texts, kind in ((b"good", TypeError), (3, TypeError), (None, TypeError), ({"a": 1}, TypeError),
                            ({"good", "bad"}, TypeError), (numpy.array("good"), ValueError),
                            (numpy.array([["good"]]), ValueError), (["good", None], TypeError),
                            (Series(["good", 1.5]), TypeError)):
            with self.assertRaisesRegex(kind, "^texts"):
                self.model(texts)

    def test_a_nul_is_refused_as_the_command_does(self):
        for text, where in (("good\0film", "texts.0.: got a NUL byte at byte 4"),):
            with self.assertRaisesRegex(ValueError, where):
                self.model(text)
        texts = ["good"] * 3000
        texts[2500] = "\0"
        with self.assertRaisesRegex(ValueError, r"^texts\[2500\]: got a NUL byte"):
            self.model.tokenize(texts)

    def test_names_with_a_nul(self):
        for path in (f"{MODEL}\0/x", f"{MODEL}\0".encode(), pathlib.Path(f"{MODEL}\0x")):
            with self.assertRaisesRegex(ValueError, "^path: got .*NUL"):
                tessera.Classifier(path, device="cpu")
        with self.assertRaisesRegex(ValueError, "^form: got .*NUL"):
            tessera.Classifier(MODEL, device="cpu", form="auto\0x")
        with self.assertRaisesRegex(ValueError, "^path: got ''"):
            tessera.Classifier("", device="cpu")

    def test_devices(self):
        for device in ("cuda:4294967296", "cuda:99999999999", "cuda:2147483648", "cuda:-1", "cuda:", "cuda:1x", "cuda: 1",
                       "cuda:\N{ARABIC-INDIC DIGIT ONE}", "cuda:\N{SUPERSCRIPT TWO}", "cuda:0\n", "CUDA", "gpu"):
            with self.assertRaises(ValueError) as raised:
                tessera.Classifier(MODEL, device=device)
            self.assertEqual(str(raised.exception), f"device: got {device!r}, expected auto, cpu, cuda, cuda:1")

    def test_copies(self):
        copied = copy.deepcopy(self.model)
        self.assertEqual(copied(list(TEXTS)), self.expected)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            self.assertEqual(pool.apply(self.model, (list(TEXTS),)), self.expected)
        weights = numpy.ones((4, 16, 8), numpy.float32), numpy.ones((4, 8, 8), numpy.float32)
        layer = tessera.MoELayer(*weights, top_k=1)
        with self.assertRaisesRegex(TypeError, "^MoELayer: got .*expected a new MoELayer"):
            copy.deepcopy(layer)

    def test_slices_change_no_bit(self):
        ids = self.model.tokenize([f"good film {i}" for i in range(1500)])
        whole = self.model.logits(ids)
        for begin in (0, 255, 256, 700):
            self.assertTrue(numpy.array_equal(self.model.logits(ids[begin:begin + 3]), whole[begin:begin + 3]))
        ids[1400, 0] = self.model.vocab_size
        with self.assertRaisesRegex(ValueError, r"^ids\[1400\]"):
            self.model.logits(ids)

    def test_ctrl_c_ends_a_long_call(self):
        """The call alone takes seconds; Python sees the signal within one slice of it."""
        oracle = tessera.Classifier(MODEL, device="cpu", precision="fp64", num_threads=1)
        ids = numpy.tile(oracle.tokenize(TEXTS), (200, 1))
        begin = time.monotonic()
        oracle.logits(ids)
        a_row = (time.monotonic() - begin) / len(ids)
        rows = int(8 / a_row / len(ids)) + 1  # eight seconds
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            oracle.logits(numpy.tile(ids, (rows, 1)))
        self.assertLess(time.monotonic() - begin, 4)


class FewProcesses(unittest.TestCase):
    """A host process is not ended by a limit on processes: objects have fewer threads, and the same results."""

    PROGRAM = """
import os, resource, sys
import numpy, tessera
limit, folder = int(sys.argv[1]), sys.argv[2]
random = numpy.random.default_rng(1)  # imports, which the other user may not be able to read
x, gate_up, down = (random.standard_normal(shape).astype(numpy.float32) for shape in ((64, 64), (8, 64, 64), (8, 64, 32)))
os.setgid({user}); os.setuid({user})
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
layer = tessera.MoELayer(gate_up, down, top_k=1, num_threads=8)
out = layer(x, numpy.arange(64, dtype=numpy.int32)[:, None] % 8, numpy.ones((64, 1), numpy.float32))
print(hash(out.tobytes()), tessera.Classifier(folder, device="cpu", num_threads=8)(["good", "dull film"]))
"""

    def test_every_limit(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to be a user without other processes")
        program = self.PROGRAM.format(user=SOME_USER)
        outputs = set()
        for limit in (1, 2, 3, 5, 8, 64):
            done = subprocess.run([sys.executable, "-c", program, str(limit), MODEL], capture_output=True, text=True,
                                  env={**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}, check=False)
            if "Permission denied" in done.stderr:
                self.skipTest("another user cannot read the package or the model here")
            self.assertEqual(done.returncode, 0, f"limit {limit}: {done.stderr}")
            outputs.add(done.stdout)
        self.assertEqual(len(outputs), 1, outputs)


if __name__ == "__main__":
    unittest.main()
