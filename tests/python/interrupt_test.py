"""Ctrl-C during long calls: it is seen within a fraction of what is left, nothing is written afterwards, and what was
interrupted works on."""
import os
import signal
import threading
import time
import unittest

import numpy
import tessera
from tessera import _native


class Interrupts(unittest.TestCase):
    def setUp(self):
        # A job in the background of a script ignores the signal, and would never end: this is of what it does else.
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))

    def interrupted(self, call, seconds):
        """`call` ends by KeyboardInterrupt within so many seconds."""
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        with self.assertRaises(KeyboardInterrupt):
            call()
        self.assertLess(time.monotonic() - begin, seconds)

    def test_layer(self):
        tokens, hidden, intermediate, experts = 1 << 16, 512, 2048, 4
        random = numpy.random.default_rng(3)
        x = random.standard_normal((tokens, hidden), numpy.float32)
        gate_up = random.standard_normal((experts, 2 * intermediate, hidden), numpy.float32) / hidden**0.5
        down = random.standard_normal((experts, hidden, intermediate), numpy.float32) / intermediate**0.5
        ids = (numpy.arange(tokens, dtype=numpy.int32) % experts)[:, None]
        weights = numpy.ones((tokens, 1), numpy.float32)
        layer = tessera.MoELayer(gate_up, down, top_k=1, num_threads=1)  # 400 GFLOP: seconds of any core
        few = slice(0, 1024)
        begin = time.monotonic()
        expected = layer(x[few], ids[few].copy(), weights[few].copy())
        whole = (time.monotonic() - begin) * tokens / 1024  # what the call would last
        out = numpy.full_like(x, numpy.nan)
        self.interrupted(lambda: layer(x, ids, weights, out=out), 1.5 + whole / 8)
        written = out.copy()
        time.sleep(0.2)
        self.assertTrue(numpy.array_equal(out, written, equal_nan=True), "something is written afterwards")
        self.assertTrue(numpy.array_equal(layer(x[few], ids[few].copy(), weights[few].copy()), expected))

    def test_what_is_loaded(self):
        """What a load calls, on something that lasts: a layer of the library that is run until it is told to stop."""
        ended = []

        def load():
            layer = tessera.MoELayer(numpy.ones((1, 64, 32), numpy.float32), numpy.ones((1, 32, 32), numpy.float32),
                                     top_k=1, num_threads=1)
            x, ids = numpy.ones((8, 32), numpy.float32), numpy.zeros((8, 1), numpy.int32)
            try:
                while True:  # each is short: the flag of the thread ends one of them
                    layer(x, ids, numpy.ones((8, 1), numpy.float32))
            except tessera.TesseraError as error:
                ended.append(str(error))
                raise

        self.interrupted(lambda: _native.in_background(load), 5)
        self.assertEqual(ended, ["stopped by its caller"])

    def test_other_threads_and_results(self):
        self.assertEqual(_native.in_background(lambda: 5), 5)
        with self.assertRaisesRegex(ValueError, "in there"):
            _native.in_background(lambda: int("in there"))
        seen = []
        thread = threading.Thread(target=lambda: seen.append(_native.in_background(threading.current_thread)))
        thread.start()
        thread.join()
        self.assertEqual(seen, [thread])  # signals come to the main thread: others need no second one
        self.assertIsNot(_native.in_background(threading.current_thread), threading.main_thread())


if __name__ == "__main__":
    unittest.main()
