"""tessera.moe and tessera.MoELayer on NumPy arrays, against a slow layer in float64."""
import collections
import threading
import unittest

import numpy
import tessera
from python_support import (POISON, Case, Producer, arguments, array_of, battery_cases, bfloat16, from_bfloat16_bits,
                            poisoned, problems, round_to)


def run(case):
    given, named = arguments(case)
    return tessera.moe(*given, **named, out=poisoned(case.x.shape, case.dtype))


def make_layer(case, **more):
    given, named = arguments(case)
    return tessera.MoELayer(given[1], given[2], top_k=case.top_k, **named, **more)


def run_layer(case):
    """float64 values of what a MoELayer gives; the function, which has no shared expert, must give the same bits."""
    given, named = arguments(case)
    shared, weight = {}, {}
    if case.shared_intermediate:
        shared = {"shared_gate_up": array_of(case.shared_gate_up, case.dtype),
                  "shared_down": array_of(case.shared_down, case.dtype)}
        weight = {"shared_weight": case.shared_weight}
    layer = tessera.MoELayer(given[1], given[2], top_k=case.top_k, **named, **shared)
    out = array_of(numpy.full(case.x.shape, numpy.nan), case.dtype)
    workspace = numpy.full(layer.workspace_bytes(case.tokens), POISON, numpy.uint8)
    layer(given[0], *given[3:], out=out, workspace=workspace, **weight)
    if case.dtype == "bfloat16":
        return from_bfloat16_bits(out.array)
    if not shared and not numpy.array_equal(run(case), out):
        raise AssertionError(f"the layer and the function differ: {case}")
    return out.astype(numpy.float64)


class Numbers(unittest.TestCase):
    def check(self, case):
        self.assertEqual(problems(run(case), case.reference(), case.dtype), [], case)

    def test_battery(self):
        """The cases of the C++ tests."""
        ran = collections.Counter()
        for name, case in battery_cases():
            got, expected = run_layer(case), case.reference()
            if case.integers:
                expected = round_to(case.dtype, expected)
                self.assertTrue(numpy.array_equal(got, expected), name)
            self.assertEqual(problems(got, expected, case.dtype, narrow_rows=8), [], name)
            ran[case.dtype] += 1
        self.assertGreater(min(ran["float32"], ran["float16"], ran["bfloat16"]), 40)

    def test_every_number_of_tokens(self):
        for tokens in (*range(0, 20), 63, 64, 65):
            self.check(Case(tokens=tokens))

    def test_ids_of_both_widths(self):
        self.assertTrue(numpy.array_equal(run(Case(ids_type=numpy.int32)), run(Case(ids_type=numpy.int64))))

    def test_ids_of_no_expert_add_nothing(self):
        ids = numpy.array([[0, 1], [-1, 2], [5, 1], [-1, -1], [2**31 - 1, -2**31], [4, 4], [0, 3], [1, 0], [2, 3]])
        self.check(Case(ids=ids, top_k=2))
        wide = ids.copy()
        wide[4] = 2**40, -2**40 + 1  # ids whose low 32 bits are those of an expert
        self.check(Case(ids=wide, top_k=2))
        self.check(Case(ids=numpy.full((9, 2), -1), top_k=2))

    def test_experts_without_tokens(self):
        for only in (0, 4):
            self.check(Case(ids=numpy.full((9, 3), only)))

    def test_shard(self):
        self.check(Case(first_expert=7))
        self.check(Case(expert_map=[-1, 4, -7, 0, 2, 1, -1, 3]))

    def test_routing_weights_of_the_type_of_x(self):
        case = Case(dtype="float16")
        case.topk_weights = case.topk_weights.astype(numpy.float16)
        self.check(case)

    def test_bfloat16_through_dlpack(self):
        case = Case(dtype="bfloat16", tokens=17)
        bits = numpy.full(case.x.shape, 0xFFFF, numpy.uint16)
        layer = tessera.MoELayer(bfloat16(case.gate_up), bfloat16(case.down), top_k=case.top_k)
        workspace = numpy.full(layer.workspace_bytes(case.tokens), POISON, numpy.uint8)
        x = bfloat16(case.x)
        out = bfloat16(case.x)
        out.array[:] = bits
        self.assertIs(layer(x, case.ids, case.topk_weights, out=out, workspace=workspace), out)
        self.assertEqual(problems(from_bfloat16_bits(out.array), case.reference(), "bfloat16"), [])
        self.assertEqual((x.made, x.deleted), (1, 1))

    def test_shared_expert(self):
        for gated in (True, False):
            case = Case(shared_intermediate=24, gated=gated, activation="relu")
            shared = {"shared_gate_up": case.shared_gate_up.astype(case.dtype),
                      "shared_down": case.shared_down.astype(case.dtype)}
            layer, (given, _) = make_layer(case, **shared), arguments(case)
            got = layer(given[0], given[3], given[4], shared_weight=case.shared_weight)
            self.assertEqual(problems(got, case.reference(), case.dtype), [])
            case.shared_weight[:] = 1
            self.assertEqual(problems(layer(given[0], given[3], given[4]), case.reference(), case.dtype), [])


