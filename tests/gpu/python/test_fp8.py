"""Layers of e4m3 weights on torch tensors, with scales of blocks and of channels: against what their codes and scales stand for in float64, in every way
to call them, and what is refused before anything runs."""
import unittest

import tessera
import torch
from cases import one_test_a_case, over
from tensor_support import DEVICES

HIDDEN, WIDTH, EXPERTS, TOP_K = 528, 336, 6, 2  # multiples of 16 that end inside a block
ROW_LIMIT, MEDIAN_LIMIT = 4e-2, 6e-3  # a code that is rounded the other way weighs more in a narrow intermediate


def numbers(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(scales, rows, columns):
    """The scale of each element of [.., rows, columns]."""
    return scales.double().repeat_interleave(128, -2)[..., :rows, :].repeat_interleave(128, -1)[..., :columns]


def restored_rows(x):
    codes, scales = tessera.quantize_rows(x)
    return codes.double() * spread(scales.unsqueeze(-2), 1, x.shape[1]).squeeze(-2)


class Weights:
    """Of a layer, on the CPU, and what they stand for."""

    def __init__(self):
        gate_up = numbers(EXPERTS, 2 * WIDTH, HIDDEN, seed=1) / HIDDEN**0.5
        down = numbers(EXPERTS, HIDDEN, WIDTH, seed=2) / WIDTH**0.5
        self.gate_up, self.gate_up_scale = tessera.quantize_blocks(gate_up.bfloat16(), gate_and_up=True)
        self.down, self.down_scale = tessera.quantize_blocks(down.bfloat16())
        gate, up = self.gate_up.double().chunk(2, 1)
        self.gate, self.up = (half * spread(self.gate_up_scale[:, i], WIDTH, HIDDEN) for i, half in enumerate((gate, up)))
        self.last = self.down.double() * spread(self.down_scale, HIDDEN, WIDTH)

    def reference(self, x, ids, weights):
        tokens = restored_rows(x)
        out = torch.zeros(x.shape, dtype=torch.float64)
        for token, row in enumerate(tokens):
            for slot in range(TOP_K):
                expert = int(ids[token, slot])
                h = torch.nn.functional.silu(self.gate[expert] @ row) * (self.up[expert] @ row)
                out[token] += weights[token, slot].double() * (self.last[expert] @ restored_rows(h.float()[None])[0])
        return out

    def on(self, device):
        return {name: getattr(self, name).to(device) for name in ("gate_up", "down", "gate_up_scale", "down_scale")}


@one_test_a_case
class Fp8(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()  # cases are not one another's recompilations, of which there may be few

    @classmethod
    def setUpClass(cls):
        cls.weights = Weights()

    def given(self, device, tokens, dtype=torch.bfloat16):
        x = numbers(tokens, HIDDEN, seed=3 + tokens).to(dtype)
        ids = torch.stack([torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(t))[:TOP_K] for t in range(tokens)])
        weights = torch.full((tokens, TOP_K), 0.5)
        return tuple(tensor.to(device) for tensor in (x, ids, weights))

    def layer(self, device, **more):
        arrays = self.weights.on(device)
        return tessera.MoELayer(arrays["gate_up"], arrays["down"], top_k=TOP_K, weight_format="fp8-block",
                                gate_up_scale=arrays["gate_up_scale"], down_scale=arrays["down_scale"], **more)

    def call(self, device, given, **more):
        arrays = self.weights.on(device) | more
        return tessera.moe(given[0], arrays.pop("gate_up"), arrays.pop("down"), *given[1:], weight_format="fp8-block", **arrays)

    @over(DEVICES, (torch.bfloat16, torch.float16), (1, 40))
    def test_against_what_the_codes_stand_for(self, device, dtype, tokens):
        given = self.given(device, tokens, dtype)
        out = self.call(device, given)
        self.assertEqual((out.dtype, out.device, out.shape), (dtype, given[0].device, given[0].shape))
        expected = self.weights.reference(*(tensor.cpu() for tensor in given))
        errors = (out.cpu().double() - expected).norm(dim=1) / expected.norm(dim=1)
        self.assertLess(float(errors.max()), ROW_LIMIT)
        self.assertLess(float(errors.median()), MEDIAN_LIMIT)

    @over(DEVICES)
    def test_every_way_to_call_gives_the_same_bits(self, device):
        given = self.given(device, 33)
        expected = self.call(device, given)
        layer = self.layer(device, dtype="bfloat16")
        out = torch.full_like(expected, float("nan"))
        self.assertIs(layer(*given, out=out), out)
        bytes_of = {name: self.weights.on(device)[name].view(torch.uint8) for name in ("gate_up", "down")}
        for got in (layer(*given), out, self.call(device, given, **bytes_of)):
            self.assertTrue(torch.equal(got, expected))

    @over(DEVICES, (torch.bfloat16, torch.float16))
    def test_tokens_that_are_quantized(self, device, dtype):
        """By the recipe: the bits of a layer that quantizes them, in every way to call it."""
        x, *routing = self.given(device, 33, dtype)
        codes, scales = (tensor.to(device) for tensor in tessera.quantize_rows(x.cpu()))
        expected = self.call(device, (x, *routing))
        name = str(dtype).rpartition(".")[2]
        layer = self.layer(device, dtype=name)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        more = {"x_scale": scales, "dtype": name}
        out = torch.full_like(expected, float("nan"))
        self.assertIs(layer(codes, *routing, x_scale=scales, out=out), out)
        for got in (out, layer(codes, *routing, x_scale=scales), layer(codes.view(torch.uint8), *routing, x_scale=scales),
                    self.call(device, (codes, *routing), **more), self.call(device, (codes, *routing), **more),
                    self.call(device, (codes.view(torch.uint8), *routing), **more),
                    compiled(codes, *routing, x_scale=scales)):
            self.assertEqual(got.dtype, dtype)
            self.assertTrue(torch.equal(got, expected))
        self.assertTrue(torch.equal(layer(x, *routing), expected))
        self.assertFalse(torch.equal(layer(codes, *routing, x_scale=2 * scales), expected))

    def test_the_operator_knows_the_type_of_a_layer_whose_tokens_are_quantized(self):
        x, *routing = self.given("cpu", 5)
        codes, scales = tessera.quantize_rows(x)
        arrays = self.weights.on("cpu")
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(tensor) for tensor in (codes, arrays.pop("gate_up"), arrays.pop("down"), *routing)]
            arrays = {name: mode.from_tensor(tensor) for name, tensor in arrays.items()}
            for dtype, expected in ((None, torch.bfloat16), ("float16", torch.float16)):
                got = torch.ops.tessera.moe(*fake, weight_format="fp8-block", x_scale=mode.from_tensor(scales), dtype=dtype,
                                            **arrays)
                self.assertEqual((got.dtype, got.shape), (expected, x.shape))
            with self.assertRaisesRegex(TypeError, "x: got torch.bfloat16, expected torch.float8_e4m3fn"):
                torch.ops.tessera.moe(mode.from_tensor(x), *fake[1:], weight_format="fp8-block",
                                      x_scale=mode.from_tensor(scales), **arrays)

    @over(DEVICES)
    def test_weights_that_begin_inside_a_block(self, device):
        """Gate's and up's blocks counted through: on a GPU refused with the reason, on a CPU every row keeps its scale."""
        given = self.given(device, 7)
        codes, stored = tessera.quantize_blocks(torch.cat([self.weights.gate, self.weights.up], 1).float())
        offset = WIDTH % 128
        scales = tessera.convert_scales(stored, codes.shape, gate_and_up=True, grid="concatenated", up_offset=offset)
        changed = {"gate_up": codes.to(device), "gate_up_scale": scales.to(device), "scale_offsets": (0, offset, 0)}
        if device != "cpu":
            with self.assertRaisesRegex(ValueError, "its weights begin inside a block of scales, gate, up and down at"):
                self.call(device, given, **changed)
            return
        other = Weights()
        values = codes.double() * spread(stored, 2 * WIDTH, HIDDEN)
        other.gate, other.up = values.chunk(2, 1)
        expected = other.reference(*given)
        out = self.call(device, given, **changed)
        errors = (out.double() - expected).norm(dim=1) / expected.norm(dim=1)
        self.assertLess(float(errors.max()), ROW_LIMIT)
        compiled = torch.compile(lambda x, ids, weights: self.call("cpu", (x, ids, weights), **changed), backend="eager",
                                 fullgraph=True)
        self.assertTrue(torch.equal(compiled(*given), out))

    def test_scales_of_every_type(self):
        stored = self.weights.gate_up_scale
        shape = self.weights.gate_up.shape
        halves = stored.bfloat16()
        self.assertTrue(torch.equal(tessera.convert_scales(halves, shape, gate_and_up=True), halves.float()))
        powers = (torch.arange(stored.numel()) % 200 + 30).to(torch.uint8).view(stored.shape)
        expected = torch.exp2(powers.float() - 127)
        kinds = [torch.uint8, *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else [])]
        for kind in kinds:
            self.assertTrue(torch.equal(tessera.convert_scales(powers.view(kind), shape, gate_and_up=True), expected))
        with self.assertRaisesRegex(TypeError, "scale: got torch.float8_e5m2"):
            tessera.convert_scales(powers.view(torch.float8_e5m2), shape, gate_and_up=True)

    @over(DEVICES[-1:])
    def test_a_graph_replays_other_tokens(self, device):
        if device == "cpu":
            self.skipTest("no GPU")
        layer = self.layer(device)
        x, ids, weights = self.given(device, 12)
        out = layer(x, ids, weights)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            layer(x, ids, weights, out=out)
        for tokens in (1, 5):
            other = self.given(device, 12 + tokens)
            x.copy_(other[0][:12])
            ids.copy_(other[1][:12])
            out.fill_(float("nan"))
            graph.replay()
            self.assertTrue(torch.equal(out, self.call(device, (x, ids, weights))))

    @over(DEVICES)
    def test_what_is_wrong_is_named(self, device):
        given, arrays = self.given(device, 2), self.weights.on(device)
        for name in ("gate_up_scale", "down_scale"):
            for wrong in (None, arrays[name][:-1], arrays[name].half(), arrays[name].transpose(-1, -2)):
                with self.assertRaisesRegex((ValueError, TypeError), name):
                    self.call(device, given, **{name: wrong})
        with self.assertRaisesRegex((ValueError, TypeError), "gate_up"):
            self.call(device, given, gate_up=arrays["gate_up"].bfloat16())
        for name in ("gate_up", "down"):
            with self.assertRaisesRegex(TypeError, f"^{name}: got torch.float8_e5m2, expected"):
                self.call(device, given, **{name: arrays[name].view(torch.float8_e5m2)})
        codes, scales = (tensor.to(device) for tensor in tessera.quantize_rows(given[0].cpu()))
        layer = self.layer(device)
        for wrong in (scales[:, :-1], scales[:-1], scales.half(), scales.T.contiguous().T, scales.cpu().numpy()[:1]):
            with self.assertRaisesRegex((ValueError, TypeError, BufferError), "^x_scale: got"):
                layer(codes, *given[1:], x_scale=wrong)
        for x in (given[0], codes.view(torch.float8_e5m2)):
            with self.assertRaisesRegex(TypeError, "^x: got"):
                layer(x, *given[1:], x_scale=scales)
        with self.assertRaisesRegex(TypeError, "^x: got float8_e4m3fn"):
            layer(codes, *given[1:])
        with self.assertRaisesRegex(ValueError, "gate_up_scale"):
            tessera.moe(given[0], self.weights.gate.repeat(1, 2, 1).bfloat16().to(device), self.weights.last.bfloat16().to(device),
                        *given[1:], gate_up_scale=arrays["gate_up_scale"])


