"""The operator as compilers and transformations see it, the router in every way it can be called, ids of no expert, and
activations near the smallest that there are."""
import unittest

import tessera
import tessera._torch  # the operators are there from the first use of a tensor on, which a test may not wait for
import torch
from cases import one_test_a_case, over
from tensor_support import DEVICES, Layer, dtypes_of, poisoned_like, problems

ON_GPU = unittest.skipUnless(torch.cuda.is_available(), "no GPU")
FASTEST = DEVICES[-1:]  # compilers take seconds, and what they do hardly depends on the device
CHECKS = "test_schema", "test_faketensor", "test_aot_dispatch_dynamic"
FIRST_WITH_WRITING_REGIONS = 2, 15  # seen to fail in 2.11, for operators of anybody
ROUTERS = {"softmax_topk": {}, "topk_softmax": {}, "softmax_topk_renormalize": {}, "sigmoid_renormalize": {},
           "sigmoid_grouped": {"num_groups": 8, "topk_groups": 4, "scale": 2.5}}


def run(layer, *given, **more):
    return tessera.moe(given[0], layer.gate_up, layer.down, *given[1:], **layer.named(), **more)


def padded(x):
    """The same rows, 64 elements further apart than they are long."""
    return torch.nn.functional.pad(x, (0, 64))[:, :x.shape[1]]