class ExactNumbers(unittest.TestCase):
    """Small integers and powers of two: every sum is exact, so the result is known bit for bit."""

    def exact_case(self, dtype, activation):
        case = Case(tokens=33, hidden=128, intermediate=64, dtype=dtype, activation=activation, seed=5)
        random = numpy.random.default_rng(6)
        for values in (case.x, case.gate_up, case.down):
            values[:] = random.integers(-1, 2, values.shape) * (random.random(values.shape) < 0.1)
        case.topk_weights = numpy.exp2(random.integers(-1, 2, case.topk_weights.shape)).astype(numpy.float32)
        return case

    def test_bit_for_bit(self):
        for dtype in ("float32", "float16"):
            for activation in ("identity", "relu"):
                case = self.exact_case(dtype, activation)
                expected = case.reference()
                self.assertTrue(expected.any())
                self.assertTrue(numpy.array_equal(run(case).astype(numpy.float64), expected))


class Promises(unittest.TestCase):
    def test_the_same_bits_whatever_the_batch_and_the_threads(self):
        case = Case(tokens=40, hidden=128, intermediate=96)
        given, named = arguments(case)
        whole = run(case)
        for row in (0, 17, 39):
            alone = tessera.moe(given[0][row:row + 1], *given[1:3], given[3][row:row + 1], given[4][row:row + 1], **named)
            self.assertTrue(numpy.array_equal(alone[0], whole[row]))
        for threads in (1, 2, 3):
            got = make_layer(case, num_threads=threads)(given[0], given[3], given[4])
            self.assertTrue(numpy.array_equal(got, whole))

    def test_nothing_beside_the_result_is_written(self):
        case = Case(tokens=11)
        given, _ = arguments(case)
        layer = make_layer(case)
        num_bytes = layer.workspace_bytes(case.tokens)
        room = numpy.full(num_bytes + 128, POISON, numpy.uint8)
        around = poisoned((case.tokens + 2, case.hidden), case.dtype)
        got = layer(given[0], given[3], given[4], out=around[1:-1], workspace=room[64:64 + num_bytes])
        self.assertTrue(numpy.shares_memory(got, around))
        self.assertEqual(problems(got, case.reference(), case.dtype), [])
        self.assertTrue((around[[0, -1]].view(numpy.uint8) == POISON).all())
        self.assertTrue((room[:64] == POISON).all() and (room[64 + num_bytes:] == POISON).all())

    def test_layer_and_function_agree(self):
        case = Case(biases=True, order="interleaved", activation="clamped_swiglu", alpha=1.702, beta=1.0, limit=7.0)
        given, _ = arguments(case)
        layer = make_layer(case)
        self.assertTrue(numpy.array_equal(layer(given[0], given[3], given[4]), run(case)))
        self.assertEqual((layer.hidden_size, layer.intermediate_size, layer.num_experts, layer.top_k), (64, 40, 5, 3))

    def test_weights_changed_in_place_are_seen(self):
        case = Case()
        given, named = arguments(case)
        tessera.moe(*given, **named)
        given[1][:] = given[1][::-1].copy()
        case.gate_up = case.gate_up[::-1]
        self.assertEqual(problems(tessera.moe(*given, **named), case.reference(), case.dtype), [])

    def test_more_layers_than_are_kept(self):
        cases = [Case(seed=seed, hidden=8 * (1 + seed % 3)) for seed in range(20)]
        for _ in range(2):
            for case in cases:
                self.assertEqual(problems(run(case), case.reference(), case.dtype), [])

    def test_threads_take_turns(self):
        case = Case(tokens=50, hidden=128)
        given, _ = arguments(case)
        layer, expected, wrong = make_layer(case), run(case), []

        def work():
            for _ in range(20):
                if not numpy.array_equal(layer(given[0], given[3], given[4]), expected):
                    wrong.append("bits differ")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


