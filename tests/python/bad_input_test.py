"""Every argument that cannot be right raises the fitting exception, which names it, before anything is written."""
import unittest

import numpy
import tessera
from python_support import Case, Producer, arguments, poisoned, shifted

NAMES = ("x", "gate_up", "down", "topk_ids", "topk_weights")


def every_second_column(array):
    return numpy.repeat(array, 2, axis=-1)[..., ::2]


def in_odd_order(array):
    return array.astype(array.dtype.newbyteorder())


class BadInput(unittest.TestCase):
    def setUp(self):
        self.case = Case()
        given, self.named = arguments(self.case)
        self.given = dict(zip(NAMES, given))
        self.out = poisoned(self.case.x.shape, self.case.dtype)

    def refused(self, kind, name, call, /, *arguments, **named):
        with self.assertRaises(kind) as raised:
            call(*arguments, **named)
        self.assertIs(type(raised.exception), kind, raised.exception)
        message = str(raised.exception)
        self.assertTrue(message.startswith(name), f"{message!r} does not begin with {name!r}")
        self.assertIn("expected", message)
        return message

    def moe(self, kind, name, **changed):
        """tessera.moe with some arguments changed raises `kind` naming `name`, and out stays as it was."""
        call = {**self.given, **self.named, "out": self.out, **changed}
        self.refused(kind, name, lambda: tessera.moe(**call))
        self.assertTrue((self.out.view(numpy.uint8) == 0xFF).all())

    def test_the_arguments_themselves_are_right(self):
        tessera.moe(**self.given, **self.named, out=self.out)
        self.assertFalse(numpy.isnan(self.out).any())

    def test_no_arrays(self):
        for name in NAMES:
            for value in (None, 3.0, "text", [[1.0]], object()):
                self.moe(TypeError, name, **{name: value})
        for name in ("gate_up_bias", "down_bias", "expert_map", "workspace", "out"):
            self.moe(TypeError, name, **{name: 3.0})
        self.moe(TypeError, "x", x=numpy.ma.masked_array(self.given["x"]))

    def test_types(self):
        for name, wrong in (("x", "float64"), ("x", "int32"), ("gate_up", "float16"), ("down", "float16"),
                            ("topk_ids", "float32"), ("topk_ids", "int16"), ("topk_ids", "uint64"),
                            ("topk_weights", "float64"), ("topk_weights", "float16")):
            self.moe(TypeError, name, **{name: self.given[name].astype(wrong)})
        self.moe(TypeError, "out", out=self.out.astype(numpy.float64))
        self.moe(TypeError, "workspace", workspace=numpy.zeros(1 << 20, numpy.int8))
        self.moe(TypeError, "gate_up_bias", gate_up_bias=numpy.zeros((5, 80), numpy.float16))
        self.moe(TypeError, "expert_map", expert_map=numpy.zeros(5, numpy.int64))
        for name in NAMES:
            self.moe(TypeError, name, **{name: in_odd_order(self.given[name])})
            self.moe(TypeError, name, **{name: Producer(self.given[name], code=5)})
            self.moe(TypeError, name, **{name: Producer(self.given[name], lanes=2)})

    def test_shapes(self):
        x, gate_up, down, ids, weights = (self.given[name] for name in NAMES)
        for name, wrong in (("x", x[0]), ("x", x[None]), ("gate_up", gate_up[0]), ("gate_up", gate_up[:, :-1].copy()),
                            ("gate_up", gate_up[:, :78].copy()), ("gate_up", gate_up[:, :, :56].copy()),
                            ("down", down[:-1]), ("down", down[:, :56].copy()), ("down", down[0]),
                            ("topk_ids", ids[:-1]), ("topk_ids", ids[0]), ("topk_weights", weights[:-1]),
                            ("topk_weights", weights[:, :-1].copy()), ("topk_weights", weights[0])):
            self.moe(ValueError, name, **{name: wrong})
        self.moe(ValueError, "gate_up", x=x[:, :56].copy(), out=None)
        self.moe(ValueError, "out", out=poisoned((8, 64), "float32"))
        self.moe(ValueError, "out", out=poisoned((9, 72), "float32"))
        self.moe(ValueError, "gate_up_bias", gate_up_bias=numpy.zeros((5, 40), numpy.float32))
        self.moe(ValueError, "down_bias", down_bias=numpy.zeros(64, numpy.float32))
        self.moe(ValueError, "expert_map", expert_map=numpy.zeros((5, 1), numpy.int32))
        self.moe(ValueError, "workspace", workspace=numpy.zeros(16, numpy.uint8))
        self.moe(ValueError, "workspace", workspace=numpy.zeros((1, 1 << 20), numpy.uint8))

    def test_sizes_that_the_library_does_not_take(self):
        wide = Case(hidden=60)
        given, named = arguments(wide)
        self.refused(ValueError, "gate_up", tessera.moe, *given, **named)
        given, named = arguments(Case(intermediate=36))
        self.refused(ValueError, "gate_up", tessera.moe, *given, **named)
        given, named = arguments(Case(top_k=33))
        self.refused(ValueError, "top_k", tessera.moe, *given, **named)
        given, named = arguments(Case(top_k=1))
        self.refused(ValueError, "top_k", tessera.moe, *given[:3], given[3][:, :0], given[4][:, :0], **named)

    def test_transposed_weights_are_told_what_to_do(self):
        transposed = {name: numpy.ascontiguousarray(self.given[name].transpose(0, 2, 1)) for name in ("gate_up", "down")}
        message = self.refused(ValueError, "down", tessera.moe, **{**self.given, "down": transposed["down"]})
        self.assertIn("prepare_weights", message)
        message = self.refused(ValueError, "gate_up", tessera.moe, **{**self.given, **transposed})
        self.assertIn("prepare_weights", message)

    def test_strides(self):
        for name in NAMES:
            self.moe(BufferError, name, **{name: every_second_column(self.given[name])})
        self.moe(BufferError, "x", x=numpy.broadcast_to(self.given["x"][:1], (9, 64)))
        self.moe(BufferError, "x", x=self.given["x"][::-1])
        self.moe(BufferError, "out", out=every_second_column(self.out))
        self.moe(BufferError, "workspace", workspace=numpy.zeros(1 << 20, numpy.uint8)[::2])
        self.moe(BufferError, "down_bias", down_bias=every_second_column(numpy.zeros((5, 64), numpy.float32)))

    def test_alignment(self):
        for name in NAMES:
            self.moe(BufferError, name, **{name: shifted(self.given[name])})
        self.moe(BufferError, "out", out=shifted(self.out))
        self.moe(BufferError, "workspace", workspace=shifted(numpy.zeros(1 << 20, numpy.uint8)))
        self.moe(BufferError, "expert_map", expert_map=shifted(numpy.zeros(5, numpy.int32)))

    def test_memory_that_may_not_be_written(self):
        self.out.flags.writeable = False
        self.moe(BufferError, "out")
        self.moe(BufferError, "out", out=Producer(self.given["x"], read_only=True))
        self.moe(BufferError, "x", x=Producer(self.given["x"], major=2))

    def test_out_beside_x(self):
        self.moe(ValueError, "out", out=self.given["x"])
        both = numpy.zeros((10, 64), numpy.float32)
        self.moe(ValueError, "out", x=both[:-1], out=both[1:])

    def test_devices(self):
        for name in NAMES:
            self.moe(ValueError, name, **{name: Producer(self.given[name], device=(4, 0))})  # OpenCL
        for name in NAMES[1:]:  # nothing of it is read on a GPU: the device is refused first
            self.moe(ValueError, name, **{name: Producer(self.given[name], device=(2, 0))})
        self.moe(ValueError, "stream", stream=1)
        self.moe(TypeError, "stream", stream="default")
        self.moe(TypeError, "stream", stream=True)

    def test_memory_for_other_frameworks_must_be_given(self):
        x = Producer(self.given["x"])
        self.moe(ValueError, "out", x=x, out=None)
        self.moe(ValueError, "workspace", x=x)

    def test_options(self):
        for name, kind, value in (("activation", ValueError, "swish"), ("activation", TypeError, 1),
                                  ("gate_up_order", ValueError, "gate_last"), ("gate_up_order", TypeError, None),
                                  ("weight_format", ValueError, "f8"), ("weight_format", TypeError, 0),
                                  ("alpha", TypeError, "1"), ("beta", ValueError, float("nan")),
                                  ("limit", ValueError, float("inf")), ("gated", TypeError, 1),
                                  ("first_expert", ValueError, -1), ("first_expert", TypeError, 0.0),
                                  ("first_expert", TypeError, False), ("first_expert", ValueError, 2**31)):
            self.moe(kind, name, **{name: value})
        self.moe(ValueError, "activation", activation="relu_squared")
        self.moe(ValueError, "activation", activation="clamped_swiglu", limit=0.0)

    def test_options_that_would_have_no_effect(self):
        for activation in ("silu", "relu"):
            for name, value in (("alpha", 1.702), ("beta", 1.0), ("limit", 7.0)):
                self.moe(ValueError, name, activation=activation, **{name: value})
        expert_map = numpy.arange(5, dtype=numpy.int32)
        self.moe(ValueError, "first_expert", expert_map=expert_map, first_expert=1)
        # What is wrong shows before anything is asked of a GPU.
        weights = [Producer(self.given[name].astype(numpy.float16), device=(2, 0)) for name in ("gate_up", "down")]
        message = self.refused(ValueError, "num_threads", tessera.MoELayer, *weights, top_k=3, num_threads=2)
        self.assertIn("got 2 with weights on cuda:0, expected 0: only the CPU", message)
        self.refused(TypeError, "num_threads", tessera.MoELayer, *weights, top_k=3, num_threads=2.0)

    def test_layers(self):
        weights = self.given["gate_up"], self.given["down"]
        for value, kind in ((0, ValueError), (33, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError)):
            self.refused(kind, "top_k", tessera.MoELayer, *weights, top_k=value)
        for value, kind in ((-1, ValueError), (2000, ValueError), (1.0, TypeError)):
            self.refused(kind, "num_threads", tessera.MoELayer, *weights, top_k=3, num_threads=value)
        shared = numpy.zeros((48, 64), numpy.float32)
        self.refused(ValueError, "shared_down", tessera.MoELayer, *weights, top_k=3, shared_gate_up=shared)
        self.refused(ValueError, "shared_gate_up", tessera.MoELayer, *weights, top_k=3, shared_down=shared)
        layer = tessera.MoELayer(*weights, top_k=3)
        x, ids, slots = (self.given[name] for name in ("x", "topk_ids", "topk_weights"))
        self.refused(ValueError, "topk_ids", layer, x, ids[:, :2].copy(), slots)
        self.refused(ValueError, "x", layer, x[:, :56].copy(), ids, slots)
        self.refused(TypeError, "x", layer, x.astype(numpy.float16), ids, slots)
        self.refused(ValueError, "shared_weight", layer, x, ids, slots, shared_weight=numpy.ones(9, numpy.float32))
        for value, kind in ((-1, ValueError), (2**31, ValueError), (1.5, TypeError)):
            self.refused(kind, "num_tokens", layer.workspace_bytes, value)
        self.refused(ValueError, "num_tokens", layer.workspace_bytes, 2**31 - 1)
        layer = tessera.MoELayer(*weights, top_k=3, shared_gate_up=shared, shared_down=numpy.zeros((64, 24), numpy.float32))
        self.refused(TypeError, "shared_weight", layer, x, ids, slots, shared_weight=numpy.ones(9))
        self.refused(ValueError, "shared_weight", layer, x, ids, slots, shared_weight=numpy.ones(8, numpy.float32))

    def test_weights_whose_memory_was_freed(self):
        gate_up = self.given["gate_up"].copy()
        layer = tessera.MoELayer(gate_up, self.given["down"], top_k=3)
        gate_up.resize((1,), refcheck=False)
        with self.assertRaises(RuntimeError) as raised:
            layer(self.given["x"], self.given["topk_ids"], self.given["topk_weights"], out=self.out)
        self.assertIn("gate_up", str(raised.exception))
        self.assertTrue((self.out.view(numpy.uint8) == 0xFF).all())

    def test_prepare_weights(self):
        gate_up, down = (numpy.ascontiguousarray(self.given[name].transpose(0, 2, 1)) for name in ("gate_up", "down"))
        self.refused(TypeError, "gate_up", tessera.prepare_weights, None, down)
        self.refused(TypeError, "gate_up", tessera.prepare_weights, Producer(gate_up), down)
        self.refused(TypeError, "gate_up", tessera.prepare_weights, gate_up.astype(numpy.int32), down)
        self.refused(TypeError, "down", tessera.prepare_weights, gate_up, down.astype(numpy.float16))
        self.refused(ValueError, "down", tessera.prepare_weights, gate_up, down[:-1])
        self.refused(ValueError, "down", tessera.prepare_weights, gate_up, self.given["down"])
        self.refused(BufferError, "gate_up", tessera.prepare_weights, self.given["gate_up"].transpose(0, 2, 1), down)

    def test_route(self):
        logits = numpy.zeros((4, 16), numpy.float32)
        self.refused(TypeError, "logits", tessera.route, logits.tolist(), 2)
        self.refused(TypeError, "logits", tessera.route, Producer(logits), 2)
        self.refused(TypeError, "logits", tessera.route, logits.astype(numpy.float64), 2)
        self.refused(ValueError, "logits", tessera.route, logits[0], 2)
        self.refused(BufferError, "logits", tessera.route, logits.T, 2)
        self.refused(TypeError, "top_k", tessera.route, logits, 2.0)
        self.refused(ValueError, "top_k", tessera.route, logits, 17)
        self.refused(ValueError, "kind", tessera.route, logits, 2, kind="softmax")
        self.refused(ValueError, "num_groups", tessera.route, logits, 2, num_groups=4)
        self.refused(ValueError, "num_groups", tessera.route, logits, 2, kind="sigmoid_grouped", num_groups=5)
        self.refused(TypeError, "bias", tessera.route, logits, 2, kind="sigmoid_grouped", bias=numpy.zeros(16))
        self.refused(ValueError, "bias", tessera.route, logits, 2, kind="sigmoid_grouped",
                     bias=numpy.zeros(15, numpy.float32))
        self.refused(ValueError, "scale", tessera.route, logits, 2, scale=float("nan"))

    def test_ids_of_no_expert(self):
        ids = numpy.array([[0, 1], [5, 8], [-1, 2], [90, 7]], numpy.int64)
        message = self.refused(ValueError, "topk_ids", tessera.check_ids, ids, 8)
        self.assertEqual(message, "topk_ids: got 8 at token 1, slot 1, the first of 3 such ids of 8, expected an expert, 0 to 7")
        message = self.refused(ValueError, "topk_ids", tessera.check_ids, ids[1:].astype(numpy.int32), 9, no_expert=-1)
        self.assertEqual(message, "topk_ids: got 90 at token 2, slot 0, expected an expert, 0 to 8, or -1 for no expert")
        self.assertIsNone(tessera.check_ids(ids, 91, no_expert=-1))
        self.assertIsNone(tessera.check_ids(ids[:0], 1))
        self.refused(TypeError, "topk_ids", tessera.check_ids, ids.astype(numpy.float32), 8)
        self.refused(TypeError, "topk_ids", tessera.check_ids, ids.tolist(), 8)
        self.refused(TypeError, "topk_ids", tessera.check_ids, Producer(ids), 8)
        self.refused(ValueError, "topk_ids", tessera.check_ids, ids[0], 8)
        self.refused(ValueError, "num_experts", tessera.check_ids, ids, 0)


if __name__ == "__main__":
    unittest.main()
