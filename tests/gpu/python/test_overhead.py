"""Every way into the library gives the layer's result, and none costs the processor that calls it a thousand times what it
should. How much a call costs is measured by bench/gpu/call_overhead.py: a loaded host must not fail a correctness suite."""
import importlib.util
import pathlib
import time
import unittest

import tessera
import torch
from tensor_support import Layer

BENCH = pathlib.Path(__file__).resolve().parents[3] / "bench" / "gpu" / "call_overhead.py"
CALLS = 20
LIMIT_US = 1000.0  # of the fastest call of CALLS; some tens are right, a copy of the weights or a compilation is far more


def load_bench():
    specification = importlib.util.spec_from_file_location("call_overhead", BENCH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@unittest.skipUnless(torch.cuda.is_available(), "no GPU")
class Overhead(unittest.TestCase):
    def test_calls(self):
        bench = load_bench()
        ways, out, expected = bench.ways_in(torch, tessera, Layer("cuda", **bench.SHAPE))
        with torch.inference_mode():
            self.assertEqual(bench.wrong_ways(torch, ways, out, expected), [])
            self.assertEqual([line.split(":")[0] for line in bench.wrong_ways(torch, ways, out, 1.01 * expected)], list(ways))
            for way, call in ways.items():
                times = []
                for _ in range(CALLS):
                    torch.cuda.synchronize()
                    begin = time.perf_counter_ns()
                    call()
                    times.append(time.perf_counter_ns() - begin)
                self.assertLess(min(times) / 1000, LIMIT_US, way)


if __name__ == "__main__":
    unittest.main()