class TransposedWeights(unittest.TestCase):
    def setUp(self):
        self.case = Case(dtype="float16", order="interleaved")
        self.given, self.named = arguments(self.case)
        self.gate_up, self.down = (numpy.ascontiguousarray(w.transpose(0, 2, 1)) for w in self.given[1:3])
        self.expected = run(self.case)

    def test_prepared(self):
        gate_up, down = tessera.prepare_weights(self.gate_up, self.down)
        self.assertTrue(numpy.array_equal(gate_up, self.given[1]) and numpy.array_equal(down, self.given[2]))
        self.assertTrue(gate_up.flags.c_contiguous and down.flags.c_contiguous)

    def test_prepared_not_gated(self):
        case = Case(gated=False)
        given, _ = arguments(case)
        transposed = [numpy.ascontiguousarray(w.transpose(0, 2, 1)) for w in given[1:3]]
        for got, want in zip(tessera.prepare_weights(*transposed, gated=False), given[1:3]):
            self.assertTrue(numpy.array_equal(got, want))

    def test_views_of_prepared_weights_in_the_shape_of_the_checkpoint(self):
        views = [w.transpose(0, 2, 1) for w in tessera.prepare_weights(self.gate_up, self.down)]
        self.assertEqual(views[0].shape, self.gate_up.shape)
        got = tessera.moe(self.given[0], *views, *self.given[3:], **self.named)
        self.assertTrue(numpy.array_equal(got, self.expected))

    def test_layer_of_transposed_weights(self):
        for kind in (lambda array: array, Producer):
            layer = tessera.MoELayer(kind(self.gate_up), kind(self.down), top_k=3, transposed=True, **self.named)
            got = layer(self.given[0], self.given[3], self.given[4])
            self.assertTrue(numpy.array_equal(got, self.expected))


class TheCheckItself(unittest.TestCase):
    """A check that accepts a wrong layer is worth nothing."""

    def setUp(self):
        self.case = Case(tokens=160, hidden=64, dtype="float32")
        self.right, self.expected = run(self.case), self.case.reference()
        self.assertEqual(problems(self.right, self.expected, "float32"), [])

    def assertCaught(self, wrong):
        self.assertNotEqual(problems(wrong, self.expected, "float32"), [])

    def test_planted_errors_are_found(self):
        self.assertCaught(numpy.zeros_like(self.right))
        swapped = self.right.copy()
        swapped[[3, 4]] = swapped[[4, 3]]
        self.assertCaught(swapped)
        patched = self.right.copy()
        patched[:128, :32] *= 1.001
        self.assertCaught(patched)
        poisoned_row = self.right.copy()
        poisoned_row[7, 7] = numpy.nan
        self.assertCaught(poisoned_row)

    def test_a_wrong_expert_is_found(self):
        given, named = arguments(self.case)
        given[2][2] *= 1.0001
        self.assertCaught(tessera.moe(*given, **named))
        given, named = arguments(self.case)
        given[3][given[3] == 2] = -1
        self.assertCaught(tessera.moe(*given, **named))


if __name__ == "__main__":
    unittest.main()
