"""Transformers' experts of 8-bit weights on the CPU: tests/gpu/python/test_transformers_fp8.py, where PyTorch and Transformers
are installed beside the package."""
import unittest

from torch_support import MISSING, WHY, load


class TransformersFp8(unittest.TestCase):
    @unittest.skipIf(MISSING, WHY)
    def test_on_the_cpu(self):
        self.fail("where nothing is missing load_tests gives the tests themselves")


def load_tests(loader, tests, pattern):
    return load(loader, tests, "test_transformers_fp8")


if __name__ == "__main__":
    unittest.main()