@one_test_a_case
class Operators(unittest.TestCase):
    def setUpOn(self, device, **options):
        self.layer = Layer(device, **options)
        self.weights = self.layer.gate_up, self.layer.down

    def check(self, x, ids, weights, **out):
        operator = torch.ops.tessera.moe_out.default if out else torch.ops.tessera.moe.default
        done = torch.library.opcheck(operator, (x, *self.weights, ids, weights), out, test_utils=CHECKS)
        self.assertEqual(set(done.values()), {"SUCCESS"})

    @over(FASTEST, (0, 1, 7))
    def test_numbers_of_tokens(self, device, tokens):
        self.setUpOn(device)
        given = self.layer.inputs(tokens)
        self.check(*given)
        self.check(*given, out=poisoned_like(given[0]))

    @over(DEVICES)
    def test_what_the_fake_says_is_what_comes(self, device):
        """Shape, strides, type, device, and memory of its own; for rows that lie apart both refuse."""
        self.setUpOn(device)
        mode = torch._subclasses.FakeTensorMode()
        for tokens in (0, 1, 9):
            x, ids, weights = self.layer.inputs(tokens)
            real = run(self.layer, x, ids, weights)
            arguments = [mode.from_tensor(tensor) for tensor in (x, *self.weights, ids, weights)]
            with mode:
                fake = torch.ops.tessera.moe(*arguments)
            for name in ("shape", "dtype", "device"):
                self.assertEqual(getattr(fake, name), getattr(real, name), name)
            self.assertEqual((fake.stride(), fake.storage_offset()), (real.stride(), real.storage_offset()))
            self.assertEqual(fake.untyped_storage().nbytes(), real.untyped_storage().nbytes())
            if tokens:
                self.assertNotEqual(real.data_ptr(), x.data_ptr())

    @over(FASTEST)
    def test_rows_that_lie_apart_are_refused_by_name(self, device):
        self.setUpOn(device)
        x, ids, weights = self.layer.inputs(9)
        calls = [lambda x: run(self.layer, x, ids, weights),
                 lambda x: torch.ops.tessera.moe(x, *self.weights, ids, weights),
                 torch.compile(lambda x: run(self.layer, x, ids, weights), backend="aot_eager", fullgraph=True)]
        expected = calls[0](x)
        for call in calls:
            with self.assertRaisesRegex(BufferError, r"x: got strides \[192, 1\] for shape \[9, 128\]"):
                call(padded(x))
            self.assertTrue(torch.equal(call(padded(x).contiguous()), expected))

    @over(FASTEST)
    def test_out_over_x_in_a_compiled_function(self, device):
        """The compiler may give `out` memory of its own first, and the result is right; else it is refused by name."""
        self.setUpOn(device)
        x, ids, weights = self.layer.inputs(9)
        expected = run(self.layer, x, ids, weights)
        compiled = torch.compile(lambda x: run(self.layer, x, ids, weights, out=x), backend="aot_eager", fullgraph=True)
        try:
            out = compiled(x)
        except ValueError as error:
            self.assertIn("out: got memory that overlaps x", str(error))
        else:
            self.assertTrue(torch.equal(out, expected) and torch.equal(x, expected))

    @over(FASTEST)
    def test_numbers_of_tokens_that_are_not_known(self, device):
        """One graph for every number of tokens, none among them."""
        self.setUpOn(device)
        compiled = torch.compile(lambda *given: run(self.layer, *given), backend="aot_eager", fullgraph=True, dynamic=True)
        for tokens in (5, 33, 2, 0, 1):
            given = self.layer.inputs(tokens)
            for tensor in given:
                if tokens > 1:
                    torch._dynamo.mark_dynamic(tensor, 0)
            self.assertTrue(torch.equal(compiled(*given), run(self.layer, *given)), tokens)

    @over(FASTEST)
    def test_in_a_region_that_is_compiled_once(self, device):
        """A decoder's layer, compiled as a region that is called again and again, and which writes a cache; into `out`
        too, where PyTorch takes operators that write into such regions."""
        region = getattr(torch.compiler, "nested_compile_region", None)
        if region is None:
            self.skipTest("this PyTorch has no nested_compile_region")
        self.setUpOn(device)
        x, ids, weights = self.layer.inputs(4)
        inner = run(self.layer, x, ids, weights)

        def states():
            return torch.zeros(16, 128, dtype=x.dtype, device=device), [poisoned_like(x) for _ in range(3)]

        def check(into_out):
            @region
            def block(x, cache, out, position):
                cache[position:position + 4].copy_(x)
                done = tessera.moe(x, *self.weights, ids, weights, out=out if into_out else None)
                return done + x + cache[:8].sum()

            def model(x, cache, outs):
                for number, out in enumerate(outs):
                    x = block(x, cache, out, 4 * number).clamp(-4, 4)
                return x

            eager, compiled = states(), states()
            expected = model(x, *eager)
            got = torch.compile(model, backend="aot_eager", fullgraph=True)(x, *compiled)
            self.assertTrue(torch.equal(got, expected))
            self.assertTrue(torch.equal(compiled[0], eager[0]))
            if into_out:
                self.assertTrue(all(map(torch.equal, compiled[1], eager[1])))
                self.assertTrue(torch.equal(eager[1][0], inner))

        check(into_out=False)
        if tuple(map(int, torch.__version__.split(".")[:2])) >= FIRST_WITH_WRITING_REGIONS:
            check(into_out=True)

    @over(DEVICES)
    def test_modules_called_with_other_parameters(self, device):
        """torch.func.functional_call hands a module plain tensors in place of its own."""
        layers = [Layer(device, seed=seed) for seed in (1, 2)]

        class Experts(torch.nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.gate_up = torch.nn.Parameter(layer.gate_up, requires_grad=False)
                self.down = torch.nn.Parameter(layer.down, requires_grad=False)

            def forward(self, x, ids, weights):
                return tessera.moe(x, self.gate_up, self.down, ids, weights)

        given = layers[0].inputs(12)
        module, other = Experts(layers[0]), {"gate_up": layers[1].gate_up, "down": layers[1].down}
        self.assertTrue(torch.equal(torch.func.functional_call(module, other, given), run(layers[1], *given)))
        self.assertTrue(torch.equal(module(*given), run(layers[0], *given)))


@one_test_a_case
class Router(unittest.TestCase):
    TOKENS, EXPERTS, TOP_K = 16384, 64, 6

    def setUpOn(self, device, kind):
        generator = torch.Generator().manual_seed(5)
        self.logits = torch.randn(self.TOKENS, self.EXPERTS, generator=generator).to(device)
        self.logits[100:200] = self.logits[100:200].round()  # ties
        self.options = {"kind": kind, **ROUTERS[kind]}
        if kind == "sigmoid_grouped":
            self.options["bias"] = torch.randn(self.EXPERTS, generator=generator).to(device)

    def route(self, logits):
        return tessera.route(logits, self.TOP_K, **self.options)

    def assertSame(self, got, expected):
        self.assertEqual(int((got[0] != expected[0]).sum()), 0)
        self.assertTrue(torch.equal(got[1], expected[1]))

    @over(DEVICES, ROUTERS)
    def test_alone_and_among_many(self, device, kind):
        self.setUpOn(device, kind)
        ids, weights = self.route(self.logits)
        self.assertEqual(tuple(ids.shape), (self.TOKENS, self.TOP_K))
        for begin, count in ((0, 1), (150, 1), (self.TOKENS - 1, 1), (100, 100), (7, 4096), (8192, 8192)):
            rows = slice(begin, begin + count)
            self.assertSame(self.route(self.logits[rows].clone()), (ids[rows], weights[rows]))
        on_cpu = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in self.options.items()}
        host = tessera.route(self.logits[:2048].cpu(), self.TOP_K, **on_cpu)
        self.assertSame((ids[:2048].cpu(), weights[:2048].cpu()), host)

    @over(FASTEST, ROUTERS)
    def test_in_a_compiled_function(self, device, kind):
        self.setUpOn(device, kind)
        logits = self.logits[:512].clone()
        compiled = torch.compile(lambda logits: self.route(logits * 2), backend="aot_eager", fullgraph=True)
        self.assertSame(compiled(logits), self.route(logits * 2))
        arguments = logits, self.TOP_K, *map(self.options.get, ("kind", "bias"))
        more = {name: self.options[name] for name in ("num_groups", "topk_groups", "scale") if name in self.options}
        done = torch.library.opcheck(torch.ops.tessera.route.default, arguments, more, test_utils=CHECKS)
        self.assertEqual(set(done.values()), {"SUCCESS"})

    @ON_GPU
    @over(ROUTERS)
    def test_captured(self, kind):
        self.setUpOn("cuda", kind)
        static = self.logits[:512].clone()
        self.route(static)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = self.route(static)
        for begin in (0, 512, 8192):
            static.copy_(self.logits[begin:begin + 512])
            captured[0].fill_(-7)
            graph.replay()
            torch.cuda.synchronize()
            self.assertSame(captured, self.route(self.logits[begin:begin + 512].clone()))


