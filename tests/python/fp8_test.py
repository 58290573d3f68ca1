"""Weights of format fp8-block on NumPy arrays: quantizing by its recipe, layers against a slow one in float64, bad input."""
import unittest

import numpy
import tessera
from python_support import (Fp8Layers, Producer, array_of, battery, from_bfloat16_bits, layer_reference, of_battery, round_to,
                            shifted)

FORMAT = "fp8-block"


def blocks_of(weight, case=None):
    """(codes, scales) of [.., R, C] by the slow way; `case`: rows are of gate and up in its order, as the layer has them."""
    if case is None or not case.gated:
        return layer_reference.quantized(weight, 128)
    gate, up = halves(weight, case.order)
    parts = [layer_reference.quantized(part, 128) for part in (gate, up)]
    return joined(parts[0][0], parts[1][0], case.order), numpy.stack([scales for _, scales in parts], -3)


def halves(weight, order):
    half = weight.shape[-2] // 2
    first, last = weight[..., :half, :], weight[..., half:, :]
    return {"gate_first": (first, last), "up_first": (last, first),
            "interleaved": (weight[..., ::2, :], weight[..., 1::2, :])}[order]


def joined(gate, up, order):
    if order == "interleaved":
        return numpy.stack([gate, up], -2).reshape(*gate.shape[:-2], -1, gate.shape[-1])
    return numpy.concatenate([gate, up] if order == "gate_first" else [up, gate], -2)


def values_of(codes, scales, case=None):
    if case is None or not case.gated:
        return layer_reference.dequantized(codes, scales, 128)
    parts = [layer_reference.dequantized(half, scales[..., i, :, :], 128)
             for i, half in enumerate(halves(codes, case.order))]
    return joined(*parts, case.order)


def with_uneven_blocks(weight):
    """No block's numbers are of the size of its neighbour's."""
    row, column = numpy.arange(weight.shape[-2]) // 128, numpy.arange(weight.shape[-1]) // 128
    return weight * 2.0**((row[:, None] + 3 * column) % 4 - 1)


class Quantizing(unittest.TestCase):
    def setUp(self):
        self.random = numpy.random.default_rng(1)

    def test_rows(self):
        for columns in (1, 16, 128, 200, 384):
            x = self.random.standard_normal((5, columns)) * 2.0**self.random.integers(-30, 10, (5, columns))
            for dtype in ("float32", "float16"):
                given = x.astype(dtype)
                codes, scales = tessera.quantize_rows(given)
                self.assertEqual((codes.dtype, scales.dtype), (numpy.uint8, numpy.float32))
                expected = layer_reference.quantized(given)
                self.assertTrue(numpy.array_equal(codes, expected[0]))
                self.assertTrue(numpy.array_equal(scales, expected[1]))

    def test_blocks(self):
        weight = with_uneven_blocks(self.random.standard_normal((3, 2 * 144, 272))).astype(numpy.float32)
        codes, scales = tessera.quantize_blocks(weight)
        expected = layer_reference.quantized(weight, 128)
        self.assertTrue(numpy.array_equal(codes, expected[0]) and numpy.array_equal(scales, expected[1]))
        codes, scales = tessera.quantize_blocks(weight[1])
        self.assertTrue(numpy.array_equal(codes, expected[0][1]) and numpy.array_equal(scales, expected[1][1]))

        class Gated:
            gated = True
        for Gated.order in ("gate_first", "interleaved", "up_first"):
            codes, scales = tessera.quantize_blocks(weight, gate_and_up=True, gate_up_order=Gated.order)
            expected = blocks_of(weight, Gated)
            self.assertEqual(scales.shape, (3, 2, 2, 3))
            self.assertTrue(numpy.array_equal(codes, expected[0]) and numpy.array_equal(scales, expected[1]))

    def test_what_is_no_number(self):
        x = numpy.ones((2, 256), numpy.float32)
        x[0, 200] = numpy.nan
        codes, scales = tessera.quantize_rows(x)
        self.assertTrue(numpy.isnan(scales).tolist() == [[False, True], [False, False]])
        self.assertTrue((codes[0, 128:] == 0x7F).all() and (codes[0, :128] == 0x7E).all() and (codes[1] == 0x7E).all())

    def test_no_rows(self):
        codes, scales = tessera.quantize_rows(numpy.empty((0, 144), numpy.float32))
        self.assertEqual((codes.shape, scales.shape), ((0, 144), (0, 2)))

    def test_bad_input(self):
        x = numpy.ones((4, 128), numpy.float32)
        for kind, name, call in (
                (TypeError, "x", lambda: tessera.quantize_rows(None)),
                (TypeError, "x", lambda: tessera.quantize_rows(x.astype(numpy.float64))),
                (ValueError, "x", lambda: tessera.quantize_rows(x[0])),
                (BufferError, "x", lambda: tessera.quantize_rows(x[:, ::2])),
                (ValueError, "weight", lambda: tessera.quantize_blocks(x[0])),
                (ValueError, "weight", lambda: tessera.quantize_blocks(x[:3], gate_and_up=True)),
                (TypeError, "gate_and_up", lambda: tessera.quantize_blocks(x, gate_and_up=1)),
                (ValueError, "gate_up_order", lambda: tessera.quantize_blocks(x, gate_and_up=True, gate_up_order="up"))):
            with self.assertRaises(kind) as raised:
                call()
            self.assertTrue(str(raised.exception).startswith(name + ":"), raised.exception)


