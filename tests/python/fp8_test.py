"""Weights of format fp8-block on NumPy arrays: quantizing by its recipe, layers against a slow one in float64, bad input."""
import unittest

import numpy
import tessera
from python_support import array_of, battery, from_bfloat16_bits, layer_reference, of_battery, round_to

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


class Layers(unittest.TestCase):
    """Arguments of a case with weights quantized the slow way."""

    def arguments(self, case):
        gate_up, gate_up_scale = blocks_of(with_uneven_blocks(case.gate_up), case)
        down, down_scale = blocks_of(with_uneven_blocks(case.down))
        def made(values):
            return array_of(values, case.dtype)
        expert_map = None if case.expert_map is None else numpy.array(case.expert_map, numpy.int32)
        given = [made(case.x), gate_up, down, case.ids, case.topk_weights]
        named = {**case.options(), "gate_up_bias": made(case.gate_up_bias), "down_bias": made(case.down_bias),
                 "expert_map": expert_map, "gate_up_scale": gate_up_scale, "down_scale": down_scale,
                 "weight_format": FORMAT}
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
            **case.options())

    def run_case(self, case):
        """(out, reference) in float64."""
        given, named, shared = self.arguments(case)
        layer = tessera.MoELayer(given[1], given[2], top_k=case.top_k, dtype=case.dtype, **named, **shared)
        out = array_of(numpy.full(case.x.shape, numpy.nan), case.dtype)
        workspace = numpy.full(layer.workspace_bytes(case.tokens), 0xFF, numpy.uint8)
        weight = {"shared_weight": case.shared_weight} if shared else {}
        layer(given[0], *given[3:], out=out, workspace=workspace, **weight)
        if not shared and case.dtype != "bfloat16":
            self.assertTrue(numpy.array_equal(tessera.moe(*given, **named), out), case)
        got = from_bfloat16_bits(out.array) if case.dtype == "bfloat16" else out.astype(numpy.float64)
        return got, self.reference(case, given, named, shared)

    def errors(self, got, expected):
        kept = numpy.linalg.norm(expected, axis=1) > 0
        self.assertFalse(got[~kept].any())
        return numpy.linalg.norm(got - expected, axis=1)[kept] / numpy.linalg.norm(expected[kept], axis=1)

    def test_battery(self):
        ran = 0
        for number, entry in enumerate(battery.entries(FORMAT)):
            case = of_battery(entry, entry.dtypes[number % len(entry.dtypes)])
            case.integers = case.narrow_weights = False
            errors = self.errors(*self.run_case(case))
            if errors.size:
                self.assertLess(errors.max(), 1.5e-2 * (1 + 8 / case.hidden**0.5), entry.name)
                self.assertLess(numpy.median(errors), 6e-3 * (1 + 8 / (case.hidden * errors.size)**0.5), entry.name)
            ran += 1
        self.assertGreater(ran, 50)

    def test_the_judge_sees_another_scale(self):
        case = of_battery(next(entry for entry in battery.entries(FORMAT) if entry.name == "fp8_hidden_272"), "float16")
        given, named, shared = self.arguments(case)
        expected = self.reference(case, given, named, shared)
        named["gate_up_scale"] = named["gate_up_scale"][:, ::-1].copy()  # gate's and up's swapped
        self.assertGreater(self.errors(tessera.moe(*given, **named).astype(numpy.float64), expected).min(), 1.5e-2)

    def test_bad_input(self):
        case = of_battery(next(entry for entry in battery.entries(FORMAT) if entry.name == "fp8_hidden_272"), "float16")
        given, named, _ = self.arguments(case)
        right = dict(zip(("x", "gate_up", "down", "topk_ids", "topk_weights"), given)) | named
        scale = right["gate_up_scale"]
        for kind, name, changed in (
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
