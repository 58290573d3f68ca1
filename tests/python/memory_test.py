"""Arrays that overlap are refused by name, whatever pair it is, in Python, through the C interface, and for tensors."""
import ctypes
import itertools
import unittest

import numpy
import tessera
from python_support import Case, arguments
from tessera import _native

try:
    import torch
except ImportError:
    torch = None

WRITTEN = ("out", "workspace")


class Room:
    """One stretch of memory out of which arrays are cut, so that they may overlap."""

    def __init__(self, num_bytes):
        self.memory = numpy.zeros(num_bytes + 16, numpy.uint8)
        self.memory = self.memory[-self.memory.ctypes.data % 16:][:num_bytes]

    def cut(self, like, begin=0):
        part = self.memory[begin:begin + like.nbytes].view(like.dtype).reshape(like.shape)
        part[...] = like
        return part


class Overlaps(unittest.TestCase):
    def setUp(self):
        self.case = Case(biases=True, shared_intermediate=16, expert_map=[0, 1, 2, 3, 4, -1], ids_type=numpy.int32)
        (x, gate_up, down, ids, weights), self.options = arguments(self.case)
        self.options.pop("expert_map", None)
        f32 = numpy.float32
        self.weights = {"gate_up": gate_up, "down": down, "gate_up_bias": self.case.gate_up_bias.astype(f32),
                        "down_bias": self.case.down_bias.astype(f32),
                        "shared_gate_up": self.case.shared_gate_up.astype(f32),
                        "shared_down": self.case.shared_down.astype(f32),
                        "expert_map": numpy.array(self.case.expert_map, numpy.int32)}
        self.inputs = {"x": x, "topk_ids": ids, "topk_weights": weights,
                       "shared_weight": self.case.shared_weight.astype(f32)}
        self.num_bytes = self.layer().workspace_bytes(self.case.tokens)
        self.outputs = {"out": numpy.zeros_like(x), "workspace": numpy.zeros(self.num_bytes, numpy.uint8)}
        self.reference = self.call({})

    def layer(self, **changed):
        given = {**self.weights, **changed}
        options = {name: value for name, value in self.options.items() if name not in given}
        return tessera.MoELayer(given.pop("gate_up"), given.pop("down"), top_k=self.case.top_k, num_threads=1, **given,
                                **options)

    def call(self, changed, made=lambda array: array):
        weights = {name: made(array) for name, array in changed.items() if name in self.weights}
        given = {name: made(changed.get(name, array)) for name, array in {**self.inputs, **self.outputs}.items()}
        others = {name: made(array) for name, array in self.weights.items() if name not in weights}
        layer = self.layer(**others, **weights)
        out = layer(given.pop("x"), given.pop("topk_ids"), given.pop("topk_weights"), **given)
        return numpy.asarray(out).copy()

    def pairs(self):
        """Every pair of which at least one is written: the names, and two arrays whose memory overlaps by 16 bytes."""
        everything = {**self.weights, **self.inputs, **self.outputs}
        for first, second in itertools.combinations(everything, 2):
            if first not in WRITTEN and second not in WRITTEN:
                continue
            a, b = everything[first], everything[second]
            for begin in {0, (a.nbytes - 1) // 16 * 16}:
                room = Room(a.nbytes + b.nbytes + 16)
                later = room.cut(b, begin)
                yield first, second, {first: room.cut(a), second: later}
                # The content matters to none of them: what is refused is not read.

    def check(self, made=lambda array: array):
        num_pairs = 0
        for first, second, changed in self.pairs():
            with self.subTest(first=first, second=second):
                with self.assertRaises(ValueError) as raised:
                    self.call(changed, made)
                message = str(raised.exception)
                self.assertIn("memory that overlaps", message)
                for name in (first, second):
                    self.assertIn(name.split("_bias")[0], message.replace("shared gate_up", "shared_gate_up")
                                  .replace("shared down", "shared_down"))
                num_pairs += 1
        self.assertGreater(num_pairs, 40)

    def test_numpy(self):
        self.check()

    @unittest.skipIf(torch is None, "no PyTorch here")
    def test_tensors(self):
        self.check(torch.from_numpy)

    @unittest.skipIf(torch is None, "no PyTorch here")
    def test_the_operator(self):
        x, ids, weights = (torch.from_numpy(self.inputs[name]) for name in ("x", "topk_ids", "topk_weights"))
        gate_up, down = torch.from_numpy(self.weights["gate_up"]), torch.from_numpy(self.weights["down"])
        with self.assertRaisesRegex(ValueError, "out: got memory that overlaps x"):
            torch.ops.tessera.moe_out(x, gate_up, down, ids, weights, out=x)

    def test_neighbours_are_no_overlap(self):
        everything = {**self.weights, **self.inputs, **self.outputs}
        room, begin, changed = Room(sum(array.nbytes + 16 for array in everything.values())), 0, {}
        for name, array in everything.items():
            changed[name] = room.cut(array, begin)
            begin += (array.nbytes + 15) // 16 * 16
        self.assertTrue(numpy.array_equal(self.call(changed), self.reference))
        both = self.inputs["x"]  # what is only read may be one array twice
        layer = self.layer()
        self.assertEqual(layer(both, self.inputs["topk_ids"], self.inputs["topk_weights"]).shape, both.shape)

    def test_the_router(self):
        logits = numpy.random.default_rng(1).standard_normal((4, 8)).astype(numpy.float32)
        config = _native.new(_native.RouterConfig, num_experts=8, top_k=2, num_groups=1, topk_groups=1)
        ids, weights = numpy.zeros((4, 2), numpy.int32), numpy.zeros((4, 2), numpy.float32)

        def route(logits=logits, ids=ids, weights=weights):
            _native.check(_native.lib.tessera_route(ctypes.byref(config), 4, logits.ctypes.data, None, ids.ctypes.data,
                                                    weights.ctypes.data, None, None))

        route()
        with self.assertRaisesRegex(ValueError, "topk_ids: got memory that overlaps logits"):
            route(ids=logits.view(numpy.int32))
        with self.assertRaisesRegex(ValueError, "topk_weights: got memory that overlaps topk_ids"):
            route(weights=ids.view(numpy.float32))

    def test_prepared_weights(self):
        config = _native.new(_native.MoEConfig, hidden_size=8, intermediate_size=8, num_experts=2, top_k=1, dtype=0)
        given = [numpy.zeros((2, 8, 16), numpy.float32), numpy.zeros((2, 8, 8), numpy.float32)]
        made = [numpy.zeros((2, 16, 8), numpy.float32), numpy.zeros((2, 8, 8), numpy.float32)]

        def prepare(*arrays):
            _native.check(_native.lib.tessera_moe_prepare_weights(ctypes.byref(config),
                                                                  *(a.ctypes.data for a in arrays), None))

        prepare(*given, *made)
        for arrays in ((*given, given[0], made[1]), (*given, made[0], given[1]), (*given, made[0], made[0])):
            with self.assertRaisesRegex(ValueError, "memory that overlaps"):
                prepare(*arrays)

    def test_an_empty_map_is_none_or_wrong(self):
        with self.assertRaisesRegex(ValueError, "expert_map: got no entries"):
            self.layer(expert_map=numpy.zeros(0, numpy.int32))
        (x, gate_up, down, ids, weights), _ = arguments(Case())
        with self.assertRaisesRegex(ValueError, "expert_map: got no entries"):
            tessera.moe(x, gate_up, down, ids, weights, expert_map=numpy.zeros(0, numpy.int32))


if __name__ == "__main__":
    unittest.main()
