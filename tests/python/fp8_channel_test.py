"""Weights of format fp8-channel on NumPy arrays: layers against a slow one in float64, each kind of scale, bad input."""
import unittest

import numpy
import tessera
from python_support import Fp8Layers, array_of, battery, layer_reference, of_battery

FORMAT = "fp8-channel"


def channels_of(weight):
    """(codes, scales [.., R, 1]) of [.., R, C] by the slow way."""
    values = weight.astype(numpy.float32)
    amax = numpy.abs(values).max(axis=-1, keepdims=True, initial=0)
    scales = numpy.maximum(amax, numpy.float32(1e-10)) * (numpy.float32(1) / numpy.float32(448))
    return layer_reference.e4m3_codes(values * (numpy.float32(1) / scales)), scales


def values_of(codes, scales):
    return layer_reference.E4M3[codes] * scales.astype(numpy.float64).reshape(*codes.shape[:-1], 1)


def round_whole_rows(values):
    return values_of(*channels_of(values))


def round_by(scale):
    """What quantizing by a static scale leaves of values."""
    inverse = numpy.float32(1) / numpy.float32(scale)
    return lambda values: layer_reference.E4M3[layer_reference.e4m3_codes(values.astype(numpy.float32) * inverse)] * float(
        scale)


def uneven(weight):
    """No row's numbers are of the size of its neighbour's."""
    return weight * 2.0**(numpy.arange(weight.shape[-2])[:, None] * 3 % 4 - 1)


def static(count, most):
    return numpy.float32(most / 448) * (1 + numpy.float32(0.2) * (numpy.arange(count, dtype=numpy.float32) % 4)) if count \
        else None


