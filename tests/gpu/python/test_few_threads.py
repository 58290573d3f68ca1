"""A limit on processes that is reached while a classifier or a layer starts its threads beside a GPU: fewer of them, or
an error, and the process goes on."""
import os
import pathlib
import shutil
import tempfile
import unittest

from tensor_support import DEVICES, python

MODEL = pathlib.Path(__file__).resolve().parents[3] / "models" / "movie-reviews"
PROGRAM = """
import os, resource, numpy, tessera, torch
from tensor_support import Layer
DEVICE, MODEL = {device!r}, {model!r}
layer = Layer(DEVICE)
given = layer.inputs(9)
expected = tessera.moe(given[0], layer.gate_up, layer.down, *given[1:])
known = tessera.Classifier(MODEL, device=DEVICE)
ids = known.tokenize(["A wonderful, moving film.", "Dull."] * 40)
logits = known.logits(ids)
if os.geteuid() == 0:
    os.setgid(54321)  # a user without other processes: none of root's are counted
    os.setuid(54321)
def attempt(call):
    try:
        return "right" if call() else "wrong"
    except (RuntimeError, MemoryError, OSError) as error:
        return "refused: " + str(error)
def classifier():
    made = tessera.Classifier(MODEL, device=DEVICE, num_threads=16)
    return numpy.array_equal(made.logits(ids), logits)
def fresh_layer():
    made = tessera.MoELayer(layer.gate_up, layer.down, top_k=3, num_threads=0 if DEVICE == "cuda" else 16)
    return torch.equal(made(*given), expected)
for limit in (40, 1):  # a part of what is wanted, beside CUDA's own threads; nothing any more
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    print(attempt(classifier))
    print(attempt(fresh_layer))
    print(attempt(lambda: numpy.array_equal(known.logits(ids), logits)))
"""


class FewThreads(unittest.TestCase):
    def test_limits(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            model = shutil.copytree(MODEL, pathlib.Path(folder) / "model")
            code, output = python(PROGRAM.format(device=DEVICES[-1], model=str(model)))
        said = output.splitlines()
        self.assertEqual((code, len(said)), (0, 6), output)
        for line in said:
            self.assertRegex(line, "^(right|refused: .*)$")
        self.assertEqual((said[2], said[5]), ("right", "right"), output)


if __name__ == "__main__":
    unittest.main()
