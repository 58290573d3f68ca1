"""CuPy arrays through DLPack, on CuPy's current stream; memory comes from the caller and goes back to its pool."""
import gc
import unittest

import tessera
import torch
from tensor_support import Layer, problems

ON_GPU = unittest.skipUnless(torch.cuda.is_available(), "no GPU")
if torch.cuda.is_available():
    import cupy


@ON_GPU
class CuPy(unittest.TestCase):
    def setUp(self):
        self.layer = Layer("cuda", torch.float16)
        self.tensors = self.layer.inputs(40)
        self.expected = tessera.moe(self.tensors[0], self.layer.gate_up, self.layer.down, *self.tensors[1:])
        self.weights = [self.copy(self.layer.gate_up), self.copy(self.layer.down)]
        self.given = [self.copy(tensor) for tensor in self.tensors]
        self.made = tessera.MoELayer(*self.weights, top_k=3)
        self.workspace = cupy.empty(self.made.workspace_bytes(40), cupy.uint8)
        self.out = cupy.full((40, self.layer.hidden), cupy.nan, cupy.float16)
        torch.cuda.synchronize()
        cupy.cuda.Device().synchronize()

    def copy(self, tensor):
        return cupy.asarray(tensor.cpu().numpy())

    def assertRight(self, out):
        cupy.cuda.Device().synchronize()
        self.assertTrue(torch.equal(torch.from_dlpack(out).cpu(), self.expected.cpu()))

    def test_layer(self):
        self.assertEqual(problems(self.expected, self.layer.reference(*self.tensors)), [])
        self.assertIs(self.made(*self.given, out=self.out, workspace=self.workspace), self.out)
        self.assertRight(self.out)

    def test_function(self):
        x, ids, weights = self.given
        tessera.moe(x, *self.weights, ids, weights, out=self.out, workspace=self.workspace)
        self.assertRight(self.out)

    def test_transposed_weights(self):
        transposed = [cupy.ascontiguousarray(w.transpose(0, 2, 1)) for w in self.weights]
        made = tessera.MoELayer(*transposed, top_k=3, transposed=True)
        del transposed
        made(*self.given, out=self.out, workspace=self.workspace)
        self.assertRight(self.out)

    def late(self, stream, call):
        """`call(x)` where x is written late on `stream`: wrong unless the work is on that stream too."""
        x = cupy.zeros_like(self.given[0])
        cupy.cuda.Device().synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            torch.cuda._sleep(75_000_000)
        with stream:
            cupy.copyto(x, self.given[0])
        call(x)

    def test_the_current_stream(self):
        stream = cupy.cuda.Stream(non_blocking=True)

        def call(x):
            with stream:
                self.made(x, *self.given[1:], out=self.out, workspace=self.workspace)

        self.late(stream, call)
        self.assertRight(self.out)

    def test_a_stream_that_is_named(self):
        stream = cupy.cuda.Stream(non_blocking=True)
        self.late(stream, lambda x: self.made(x, *self.given[1:], out=self.out, workspace=self.workspace,
                                              stream=stream.ptr))
        self.assertRight(self.out)

    def test_the_check_sees_another_stream(self):
        stream, other = cupy.cuda.Stream(non_blocking=True), torch.cuda.Stream()
        x = torch.zeros_like(self.tensors[0])
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr)):
            torch.cuda._sleep(75_000_000)
            x.copy_(self.tensors[0])
        got = tessera.moe(x, self.layer.gate_up, self.layer.down, *self.tensors[1:], stream=other.cuda_stream)
        torch.cuda.synchronize()
        self.assertFalse(torch.equal(got, self.expected))

    def test_memory_goes_back(self):
        pool = cupy.get_default_memory_pool()
        gc.collect()
        before = pool.used_bytes()
        for _ in range(5):
            given = [self.copy(tensor) for tensor in self.tensors]
            made = tessera.MoELayer(*[w.copy() for w in self.weights], top_k=3)
            made(*given, out=self.out, workspace=self.workspace)
        del given, made
        gc.collect()
        self.assertEqual(pool.used_bytes(), before)

    def test_bad_arrays(self):
        x, ids, weights = self.given
        memory = {"out": self.out, "workspace": self.workspace}
        for kind, name, call in (
                (TypeError, "x", lambda: self.made(x.astype(cupy.float32), ids, weights, **memory)),
                (ValueError, "x", lambda: self.made(x[:, :64].copy(), ids, weights, **memory)),
                (BufferError, "x", lambda: self.made(x[::2], ids[::2].copy(), weights[::2].copy(), **memory)),
                (ValueError, "topk_ids", lambda: self.made(x, ids.get(), weights, **memory)),
                (ValueError, "out", lambda: self.made(x, ids, weights, workspace=self.workspace)),
                (ValueError, "workspace", lambda: self.made(x, ids, weights, out=self.out)),
                (TypeError, "gate_up", lambda: tessera.prepare_weights(*self.weights))):
            with self.assertRaises(kind) as raised:
                call()
            self.assertTrue(str(raised.exception).startswith(f"{name}: got"), raised.exception)


if __name__ == "__main__":
    unittest.main()