class ChannelWeights:
    """Of a layer with a scale each row, on the CPU, and static scales; what they stand for."""

    def __init__(self):
        gate_up = numbers(EXPERTS, 2 * WIDTH, HIDDEN, seed=1) / HIDDEN**0.5
        down = numbers(EXPERTS, HIDDEN, WIDTH, seed=2) / WIDTH**0.5
        self.gate_up, self.gate_up_scale = tessera.quantize_rows(gate_up.float(), whole_rows=True)
        self.down, self.down_scale = tessera.quantize_rows(down.float(), whole_rows=True)
        uneven = 1 + torch.arange(EXPERTS) % 4 / 5
        self.static = {"gate_up_input_scale": 4 / 448 * uneven, "down_input_scale": 3 / 448 * uneven}

    def reference(self, x, ids, weights, static):
        first, last = self.gate_up.double() * self.gate_up_scale.double(), self.down.double() * self.down_scale.double()
        codes, scales = tessera.quantize_rows(x, whole_rows=True)
        out = torch.zeros(x.shape, dtype=torch.float64)
        for token in range(len(x)):
            for slot in range(TOP_K):
                expert = int(ids[token, slot])
                x_scale, h_scale = (scale[min(expert, len(scale) - 1)] for scale in static.values()) if static else (0, 0)
                row = by(x[token], x_scale) if static else codes[token].double() * scales[token].double()
                gate, up = (first[expert] @ row).chunk(2)
                h = (torch.nn.functional.silu(gate) * up).float()
                h = by(h, h_scale) if static else restored_rows(h[None])[0]
                out[token] += weights[token, slot].double() * (last[expert] @ h)
        return out


