"""Tests of tests/gpu/python that run on a CPU, too, where PyTorch and Transformers are installed beside the package."""
import importlib.util
import os
import pathlib
import sys

MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
WHY = f"no {' and no '.join(MISSING)} here: run by make gpu-test"
TESTS = pathlib.Path(__file__).resolve().parents[1] / "gpu" / "python"


def load(loader, tests, module):
    """What load_tests of a file returns: its own tests where something is missing, else those of `module`."""
    if MISSING:
        return tests
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of this process: the library here may have no kernels
    sys.path.insert(0, str(TESTS))
    return loader.loadTestsFromName(module)
