"""Memory that changes hands: other weights at an address that was used before, weights that a framework swaps, and
temporaries of a call on a stream of the caller's."""
import concurrent.futures
import unittest

import tessera
import torch
from cases import one_test_a_case, over
from tensor_support import DEVICES, Layer, busy, problems

ON_GPU = unittest.skipUnless(torch.cuda.is_available(), "no GPU")
# Layers whose weights are of one size in bytes: other rows, other columns, other numbers of experts, another type.
SHAPES = ({}, {"seed": 3}, {"hidden": 64, "intermediate": 128}, {"dtype": torch.float16}, {"experts": 16, "hidden": 64},
          {"order": "interleaved"}, {"gated": False, "intermediate": 128, "activation": "relu", "experts": 8})


def run(layer, weights, *given):
    return tessera.moe(given[0], *weights, *given[1:], **layer.named())


class Rooms:
    """Memory that one layer's weights after the other lie in, as after `del` and an allocation of the same size."""

    def __init__(self, device):
        self.rooms = [torch.empty(1 << 20, dtype=torch.uint8, device=device) for _ in range(2)]

    def put(self, layer):
        moved = []
        for room, weight in zip(self.rooms, (layer.gate_up, layer.down)):
            assert weight.nbytes <= room.nbytes, (weight.nbytes, room.nbytes)
            moved.append(room[:weight.nbytes].view(weight.dtype).view(weight.shape).copy_(weight))
        return moved


@one_test_a_case
class OtherWeightsAtAnAddress(unittest.TestCase):
    def setUpOn(self, device):
        self.layers = [Layer(device, **shape) for shape in SHAPES]
        self.given = [layer.inputs(40) for layer in self.layers]
        self.expected = [run(layer, (layer.gate_up, layer.down), *given)
                         for layer, given in zip(self.layers, self.given)]
        for layer, given, out in zip(self.layers, self.given, self.expected):
            self.assertEqual(problems(out, layer.reference(*given)), [], layer)
        self.rooms = Rooms(device)

    def differing(self, call):
        """Layers whose bits are others than where they lay by themselves. Backwards too: each follows another one."""
        order = [*range(len(self.layers)), *reversed(range(len(self.layers)))]
        return [index for index in order
                if not torch.equal(call(index, self.rooms.put(self.layers[index])), self.expected[index])]

    @over(DEVICES)
    def test_function(self, device):
        self.setUpOn(device)
        self.assertEqual(self.differing(lambda index, weights: run(self.layers[index], weights, *self.given[index])), [])

    @over(DEVICES)
    def test_layer(self, device):
        self.setUpOn(device)

        def call(index, weights):
            layer = self.layers[index]
            return tessera.MoELayer(*weights, top_k=layer.top_k, **layer.named())(*self.given[index])
        self.assertEqual(self.differing(call), [])

    @over(DEVICES)
    def test_two_threads_in_turns(self, device):
        """What one thread remembers of an address, the other has changed since."""
        self.setUpOn(device)
        turns = []

        def call(index, weights):
            turns.append(index)
            thread = threads[len(turns) % 2]
            return thread.submit(lambda: run(self.layers[index], weights, *self.given[index])).result()
        with concurrent.futures.ThreadPoolExecutor(1) as one, concurrent.futures.ThreadPoolExecutor(1) as other:
            threads = one, other
            self.assertEqual(self.differing(call) + self.differing(call), [])

    @over(DEVICES)
    def test_the_check_sees_other_weights(self, device):
        self.setUpOn(device)
        wrong = self.differing(lambda index, weights: run(self.layers[1 if index == 0 else index],
                                                          self.rooms.put(self.layers[1]) if index == 0 else weights,
                                                          *self.given[index]))
        self.assertEqual(wrong, [0, 0])

    @over(DEVICES)
    def test_tensors_that_were_freed(self, device):
        """The allocator gives the address of what was freed to the next of its size."""
        addresses = set()
        for seed in range(6):
            layer = Layer(device, seed=seed, dtype=(torch.bfloat16, torch.float16)[seed % 2])
            given = layer.inputs(24)
            made = tessera.MoELayer(layer.gate_up, layer.down, top_k=3)
            for out in (run(layer, (layer.gate_up, layer.down), *given), made(*given)):
                self.assertEqual(problems(out, layer.reference(*given)), [], seed)
            addresses.add(layer.gate_up.data_ptr())
            del layer, given, made, out
        if device == "cuda":
            self.assertLess(len(addresses), 6)

    @over(DEVICES)
    def test_parameters_that_are_swapped(self, device):
        """Offloading gives a parameter other memory: the layer that was made of the old one refuses, the function and a
        layer made anew take what is there."""
        layers = [Layer(device, seed=seed) for seed in (1, 2)]
        given = layers[0].inputs(24)
        expected = [run(layer, (layer.gate_up, layer.down), *given) for layer in layers]
        self.assertFalse(torch.equal(*expected))
        gate_up, down = (torch.nn.Parameter(part.clone(), requires_grad=False)
                         for part in (layers[0].gate_up, layers[0].down))
        made = tessera.MoELayer(gate_up, down, top_k=3)
        self.assertTrue(torch.equal(made(*given), expected[0]))
        gate_up.data, down.data = layers[1].gate_up, layers[1].down
        with self.assertRaisesRegex(RuntimeError, "gate_up: got memory that was freed or moved"):
            made(*given)
        self.assertTrue(torch.equal(run(layers[1], (gate_up, down), *given), expected[1]))
        self.assertTrue(torch.equal(tessera.MoELayer(gate_up, down, top_k=3)(*given), expected[1]))


@ON_GPU
class SideStreams(unittest.TestCase):
    """A call with `stream=` reads its inputs there: they live as long as PyTorch is told, as with any work of a stream."""

    def setUp(self):
        self.layer = Layer("cuda")
        self.given = self.layer.inputs(64)
        self.weights = self.layer.gate_up, self.layer.down
        self.expected = run(self.layer, self.weights, *self.given)
        self.side = torch.cuda.Stream()
        torch.cuda.synchronize()

    def call(self, tell):
        """The result for a copy of x that is given back at once and whose memory others fill while the stream is busy."""
        x = self.given[0].clone()
        with busy(self.side):
            pass
        self.side.wait_stream(torch.cuda.current_stream())
        out = tessera.moe(x, *self.weights, *self.given[1:], stream=self.side.cuda_stream)
        if tell:
            x.record_stream(self.side)
        del x
        others = [torch.full_like(self.given[0], float("nan")) for _ in range(8)]
        torch.cuda.synchronize()
        del others
        return out

    def test_temporaries_that_pytorch_is_told_of(self):
        for _ in range(2):
            self.assertTrue(torch.equal(self.call(tell=True), self.expected))

    def test_the_check_sees_memory_that_was_given_away(self):
        self.assertFalse(torch.equal(self.call(tell=False), self.expected))

    def test_what_the_call_allocates_belongs_to_its_stream(self):
        """The workspace goes back when the call returns: nobody on another stream gets it before the work is done."""
        with busy(self.side):
            pass
        outs = [tessera.moe(self.given[0], *self.weights, *self.given[1:], stream=self.side.cuda_stream)
                for _ in range(2)]
        others = [torch.full((size // 4,), float("nan"), device="cuda") for size in [1 << 18] * 64 + [1 << 20] * 16]
        torch.cuda.synchronize()
        del others
        for out in outs:
            self.assertTrue(torch.equal(out, self.expected))


if __name__ == "__main__":
    unittest.main()
