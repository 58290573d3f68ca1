"""tessera.moe and tessera.MoELayer on PyTorch tensors, on the CPU and on the GPU that is there: numbers, compilers,
CUDA graphs, streams, threads. A test that could pass with a wrong layer has a twin in which an error is planted."""
import threading
import unittest

import tessera
import torch
from cases import one_test_a_case, over
from tensor_support import DEVICES, Layer, busy, dtypes_of, entries_for, poisoned_like, problems, python

PARTS = 8  # of the battery, each a test
ON_GPU = unittest.skipUnless(torch.cuda.is_available(), "no GPU")


def run(layer, x, ids, weights, **more):
    return tessera.moe(x, layer.gate_up, layer.down, ids, weights, **layer.named(), **more)


def make(layer, **more):
    return tessera.MoELayer(layer.gate_up, layer.down, top_k=layer.top_k, **layer.named(), **more)


@one_test_a_case
class Numbers(unittest.TestCase):
    def check(self, layer, tokens, **more):
        given = layer.inputs(tokens, **more)
        out = poisoned_like(given[0])
        self.assertIs(run(layer, *given, out=out), out)
        self.assertEqual(problems(out, layer.reference(*given)), [], layer)
        for _ in range(2):  # as a new layer, and as one that is known
            self.assertTrue(torch.equal(run(layer, *given), out))

    def everywhere(self, tokens=37, **options):
        for device in DEVICES:
            for dtype in dtypes_of(device):
                with self.subTest(device=device, dtype=dtype, **options):
                    self.check(Layer(device, dtype, **options), tokens)

    @over(DEVICES, range(PARTS))
    def test_battery(self, device, part):
        """The cases of the C++ tests (tests/moe/cases.cc), one part of them."""
        ran = 0
        for entry, dtype in entries_for(device, part, PARTS):
            layer = Layer.of_entry(entry, device, dtype)
            given, shared = layer.inputs_of(entry), layer.shared_of(entry)
            share = torch.rand(entry.tokens, device=device) if entry.shared_weight else None
            if shared is None:
                got = run(layer, *given, out=poisoned_like(given[0]))
            else:
                got = make(layer, shared_gate_up=shared[0], shared_down=shared[1])(*given, shared_weight=share)
            expected = layer.reference(*given, shared=shared, shared_weight=share)
            self.assertEqual(problems(got, expected, narrow_rows=8), [], (entry.name, dtype))
            ran += 1
        self.assertGreater(ran, 250 // PARTS)

    def test_known_layers(self):
        for tokens in (0, 3, 300):
            self.everywhere(tokens)

    @over(DEVICES)
    def test_ids_and_weights_of_other_types(self, device):
        layer = Layer(device)
        x, ids, weights = layer.inputs(40)
        expected = run(layer, x, ids, weights)
        self.assertTrue(torch.equal(run(layer, x, ids.int(), weights), expected))
        weights = weights.to(layer.dtype)
        self.assertEqual(problems(run(layer, x, ids, weights), layer.reference(x, ids, weights)), [])

    @over(DEVICES)
    def test_views_of_prepared_weights(self, device):
        for gated in (True, False):
            layer = Layer(device, gated=gated, order="interleaved")
            given = layer.inputs(21)
            transposed = [w.transpose(1, 2).contiguous() for w in (layer.gate_up, layer.down)]
            prepared = tessera.prepare_weights(*transposed, gated=gated)
            self.assertTrue(torch.equal(prepared[0], layer.gate_up) and torch.equal(prepared[1], layer.down))
            views = [w.transpose(1, 2) for w in prepared]
            named = layer.named()
            expected = run(layer, *given)
            self.assertTrue(torch.equal(tessera.moe(given[0], *views, *given[1:], **named), expected))
            repacked = tessera.MoELayer(*transposed, top_k=3, transposed=True, **named)
            self.assertTrue(torch.equal(repacked(*given), expected))

    @over(DEVICES)
    def test_shared_expert(self, device):
        layer = Layer(device)
        both = layer.normal(2 * 64, layer.hidden, scale=0.1), layer.normal(layer.hidden, 64, scale=0.1)
        x, ids, weights = layer.inputs(33)
        share = torch.rand(33, device=device)
        got = make(layer, shared_gate_up=both[0], shared_down=both[1])(x, ids, weights, shared_weight=share)
        alone = Layer(device, experts=1, top_k=1)
        alone.gate_up, alone.down = both[0][None], both[1][None]
        expected = layer.reference(x, ids, weights)
        expected += alone.reference(x, torch.zeros_like(ids[:, :1]), share[:, None])
        self.assertEqual(problems(got, expected), [])

    @over(DEVICES)
    def test_router(self, device):
        logits = torch.randn(100, 64, device=device)
        for kind in ("topk_softmax", "softmax_topk", "sigmoid_renormalize"):
            ids, weights = tessera.route(logits, 6, kind=kind)
            self.assertTrue(torch.equal(ids.long(), logits.topk(6).indices))
            host = tessera.route(logits.cpu(), 6, kind=kind)
            self.assertTrue(torch.equal(ids.cpu(), host[0]) and torch.equal(weights.cpu(), host[1]))

    @ON_GPU
    def test_a_layer_of_a_real_model(self):
        layer = Layer("cuda", hidden=2048, intermediate=768, experts=128, top_k=8)
        for tokens in (1, 64, 1000):
            self.check(layer, tokens, ids_type=torch.int32)

    @over(DEVICES)
    def test_planted_errors_are_found(self, device):
        layer = Layer(device)
        given = layer.inputs(160)
        expected, right = layer.reference(*given), run(layer, *given)
        self.assertEqual(problems(right, expected), [])
        for wrong in (torch.zeros_like(right), right.roll(1, 0), right * (1 + (torch.arange(160) == 5).to(right)[:, None])):
            self.assertNotEqual(problems(wrong, expected), [])
        layer.down[3] *= 1.05
        self.assertNotEqual(problems(run(layer, *given), expected), [])


@one_test_a_case
class Compilers(unittest.TestCase):
    @over(DEVICES)
    def test_the_same_bits_without_a_graph_break(self, device):
        layer = Layer(device)
        compiled = torch.compile(lambda x, ids, weights: run(layer, x, ids, weights), fullgraph=True)
        for tokens in (5, 17, 33, 1):
            given = layer.inputs(tokens)
            self.assertTrue(torch.equal(compiled(*given), run(layer, *given)))

    @over(DEVICES)
    def test_into_out(self, device):
        layer = Layer(device)

        def work(x, ids, weights, out):
            tessera.moe(x, layer.gate_up, layer.down, ids, weights, out=out)
            return out

        given = layer.inputs(20)
        out = poisoned_like(given[0])
        returned = torch.compile(work, fullgraph=True)(*given, out)
        expected = run(layer, *given)
        self.assertTrue(torch.equal(out, expected) and torch.equal(returned, expected))

    @over(DEVICES)
    def test_between_other_work_and_into_out(self, device):
        """What stands around the operator is compiled on the GPU. On the CPU it is traced and made functional and then runs
        as it is: its code would be C++, whose compiler takes longer than any other test."""
        layer = Layer(device)

        def work(x, ids, weights, out):
            tessera.moe(x.relu(), layer.gate_up, layer.down, ids, weights, out=out)
            return out.sum(0)

        given = layer.inputs(20)
        outs = [poisoned_like(given[0]) for _ in range(2)]
        work(*given, outs[0])
        backend = "aot_eager" if device == "cpu" else "inductor"
        sums = torch.compile(work, fullgraph=True, backend=backend)(*given, outs[1])
        self.assertTrue(torch.equal(*outs))
        self.assertFalse(sums.isnan().any())
        self.assertFalse(outs[0].isnan().any())

    @over(DEVICES)
    def test_layers(self, device):
        layer = Layer(device, biases=True)
        shared = {"shared_gate_up": layer.normal(128, layer.hidden), "shared_down": layer.normal(layer.hidden, 64)}
        for made in (make(layer), make(layer, **shared)):
            given = layer.inputs(9)
            compiled = torch.compile(lambda *given, made=made: made(*given), fullgraph=True)
            self.assertTrue(torch.equal(compiled(*given), made(*given)))

    def test_a_first_call_that_is_compiled(self):
        """The operator must be there although no tensor came before."""
        code, output = python("import tessera, torch\nfrom tensor_support import Layer\nlayer = Layer('cpu')\n"
                              "given = layer.inputs(4)\n"
                              "work = lambda x, i, w: tessera.moe(x, layer.gate_up, layer.down, i, w)\n"
                              "got = torch.compile(work, fullgraph=True)(*given)\n"
                              "print('equal', torch.equal(got, work(*given)))")
        self.assertEqual((code, output.splitlines()[-1]), (0, "equal True"), output)

    @over(DEVICES)
    def test_operators_are_what_they_say(self, device):
        checks = "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"
        layer = Layer(device, biases=True)
        x, ids, weights = layer.inputs(6)
        arguments = x, layer.gate_up, layer.down, ids, weights, layer.gate_up_bias, layer.down_bias
        done = torch.library.opcheck(torch.ops.tessera.moe.default, arguments, test_utils=checks)
        self.assertEqual(set(done.values()), {"SUCCESS"})
        out = {"out": torch.empty_like(x)}
        done = torch.library.opcheck(torch.ops.tessera.moe_out.default, arguments, out, test_utils=checks)
        self.assertEqual(set(done.values()), {"SUCCESS"})

    def test_fake_tensors(self):
        fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
        layer = Layer()
        with fake:
            x, ids, weights = torch.empty(3, 128, dtype=layer.dtype), torch.empty(3, 3, dtype=torch.int64), torch.empty(3, 3)
            out = tessera.moe(x, layer.gate_up, layer.down, ids, weights)
            self.assertEqual((tuple(out.shape), out.dtype), ((3, 128), layer.dtype))
            self.assertIsInstance(out, torch._subclasses.FakeTensor)

    def test_it_tells_a_wrong_result(self):
        """The comparison above must be able to fail: what is compiled here is another layer."""
        layer, other = Layer(), Layer(seed=1)
        given = layer.inputs(8)
        compiled = torch.compile(lambda *given: run(other, *given), fullgraph=True)
        self.assertFalse(torch.equal(compiled(*given), run(layer, *given)))


@ON_GPU
class Graphs(unittest.TestCase):
    def replayed(self, work, layer):
        """Captured once, `work` gives with other inputs and another routing what it gives outside the graph."""
        static = layer.inputs(48)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            work(*static)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = work(*static)
        seen = []
        for _ in range(3):
            given = layer.inputs(48)
            expected = work(*given).clone()
            for held, new in zip(static, given):
                held.copy_(new)
            out.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            self.assertTrue(torch.equal(out, expected))
            self.assertEqual(problems(out, layer.reference(*given)), [])
            seen.append(expected)
        self.assertFalse(torch.equal(seen[0], seen[1]))

    def test_function(self):
        layer = Layer("cuda")
        self.replayed(lambda *given: run(layer, *given), layer)

    def test_operator(self):
        layer = Layer("cuda", torch.float16)
        self.replayed(lambda *given: torch.ops.tessera.moe(given[0], layer.gate_up, layer.down, *given[1:]), layer)

    def test_layer(self):
        layer = Layer("cuda", biases=True)
        made = make(layer)
        workspace = torch.empty(made.workspace_bytes(48), dtype=torch.uint8, device="cuda")
        self.replayed(lambda *given: made(*given, workspace=workspace), layer)

    def test_a_layer_that_is_first_used_in_a_capture(self):
        layer = Layer("cuda", seed=9)
        given = layer.inputs(16)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run(layer, *given)
        graph.replay()
        self.assertEqual(problems(out, layer.reference(*given)), [])


@ON_GPU
class Streams(unittest.TestCase):
    def setUp(self):
        self.layer = Layer("cuda")
        self.x, self.ids, self.weights = self.layer.inputs(64)
        self.expected = run(self.layer, self.x, self.ids, self.weights)
        self.made = make(self.layer)
        torch.cuda.synchronize()

    def late(self, stream, work):
        """The result of `work(x)` whose x is written late on `stream`: wrong unless the work is on that stream too."""
        x = torch.zeros_like(self.x)
        torch.cuda.synchronize()
        with busy(stream):
            x.copy_(self.x)
        out = work(x)
        torch.cuda.synchronize()
        return out

    def test_the_current_stream(self):
        stream = torch.cuda.Stream()

        def work(call):
            def on_stream(x):
                with torch.cuda.stream(stream):
                    return call(x)
            return on_stream

        for call in (lambda x: run(self.layer, x, self.ids, self.weights), lambda x: self.made(x, self.ids, self.weights),
                     lambda x: torch.ops.tessera.moe(x, self.layer.gate_up, self.layer.down, self.ids, self.weights)):
            self.assertTrue(torch.equal(self.late(stream, work(call)), self.expected))

    def test_a_stream_that_is_named(self):
        stream = torch.cuda.Stream()
        out = torch.empty_like(self.x)
        workspace = torch.empty(self.made.workspace_bytes(64), dtype=torch.uint8, device="cuda")
        for call in (lambda x: run(self.layer, x, self.ids, self.weights, stream=stream.cuda_stream),
                     lambda x: self.made(x, self.ids, self.weights, stream=stream.cuda_stream),
                     lambda x: self.made(x, self.ids, self.weights, stream=stream.cuda_stream, out=out,
                                         workspace=workspace)):
            self.assertTrue(torch.equal(self.late(stream, call), self.expected))

    def test_the_check_sees_another_stream(self):
        stream = torch.cuda.Stream()
        other = torch.cuda.Stream()
        wrong = self.late(stream, lambda x: run(self.layer, x, self.ids, self.weights, stream=other.cuda_stream))
        self.assertFalse(torch.equal(wrong, self.expected))


@one_test_a_case
class Threads(unittest.TestCase):
    @over(DEVICES)
    def test_two_layers_at_a_time(self, device):
        self.together(device, [Layer(device, seed=seed) for seed in (1, 2)])

    @over(DEVICES)
    def test_one_layer_in_two_threads(self, device):
        self.together(device, [Layer(device)] * 2)

    def together(self, device, layers):
        made = {id(layer): make(layer) for layer in layers}
        given = [layer.inputs(50) for layer in layers]
        expected = [run(layer, *inputs) for layer, inputs in zip(layers, given)]
        wrong = []

        def work(index):
            layer = layers[index]
            stream = torch.cuda.Stream() if device == "cuda" else None
            with torch.cuda.stream(stream):
                for _ in range(50):
                    for got in (made[id(layer)](*given[index]), run(layer, *given[index])):
                        if not torch.equal(got, expected[index]):
                            wrong.append(index)

        if device == "cuda":
            torch.cuda.synchronize()
        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(layers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])


@one_test_a_case
class Classifiers(unittest.TestCase):
    @over(DEVICES)
    def test_a_gpu_and_the_cpu_agree(self, device):
        model = __file__.split("tests")[0] + "models/movie-reviews"
        on_cpu = tessera.Classifier(model, device="cpu")
        texts = ["A wonderful, moving film.", "A terrible, boring mess.", "I loved every minute of it", ""]
        ids = on_cpu.tokenize(texts)
        chosen = tessera.Classifier(model, device=device)
        difference = abs(chosen.logits(ids) - on_cpu.logits(ids))
        self.assertLessEqual(float(difference.max()), 2e-2 * max(1, float(abs(on_cpu.logits(ids)).max())))
        self.assertEqual([p.label for p in chosen(texts[:3])], ["positive", "negative", "positive"])


class Doctor(unittest.TestCase):
    def test_every_device_computes_right(self):
        report = tessera.doctor()
        self.assertEqual(report.problems, ())
        self.assertEqual(report.torch, torch.__version__.split("+")[0] if "+" not in report.torch else torch.__version__)
        usable = [device.index for device in report.devices if device.usable]
        self.assertEqual(usable, [-1, *range(torch.cuda.device_count())])


if __name__ == "__main__":
    unittest.main()