class ConvertingScales(unittest.TestCase):
    """From what checkpoints hold to what a layer takes."""

    def setUp(self):
        self.scales = numpy.random.default_rng(4).random((3, 4, 3), numpy.float32)  # of [3, 2 * 208, 272]

    def test_grids(self):
        shape = (3, 416, 272)
        expected = self.scales.reshape(3, 2, 2, 3)
        for given in (self.scales, expected):
            self.assertTrue(numpy.array_equal(tessera.convert_scales(given, shape, gate_and_up=True), expected))
        in_turn = self.scales.reshape(3, 2, 2, 3).swapaxes(1, 2).copy()
        for given in (in_turn, in_turn.reshape(3, 4, 3)):
            got = tessera.convert_scales(given, shape, gate_and_up=True, grid="interleaved")
            self.assertTrue(numpy.array_equal(got, expected))
        through = tessera.convert_scales(self.scales, shape, gate_and_up=True, grid="concatenated", up_offset=80)
        self.assertEqual(through.shape, (3, 2, 3, 3))
        self.assertTrue(numpy.array_equal(through[:, 0, :2], self.scales[:, :2]))
        self.assertTrue(numpy.array_equal(through[:, 1], self.scales[:, 1:]))
        one = tessera.convert_scales(self.scales[0], (512, 272))
        self.assertTrue(numpy.array_equal(one, self.scales[0]))
        one[:] = 0  # of its own memory

    def test_types(self):
        powers = numpy.arange(36, dtype=numpy.uint8).reshape(3, 4, 3) * 7
        got = tessera.convert_scales(powers, (3, 512, 384))
        self.assertTrue(numpy.array_equal(got, numpy.ldexp(numpy.float32(1), powers.astype(int) - 127)))
        try:
            import ml_dtypes
        except ImportError:
            return
        for dtype, given in ((ml_dtypes.float8_e8m0fnu, powers), (ml_dtypes.bfloat16, self.scales)):
            stored = given.view(dtype) if dtype is ml_dtypes.float8_e8m0fnu else given.astype(dtype)
            got = tessera.convert_scales(stored, (3, 512, 384))
            self.assertTrue(numpy.array_equal(got, stored.astype(numpy.float32)), dtype)

    def test_bad_input(self):
        right = {"scale": self.scales, "shape": (3, 416, 272), "gate_and_up": True}
        bad = self.scales.copy()
        bad[1, 3, 2] = -1
        for kind, begin, changed in (
                (TypeError, "scale: got list", {"scale": [1.0]}),
                (TypeError, "scale: got float64", {"scale": self.scales.astype(numpy.float64)}),
                (TypeError, "scale: got float16", {"scale": self.scales.astype(numpy.float16)}),
                (TypeError, "shape: got 416", {"shape": 416}),
                (TypeError, "shape: got float", {"shape": (3, 416.0, 272)}),
                (TypeError, "gate_and_up: got int", {"gate_and_up": 1}),
                (ValueError, "shape: got 415 rows", {"shape": (3, 415, 272)}),
                (ValueError, "scale: got shape [3, 4, 3], expected [3, 4, 2] or [3, 2, 2, 2]", {"shape": (3, 416, 256)}),
                (ValueError, "scale: got shape [3, 4, 3], expected [3, 3, 3], a block each 128 x 128 of concatenated rows",
                 {"shape": (3, 384, 272), "grid": "concatenated"}),
                (ValueError, "scale: got shape [3, 4, 3], expected [4, 3]", {"shape": (416, 272)}),
                (ValueError, "grid: got 'columns'", {"grid": "columns"}),
                (ValueError, "scale: got shape [3, 4, 3], expected [3, 416]", {"grid": "rows"}),
                (ValueError, "grid: got one of gate and up rows", {"gate_and_up": False, "grid": "interleaved"}),
                (ValueError, "up_offset: got 128", {"up_offset": 128}),
                (ValueError, "up offset: got 80", {"up_offset": 80}),
                (ValueError, "scale of expert 0, up, block [0, 0]: got ", {"grid": "concatenated"}),
                (ValueError, "scale of expert 1, up, block [1, 2]: got -1", {"scale": bad}),
                (ValueError, "scale of expert 0, gate, block [0, 0]: got nan",
                 {"scale": numpy.full((3, 4, 3), 255, numpy.uint8)}),
                (BufferError, "scale", {"scale": self.scales.swapaxes(1, 2).copy().swapaxes(1, 2)})):
            with self.assertRaises(kind) as raised:
                tessera.convert_scales(**{**right, **changed})
            self.assertTrue(str(raised.exception).startswith(begin), raised.exception)


