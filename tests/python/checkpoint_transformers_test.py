"""Layers loaded from what Transformers' own classes save, on the CPU: tests/gpu/python/test_checkpoint.py, where PyTorch and
Transformers are installed beside the package."""
import importlib.util
import os
import pathlib
import sys
import unittest

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
TESTS = pathlib.Path(__file__).resolve().parents[1] / "gpu" / "python"


class TransformersCheckpoints(unittest.TestCase):
    @unittest.skipIf(MISSING, f"no {' and no '.join(MISSING)} here: run by make gpu-test")
    def test_on_the_cpu(self):
        self.fail("where nothing is missing load_tests gives the tests themselves")


def load_tests(loader, tests, pattern):
    if MISSING:
        return tests
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of this process: the library here may have no kernels
    sys.path.insert(0, str(TESTS))
    return loader.loadTestsFromName("test_checkpoint")


if __name__ == "__main__":
    unittest.main()