def by(values, scale):
    """What quantizing by a static scale leaves."""
    return (values.float() * (1 / scale)).clamp(-448, 448).to(torch.float8_e4m3fn).double() * scale.double()


@one_test_a_case
class Fp8Channel(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()  # cases are not one another's recompilations, of which there may be few

    @classmethod
    def setUpClass(cls):
        cls.weights = ChannelWeights()

    def static(self, kind):
        return {"none": {}, "one": {name: scale[:1] for name, scale in self.weights.static.items()},
                "each": self.weights.static}[kind]

    def given(self, device, tokens):
        x = numbers(tokens, HIDDEN, seed=3 + tokens).bfloat16()
        ids = torch.stack([torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(t))[:TOP_K] for t in range(tokens)])
        return tuple(tensor.to(device) for tensor in (x, ids, torch.full((tokens, TOP_K), 0.5)))

    @over(DEVICES, ("none", "one", "each"), (1, 40, 200))
    def test_every_way_to_call(self, device, kind, tokens):
        given, weights = self.given(device, tokens), self.weights
        named = {"gate_up_scale": weights.gate_up_scale.squeeze(-1), "down_scale": weights.down_scale, **self.static(kind)}
        named = {name: tensor.to(device) for name, tensor in named.items()} | {"weight_format": "fp8-channel"}
        matrices = weights.gate_up.to(device), weights.down.to(device)
        layer = tessera.MoELayer(*matrices, top_k=TOP_K, **named)
        out = layer(*given)
        expected = weights.reference(*(tensor.cpu() for tensor in given), self.static(kind))
        errors = (out.cpu().double() - expected).norm(dim=1) / expected.norm(dim=1)
        self.assertLess(float(errors.max()), ROW_LIMIT)
        self.assertLess(float(errors.median()), MEDIAN_LIMIT)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        for got in (tessera.moe(given[0], *matrices, *given[1:], **named), compiled(*given),
                    torch.ops.tessera.moe(given[0], *matrices, *given[1:], **named)):
            self.assertTrue(torch.equal(got, out))
        rounded = tessera.moe(given[0], *matrices, *given[1:], **named, round_like_engines=True)
        self.assertFalse(torch.equal(rounded, out))
        errors = (rounded.cpu().double() - expected).norm(dim=1) / expected.norm(dim=1)
        self.assertLess(float(errors.max()), 2 * ROW_LIMIT)
        if kind == "none":
            codes, scales = (tensor.to(device) for tensor in tessera.quantize_rows(given[0].cpu(), whole_rows=True))
            self.assertTrue(torch.equal(layer(codes, *given[1:], x_scale=scales), out))

    def test_the_operator_without_numbers(self):
        weights, given = self.weights, self.given("cpu", 5)
        arrays = {"gate_up_scale": weights.gate_up_scale, "down_scale": weights.down_scale, **weights.static}
        with torch._subclasses.FakeTensorMode() as mode:
            fake = [mode.from_tensor(tensor) for tensor in (given[0], weights.gate_up, weights.down, *given[1:])]
            arrays = {name: mode.from_tensor(tensor) for name, tensor in arrays.items()}
            got = torch.ops.tessera.moe(*fake, weight_format="fp8-channel", **arrays)
            self.assertEqual((got.dtype, got.shape), (torch.bfloat16, given[0].shape))
            wrong = arrays | {"down_input_scale": arrays["down_input_scale"].half()}
            with self.assertRaisesRegex(TypeError, "down_input_scale: got torch.float16, expected torch.float32"):
                torch.ops.tessera.moe(*fake, weight_format="fp8-channel", **wrong)


if __name__ == "__main__":
    unittest.main()