class ChannelLayers(Fp8Layers, unittest.TestCase):
    FORMAT = FORMAT

    def arguments(self, case, entry):
        gate_up, gate_up_scale = channels_of(uneven(case.gate_up))
        down, down_scale = channels_of(uneven(case.down))
        def made(values):
            return array_of(values, case.dtype)
        expert_map = None if case.expert_map is None else numpy.array(case.expert_map, numpy.int32)
        given = [made(case.x), gate_up, down, case.ids, case.topk_weights]
        named = {**case.options(), "gate_up_bias": made(case.gate_up_bias), "down_bias": made(case.down_bias),
                 "expert_map": expert_map, "gate_up_scale": gate_up_scale[..., 0], "down_scale": down_scale,
                 "gate_up_input_scale": static(entry.x_scales, 4), "down_input_scale": static(entry.h_scales, 6),
                 "weight_format": FORMAT, "round_like_engines": case.round_like_engines}
        shared = {}
        if case.shared_intermediate:
            shared["shared_gate_up"], shared["shared_gate_up_scale"] = channels_of(uneven(case.shared_gate_up))
            shared["shared_down"], scale = channels_of(uneven(case.shared_down))
            shared["shared_down_scale"] = scale[:, 0]
        return given, named, shared

    def reference(self, case, given, named, shared):
        def of_expert(expert):
            scales = [named["gate_up_input_scale"], named["down_input_scale"]]
            makes = round_whole_rows, layer_reference.round_by_e4m3
            return [make if scale is None else round_by(scale[min(expert, len(scale) - 1)])
                    for make, scale in zip(makes, scales)]
        experts = None
        if shared:
            experts = [values_of(shared[name], shared[name + "_scale"]) for name in ("shared_gate_up", "shared_down")]
        return layer_reference.layer(
            case.dtype, case.x, values_of(given[1], named["gate_up_scale"]), values_of(given[2], named["down_scale"]),
            case.ids, case.topk_weights, case.gate_up_bias, case.down_bias, case.expert_map, shared=experts,
            shared_weight=case.shared_weight, of_expert=of_expert, round_like_engines=case.round_like_engines,
            **case.options())

    def case_of(self, name, dtype="float16"):
        entry = next(entry for entry in battery.entries(FORMAT) if entry.name == name)
        return of_battery(entry, dtype), entry

    def test_the_judge_sees_another_scale(self):
        case, entry = self.case_of("channel_hidden_272")
        given, named, shared = self.arguments(case, entry)
        expected = self.reference(case, given, named, shared)
        for name in ("gate_up_scale", "down_scale"):
            wrong = tessera.moe(*given, **named | {name: numpy.roll(named[name], 1, axis=1)})
            self.assertGreater(self.errors(wrong.astype(numpy.float64), expected).min(), 1.5e-2)

    def test_rows_are_quantized_by_the_recipe(self):
        weight = numpy.random.default_rng(3).standard_normal((3, 32, 272)).astype(numpy.float32)
        expected = channels_of(weight)
        codes, scales = tessera.quantize_rows(weight, whole_rows=True)
        self.assertTrue(numpy.array_equal(codes, expected[0]) and numpy.array_equal(scales, expected[1]))
        codes, scales = tessera.quantize_rows(weight)
        self.assertEqual(scales.shape, (3, 32, 3))

    def test_tokens_that_are_quantized(self):
        case, entry = self.case_of("channel_hidden_272")
        given, named, _ = self.arguments(case, entry)
        codes, scales = tessera.quantize_rows(given[0], whole_rows=True)
        got = tessera.moe(codes, *given[1:], **named, x_scale=scales, dtype="float16")
        self.assertTrue(numpy.array_equal(got, tessera.moe(*given, **named)))
        with self.assertRaises(ValueError) as raised:
            tessera.moe(codes, *given[1:], **named, x_scale=tessera.quantize_rows(given[0])[1], dtype="float16")
        self.assertIn("x_scale: got shape [20, 3], expected [20, 1]", str(raised.exception))

    def test_scales_of_tensors_become_scales_of_rows(self):
        random = numpy.random.default_rng(5)
        halves = random.random((3, 2), numpy.float32)
        shape = 3, 32, 272
        for order, rows in (("gate_first", halves.repeat(16, 1)), ("up_first", halves[:, ::-1].repeat(16, 1)),
                            ("interleaved", numpy.tile(halves, (1, 16)))):
            for given in (halves, halves[..., None]):
                got = tessera.convert_scales(given, shape, gate_and_up=True, grid="halves", gate_up_order=order)
                self.assertTrue(numpy.array_equal(got, rows), order)
        for given in (halves[:, 0].copy(), halves[:, :1].copy()):
            got = tessera.convert_scales(given, shape, grid="matrices")
            self.assertTrue(numpy.array_equal(got, halves[:, :1].repeat(32, 1)))
        powers = numpy.arange(96, dtype=numpy.uint8).reshape(3, 32, 1) + 80
        got = tessera.convert_scales(powers, shape, grid="rows")
        self.assertTrue(numpy.array_equal(got, numpy.ldexp(numpy.float32(1), powers[..., 0].astype(int) - 127)))

    def test_bad_scales_to_convert(self):
        right = {"scale": numpy.ones((3, 2), numpy.float32), "shape": (3, 32, 16), "gate_and_up": True, "grid": "halves"}
        for begin, changed in (("scale: got shape [3, 3]", {"scale": numpy.ones((3, 3), numpy.float32)}),
                               ("grid: got halves", {"gate_and_up": False}),
                               ("grid: got 'tensors'", {"grid": "tensors"}),
                               ("up_offset: got 16", {"up_offset": 16}),
                               ("gate_up_order: got 'up'", {"gate_up_order": "up"}),
                               ("scale of expert 0, row 0: got -1", {"scale": -numpy.ones((3, 2), numpy.float32)})):
            with self.assertRaises(ValueError) as raised:
                tessera.convert_scales(**right | changed)
            self.assertTrue(str(raised.exception).startswith(begin), raised.exception)

    def test_bad_input(self):
        case, entry = self.case_of("channel_few_22")
        given, named, _ = self.arguments(case, entry)
        right = dict(zip(("x", "gate_up", "down", "topk_ids", "topk_weights"), given)) | named
        one = numpy.ones(1, numpy.float32)
        for kind, name, changed in (
                (ValueError, "gate_up_scale", {"gate_up_scale": named["gate_up_scale"][:, :-1].copy()}),
                (ValueError, "gate_up_scale", {"gate_up_scale": None}),
                (TypeError, "down_scale", {"down_scale": named["down_scale"].astype(numpy.float16)}),
                (BufferError, "down_scale", {"down_scale": named["down_scale"][::-1]}),
                (ValueError, "gate_up_input_scale", {"gate_up_input_scale": numpy.ones(2, numpy.float32)}),
                (ValueError, "gate_up_input_scale", {"gate_up_input_scale": one.reshape(1, 1)}),
                (TypeError, "down_input_scale", {"down_input_scale": numpy.ones(1, numpy.float16)}),
                (ValueError, "scale_offsets", {"scale_offsets": (0, 0, 16)}),
                (TypeError, "round_like_engines", {"round_like_engines": 1}),
                (ValueError, "gate_up_input_scale", {
                    "weight_format": "fp8-block", "gate_up_input_scale": one,
                    "gate_up_scale": numpy.ones((5, 2, 2, 2), numpy.float32),
                    "down_scale": numpy.ones((5, 2, 2), numpy.float32)}),
                (ValueError, "round_like_engines", {
                    "weight_format": "dense", "round_like_engines": True, "gate_up_scale": None, "down_scale": None})):
            with self.assertRaises(kind) as raised:
                tessera.moe(**right | changed)
            self.assertTrue(str(raised.exception).startswith(name + ":"), raised.exception)


if __name__ == "__main__":
    unittest.main()