@one_test_a_case
class IdsOfNoExpert(unittest.TestCase):
    """Sentinels of expert parallelism add nothing, whatever they are: no other slot's bits change."""

    SENTINELS = {torch.int32: (8, 64, -1, 127, 2**31 - 1, -2**31),
                 torch.int64: (8, 64, -1, 127, 2**31, 2**32, 2**32 + 1, -2**32 + 2, 2**63 - 1, -2**63)}

    def check(self, layer, experts, id_type, **more):
        """`experts`: ids that are served. Half of the slots are sentinels, some tokens have nothing else."""
        x, _, weights = layer.inputs(96)
        ids = torch.tensor(experts)[torch.arange(96 * 3).reshape(96, 3) * 5 % len(experts)]
        known = ids.clone()
        for number, sentinel in enumerate(self.SENTINELS[id_type]):
            ids[number::10, number % 3] = sentinel
            known[number::10, number % 3] = -1
        ids[90:], known[90:] = self.SENTINELS[id_type][1], -1
        ids, known = ids.to(layer.device, id_type), known.to(layer.device)
        expected = layer.reference(x, known, weights)
        for call in (lambda: run(layer, x, ids, weights), lambda: torch.ops.tessera.moe(
                x, layer.gate_up, layer.down, ids, weights, expert_map=layer.map, first_expert=layer.first_expert)):
            out = call()
            self.assertEqual(problems(out, expected), [])
            self.assertTrue(torch.equal(out, run(layer, x, known.to(id_type), weights)))

    @over(DEVICES, SENTINELS)
    def test_first_shard(self, device, id_type):
        self.check(Layer(device), list(range(8)), id_type)

    @over(DEVICES, SENTINELS)
    def test_later_shard(self, device, id_type):
        self.check(Layer(device, first_expert=16), list(range(16, 24)), id_type)

    @over(DEVICES, SENTINELS)
    def test_maps(self, device, id_type):
        """A map of the logical experts, 64 of which this shard has 8, and of physical ones, some of them copies."""
        logical = [-1] * 16 + list(range(8)) + [-1] * 40
        self.check(Layer(device, expert_map=logical), list(range(16, 24)), id_type)
        physical = list(range(8)) + [-1] * 57 + [3, 0, -1, 7]
        self.check(Layer(device, expert_map=physical), [0, 1, 2, 3, 4, 5, 6, 7, 65, 66, 68], id_type)


@one_test_a_case
class TinyActivations(unittest.TestCase):
    """A power of two on x is the same power on the result, as long as no type runs out of exponents."""

    @over(DEVICES)
    def test_powers_of_two(self, device):
        for dtype in set(dtypes_of(device)) - {torch.float16}:  # which has 5 bits of exponent
            layer = Layer(device, dtype, activation="identity", gated=False)
            x, ids, weights = layer.inputs(40)
            expected = run(layer, x, ids, weights)
            for scale in (2.0**-60, 2.0**-20, 2.0**40):
                self.assertTrue(torch.equal(run(layer, x * scale, ids, weights), expected * scale), (dtype, scale))

    @over(DEVICES)
    def test_the_smallest_numbers_reach_the_result(self, device):
        """Nothing is flushed on the way: of float16 these are the subnormal numbers, of bfloat16 the least normal ones."""
        for dtype, smallest in ((torch.float16, 2.0**-24), (torch.bfloat16, 2.0**-126)):
            layer = Layer(device, dtype, experts=1, top_k=1, activation="identity", gated=False)
            layer.gate_up, layer.down = torch.zeros_like(layer.gate_up), torch.zeros_like(layer.down)
            layer.gate_up[0, :, :64] = layer.down[0, :64] = torch.eye(64, dtype=dtype, device=device)
            x = torch.zeros(3, 128, dtype=dtype, device=device)
            x[:, :64] = (torch.arange(192).reshape(3, 64) * smallest).to(device, dtype)
            ids = torch.zeros(3, 1, dtype=torch.int32, device=device)
            self.assertTrue(torch.equal(run(layer, x, ids, torch.ones(3, 1, device=device)), x), dtype)


if __name__ == "__main__":
    unittest.main()