class Layers(Fp8Layers, unittest.TestCase):
    """Arguments of a case with weights quantized the slow way."""

    FORMAT = FORMAT

    def arguments(self, case, _entry=None):
        gate_up, gate_up_scale = blocks_of(with_uneven_blocks(case.gate_up), case)
        down, down_scale = blocks_of(with_uneven_blocks(case.down))
        def made(values):
            return array_of(values, case.dtype)
        expert_map = None if case.expert_map is None else numpy.array(case.expert_map, numpy.int32)
        given = [made(case.x), gate_up, down, case.ids, case.topk_weights]
        named = {**case.options(), "gate_up_bias": made(case.gate_up_bias), "down_bias": made(case.down_bias),
                 "expert_map": expert_map, "gate_up_scale": gate_up_scale, "down_scale": down_scale,
                 "weight_format": FORMAT, "round_like_engines": case.round_like_engines}
        shared = {}
        if case.shared_intermediate:
            codes, scales = blocks_of(with_uneven_blocks(case.shared_gate_up), case)
            shared.update(shared_gate_up=codes, shared_gate_up_scale=scales)
            codes, scales = blocks_of(with_uneven_blocks(case.shared_down))
            shared.update(shared_down=codes, shared_down_scale=scales)
        return given, named, shared

    def reference(self, case, given, named, shared):
        experts = None
        if shared:
            experts = (values_of(shared["shared_gate_up"], shared["shared_gate_up_scale"], case),
                       values_of(shared["shared_down"], shared["shared_down_scale"]))
        return layer_reference.layer(
            case.dtype, layer_reference.round_by_e4m3(case.x), values_of(given[1], named["gate_up_scale"], case),
            values_of(given[2], named["down_scale"]), case.ids, case.topk_weights, case.gate_up_bias, case.down_bias,
            case.expert_map, shared=experts, shared_weight=case.shared_weight, keep=layer_reference.round_by_e4m3,
            round_like_engines=case.round_like_engines, **case.options())

    def test_the_judge_sees_another_scale(self):
        case = self.case_of("fp8_hidden_272")
        given, named, shared = self.arguments(case)
        expected = self.reference(case, given, named, shared)
        named["gate_up_scale"] = named["gate_up_scale"][:, ::-1].copy()  # gate's and up's swapped
        self.assertGreater(self.errors(tessera.moe(*given, **named).astype(numpy.float64), expected).min(), 1.5e-2)

    def case_of(self, name, dtype="float16"):
        return of_battery(next(entry for entry in battery.entries(FORMAT) if entry.name == name), dtype)

    def test_scales_counted_through_gate_and_up(self):
        case = self.case_of("fp8_hidden_272")
        case.order = "gate_first"
        given, named, shared = self.arguments(case)
        width = case.gate_up.shape[1] // 2
        self.assertNotEqual(width % 128, 0)
        given[1], stored = layer_reference.quantized(with_uneven_blocks(case.gate_up), 128)
        offset = width % 128
        scales = tessera.convert_scales(stored, given[1].shape, gate_and_up=True, grid="concatenated", up_offset=offset)
        out = tessera.moe(*given, **{**named, "gate_up_scale": scales}, scale_offsets=(0, offset, 0))
        expected = layer_reference.layer(
            case.dtype, layer_reference.round_by_e4m3(case.x), layer_reference.dequantized(given[1], stored, 128),
            values_of(given[2], named["down_scale"]), case.ids, case.topk_weights, case.gate_up_bias, case.down_bias,
            case.expert_map, keep=layer_reference.round_by_e4m3, **case.options())
        self.assertLess(self.errors(out.astype(numpy.float64), expected).max(), 1.5e-2)
        wrong = tessera.moe(*given, **{**named, "gate_up_scale": scales})
        self.assertGreater(self.errors(wrong.astype(numpy.float64), expected).max(), 1.5e-2)

    def test_tokens_that_are_quantized(self):
        case = self.case_of("fp8_hidden_272")
        given, named, _ = self.arguments(case)
        right = tessera.moe(*given, **named)
        codes, scales = tessera.quantize_rows(given[0])
        got = tessera.moe(codes, *given[1:], **named, x_scale=scales, dtype="float16")
        self.assertEqual(got.dtype, numpy.float16)
        self.assertTrue(numpy.array_equal(got, right))
        layer = tessera.MoELayer(*given[1:3], top_k=case.top_k, dtype="float16", **named)
        self.assertTrue(numpy.array_equal(layer(codes, *given[3:], x_scale=scales), right))
        self.assertTrue(numpy.array_equal(layer(given[0], *given[3:]), right))
        # Whatever the scales are: they are a caller's.
        other = numpy.exp2(numpy.ceil(numpy.log2(scales))).astype(numpy.float32)
        expected = layer_reference.layer(
            case.dtype, layer_reference.dequantized(codes, other), values_of(given[1], named["gate_up_scale"], case),
            values_of(given[2], named["down_scale"]), case.ids, case.topk_weights, case.gate_up_bias, case.down_bias,
            case.expert_map, keep=layer_reference.round_by_e4m3, **case.options())
        got = layer(codes, *given[3:], x_scale=other)
        self.assertLess(self.errors(got.astype(numpy.float64), expected).max(), 1.5e-2)
        self.assertFalse(numpy.array_equal(got, right))

    def test_what_numpy_has_no_type_for_must_be_given(self):
        case = self.case_of("fp8_hidden_272", "bfloat16")
        given, named, _ = self.arguments(case)
        codes, scales = tessera.quantize_rows(case.x.astype(numpy.float32))
        out = array_of(numpy.full(case.x.shape, numpy.nan), "bfloat16")
        tessera.moe(codes, *given[1:], **named, x_scale=scales, out=out, workspace=numpy.empty(1 << 22, numpy.uint8))
        self.assertFalse(numpy.isnan(from_bfloat16_bits(out.array)).any())
        try:
            numpy.dtype("bfloat16")  # where ml_dtypes was imported
        except TypeError:
            with self.assertRaises(ValueError) as raised:
                tessera.moe(codes, *given[1:], **named, x_scale=scales)
            self.assertIn("out: got None, expected an array: NumPy has no bfloat16", str(raised.exception))

    def test_bad_input(self):
        case = self.case_of("fp8_hidden_272")
        given, named, _ = self.arguments(case)
        right = dict(zip(("x", "gate_up", "down", "topk_ids", "topk_weights"), given)) | named
        scale = right["gate_up_scale"]
        tokens, token_scales = tessera.quantize_rows(given[0])
        quantized = {"x": tokens, "x_scale": token_scales, "dtype": "float16"}
        dense = {"weight_format": "dense", "gate_up_scale": None, "down_scale": None,
                 "gate_up": case.gate_up.astype(numpy.float16), "down": case.down.astype(numpy.float16)}
        for kind, name, changed in (
                (TypeError, "gate_up", {"gate_up": Producer(right["gate_up"], code=12)}),  # e5m2
                (TypeError, "down", {"down": Producer(right["down"], code=12)}),
                (TypeError, "down", {"down": case.down.astype(numpy.float16)}),  # gate_up is e4m3
                (TypeError, "gate_up", {"gate_up": case.gate_up.astype(numpy.float16)}),  # down is
                (BufferError, "gate_up", {"gate_up": shifted(right["gate_up"])}),
                (BufferError, "down_scale", {"down_scale": shifted(right["down_scale"])}),
                (ValueError, "down_scale", {"down_scale": right["down_scale"][:-1].copy()}),
                (ValueError, "down_scale", dense | {"down_scale": right["down_scale"]}),
                (ValueError, "scale_offsets", {"scale_offsets": (128, 0, 0)}),
                (ValueError, "scale_offsets", {"scale_offsets": (0, -1, 0)}),
                (ValueError, "scale_offsets", dense | {"scale_offsets": (0, 0, 16)}),
                (TypeError, "scale_offsets", {"scale_offsets": 64}),
                (TypeError, "scale_offsets", {"scale_offsets": (0, 64)}),
                (TypeError, "scale_offsets", {"scale_offsets": (0, 64.0, 0)}),
                (ValueError, "gate_up_scale", {"scale_offsets": (0, 127, 0)}),
                (ValueError, "down_scale", {"scale_offsets": (0, 0, 127)}),
                (TypeError, "x", {"x": tokens}),
                (TypeError, "x", quantized | {"x": given[0]}),
                (TypeError, "x", quantized | {"x": Producer(tokens, code=12)}),
                (BufferError, "x", quantized | {"x": shifted(tokens)}),
                (ValueError, "x_scale", dense | quantized),
                (ValueError, "x_scale", quantized | {"x_scale": token_scales[:-1].copy()}),
                (ValueError, "x_scale", quantized | {"x_scale": token_scales[:, :-1].copy()}),
                (TypeError, "x_scale", quantized | {"x_scale": token_scales.astype(numpy.float16)}),
                (BufferError, "x_scale", quantized | {"x_scale": token_scales[:, ::-1]}),
                (TypeError, "out", quantized | {"out": numpy.empty(tokens.shape, numpy.float32)}),
                (ValueError, "dtype", {"dtype": "float32"}),
                (ValueError, "dtype", quantized | {"dtype": "float8"}),
                (ValueError, "gate_up_scale", {"gate_up_scale": None}),
                (ValueError, "down_scale", {"down_scale": None}),
                (ValueError, "gate_up_scale", {"gate_up_scale": scale[:, :, :, :2].copy()}),
                (ValueError, "gate_up_scale", {"gate_up_scale": scale.reshape(-1)}),
                (TypeError, "gate_up_scale", {"gate_up_scale": scale.astype(numpy.float64)}),
                (BufferError, "gate_up_scale", {"gate_up_scale": scale[:, ::-1]}),
                (TypeError, "gate_up", {"gate_up": round_to("float16", case.gate_up).astype(numpy.float16)}),
                (TypeError, "down", {"down": right["down"].astype(numpy.int32)}),
                (TypeError, "gate_up_bias", {"gate_up_bias": numpy.zeros((3, 288), numpy.float32)}),
                (ValueError, "gate_up_scale", {"weight_format": "dense", "gate_up": case.gate_up.astype(numpy.float16),
                                               "down": case.down.astype(numpy.float16)}),
                (TypeError, "gate_up", {"weight_format": "dense"})):
            with self.assertRaises(kind) as raised:
                tessera.moe(**{**right, **changed})
            self.assertTrue(str(raised.exception).startswith(name + ":"), raised.exception)
        with self.assertRaises(ValueError):
            tessera.MoELayer(right["gate_up"], right["down"], top_k=2, transposed=True, **named)
        with self.assertRaises(ValueError) as raised:
            tessera.moe(right["x"][:, :264].copy(), right["gate_up"][:, :, :264].copy(), right["down"][:, :264].copy(),
                        right["topk_ids"], right["topk_weights"], **named)
        self.assertIn("multiple of 16", str(raised.exception))


if __name__ == "__main__":
    unittest.main()
