"""Tensors that cannot be right: the fitting exception names the argument, nothing is written, the device lives on."""
import unittest

import tessera
import torch
from cases import one_test_a_case, over
from tensor_support import DEVICES, Layer, poisoned_like, problems, python

NAMES = ("x", "gate_up", "down", "topk_ids", "topk_weights")
ON_GPU = unittest.skipUnless(torch.cuda.is_available(), "no GPU")


class WithMemoryElsewhere(torch.Tensor):
    """A tensor whose class defines what operations do: it has no memory that could be handed over."""

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        return function(*arguments, **(named or {}))


@one_test_a_case
class BadTensors(unittest.TestCase):
    def setUp(self):
        self.use("cuda" if "cuda" in DEVICES else "cpu")

    def use(self, device):
        self.device, self.layer = device, Layer(device)
        x, ids, weights = self.layer.inputs(12)
        self.given = dict(zip(NAMES, (x, self.layer.gate_up, self.layer.down, ids, weights)))
        self.made = tessera.MoELayer(self.layer.gate_up, self.layer.down, top_k=3)
        self.expected = self.layer.reference(x, ids, weights)
        self.workspace = torch.empty(self.made.workspace_bytes(12), dtype=torch.uint8, device=device)

    def tearDown(self):
        out = tessera.moe(**self.given)
        self.assertEqual(problems(out, self.expected), [])

    def refused(self, kind, name, call):
        with self.assertRaises(kind) as raised:
            call()
        self.assertNotIsInstance(raised.exception, tessera.TesseraError)
        self.assertTrue(str(raised.exception).startswith(f"{name}: got"), str(raised.exception))

    def both(self, kind, name, **changed):
        """tessera.moe, called for the first time and again, and MoELayer refuse; so does the operator."""
        out = poisoned_like(self.given["x"])
        call = {**self.given, **changed}
        named = {"out": out, **{key: call.pop(key) for key in ("out", "workspace") if key in call}}
        for _ in range(2):
            self.refused(kind, name, lambda: tessera.moe(**call, **named))
        if "gate_up" not in changed and "down" not in changed:
            self.refused(kind, name, lambda: self.made(call["x"], call["topk_ids"], call["topk_weights"], **named))
        self.assertTrue(out.isnan().all())

    @over(DEVICES)
    def test_types(self, device):
        self.use(device)
        for name, wrong in (("x", torch.float64), ("x", torch.int32), ("gate_up", torch.float16),
                            ("down", torch.float16), ("topk_ids", torch.float32), ("topk_ids", torch.int16),
                            ("topk_weights", torch.float64), ("topk_weights", torch.float16)):
            self.both(TypeError, name, **{name: self.given[name].to(wrong)})
        self.both(TypeError, "out", out=self.given["x"].float())
        self.both(TypeError, "workspace", workspace=self.workspace.to(torch.int8))

    @over(DEVICES)
    def test_ids_of_no_expert(self, device):
        self.use(device)
        experts, ids = self.layer.gate_up.shape[0], self.given["topk_ids"].clone()
        self.assertIsNone(tessera.check_ids(ids, experts, no_expert=-1))  # two slots of no expert
        self.refused(ValueError, "topk_ids", lambda: tessera.check_ids(ids, experts))
        ids[7, 2] = experts
        self.refused(ValueError, "topk_ids", lambda: tessera.check_ids(ids, experts, no_expert=-1))

    @ON_GPU
    def test_float32_on_a_gpu(self):
        single = {name: self.given[name].float() for name in ("x", "gate_up", "down")}
        self.refused(TypeError, "gate_up", lambda: tessera.moe(**{**self.given, **single}))

    @over(DEVICES)
    def test_shapes(self, device):
        self.use(device)
        for name, dims in (("x", 2), ("gate_up", 3), ("down", 3), ("topk_ids", 2), ("topk_weights", 2)):
            self.both(ValueError, name, **{name: self.given[name][None]})
            self.both(ValueError, name, **{name: self.given[name].flatten()})
        self.both(ValueError, "topk_ids", topk_ids=self.given["topk_ids"][:-1])
        self.both(ValueError, "topk_weights", topk_weights=self.given["topk_weights"][:-1])
        self.both(ValueError, "topk_weights", topk_weights=self.given["topk_weights"][:, :-1].contiguous())
        self.both(ValueError, "down", down=self.given["down"][:-1])
        self.both(ValueError, "out", out=poisoned_like(self.given["x"])[:-1])
        self.both(ValueError, "workspace", workspace=self.workspace[:-1])
        self.both(ValueError, "workspace", workspace=self.workspace[None])
        self.refused(ValueError, "x", lambda: self.made(self.given["x"][:, :64].contiguous(), self.given["topk_ids"],
                                                        self.given["topk_weights"]))

    @over(DEVICES)
    def test_strides(self, device):
        self.use(device)
        for name in NAMES:
            wide = self.given[name].repeat_interleave(2, -1)[..., ::2]
            self.both(BufferError, name, **{name: wide})
        self.both(BufferError, "x", x=self.given["x"][:1].expand(12, -1))
        self.both(BufferError, "out", out=poisoned_like(self.given["x"]).repeat_interleave(2, -1)[..., ::2])
        self.both(BufferError, "workspace", workspace=self.workspace.repeat(2)[::2])

    @over(DEVICES)
    def test_alignment(self, device):
        self.use(device)
        for name in ("x", "gate_up", "down"):
            given = self.given[name]
            beside = torch.empty(given.numel() + 8, dtype=given.dtype, device=device)[1:1 + given.numel()]
            self.both(BufferError, name, **{name: beside.view(given.shape).copy_(given)})
        room = torch.empty(self.workspace.numel() + 16, dtype=torch.uint8, device=device)
        self.both(BufferError, "workspace", workspace=room[1:])

    @over(DEVICES)
    def test_out_that_overlaps_x(self, device):
        self.use(device)
        self.both(ValueError, "out", out=self.given["x"])
        room = torch.zeros(13, 128, dtype=self.layer.dtype, device=device)
        self.both(ValueError, "out", x=room[:-1], out=room[1:])

    def test_memory_that_overlaps(self):
        """Written memory over any other of the call: eager, as the operator, compiled and captured. Only addresses are
        compared, so that nothing has run when it is refused."""
        for device in DEVICES:
            self.use(device)
            x, _, _, ids, weights = self.given.values()
            room = torch.zeros(self.workspace.numel() + 4 * x.nbytes, dtype=torch.uint8, device=device)

            def cut(like, begin=0):
                return room[begin:begin + like.nbytes].view(like.dtype).view(like.shape).copy_(like)

            pairs = {("workspace", "out"): {"workspace": room, "out": cut(x)},
                     ("workspace", "x"): {"workspace": room, "x": cut(x)},
                     ("workspace", "topk_ids"): {"workspace": room, "topk_ids": cut(ids)},
                     ("workspace", "topk_weights"): {"workspace": room, "topk_weights": cut(weights)},
                     ("out", "topk_ids"): {"out": cut(x), "topk_ids": cut(ids)},
                     ("out", "topk_weights"): {"out": cut(x, 16), "topk_weights": cut(weights, x.nbytes - 16)},
                     ("out", "the gate_up weight"): {"out": self.given["gate_up"].view(-1, x.shape[1])[:len(x)]},
                     ("out", "the down weight"): {"out": self.given["down"].view(-1)[-x.numel():].view_as(x)}}
            for (written, other), changed in pairs.items():
                call = {**self.given, **changed}
                named = {key: call.pop(key) for key in ("out", "workspace") if key in call}
                inputs = [call[name] for name in ("x", "topk_ids", "topk_weights")]
                for run in (lambda: tessera.moe(**call, **named), lambda: self.made(*inputs, **named)):
                    for _ in range(2):
                        with self.assertRaisesRegex(ValueError, f"{written}: got memory that overlaps {other}"):
                            run()
            with self.assertRaisesRegex(ValueError, "out: got memory that overlaps x"):
                torch.ops.tessera.moe_out(*self.given.values(), out=x)
            if device == "cuda":
                with self.assertRaisesRegex(ValueError, "out: got memory that overlaps x"):
                    with torch.cuda.graph(torch.cuda.CUDAGraph()):
                        tessera.moe(**self.given, out=x)

    def test_negations_and_transforms(self):
        """Memory that holds numbers with the other sign, or none: refused, not computed with."""
        for device in DEVICES:
            self.use(device)
            for name in ("x", "gate_up", "down", "topk_weights"):
                tessera.moe(**self.given)  # the layer of the same addresses is known
                self.both(TypeError, name, **{name: torch._neg_view(self.given[name])})
            self.both(TypeError, "out", out=torch._neg_view(poisoned_like(self.given["x"])))
            rest = [self.given[name] for name in NAMES[1:]]
            with self.assertRaisesRegex(TypeError, "x: got a tensor without memory of its own"):
                torch.vmap(lambda x: tessera.moe(x, *rest))(self.given["x"][None])
            with self.assertRaisesRegex(TypeError, "x: got a tensor without memory of its own"):
                torch.vmap(lambda x: self.made(x, *rest[2:]))(self.given["x"][None])

    @ON_GPU
    def test_device_numbers_do_not_wrap(self):
        for number in (2**32, 2**31, 2**64):
            with self.assertRaisesRegex(ValueError, f"device: got 'cuda:{number}'"):
                tessera.Classifier(MODEL, device=f"cuda:{number}")

    @ON_GPU
    def test_an_empty_expert_map(self):
        self.refused(ValueError, "expert_map", lambda: tessera.moe(
            **self.given, expert_map=torch.empty(0, dtype=torch.int32, device=self.device)))

    @ON_GPU
    @over(DEVICES)
    def test_mixed_devices(self, device):
        self.use(device)
        other = "cpu" if device == "cuda" else "cuda"
        for name in NAMES[1:]:
            self.both(ValueError, name, **{name: self.given[name].to(other)})
        self.both(ValueError, "out", out=poisoned_like(self.given["x"]).to(other))
        self.both(ValueError, "workspace", workspace=self.workspace.to(other))
        self.refused(ValueError, "x", lambda: self.made(self.given["x"].to(other), self.given["topk_ids"],
                                                        self.given["topk_weights"]))
        self.refused(ValueError, "down", lambda: tessera.MoELayer(self.given["gate_up"],
                                                                  self.given["down"].to(other), top_k=3))

    @over(DEVICES)
    def test_other_devices_and_layouts(self, device):
        self.use(device)
        for name in NAMES:
            self.both(ValueError, name, **{name: self.given[name].to("meta")})
            self.both(TypeError, name, **{name: self.given[name].to_sparse()})
            self.both(TypeError, name, **{name: self.given[name].as_subclass(WithMemoryElsewhere)})

    @over(DEVICES)
    def test_streams(self, device):
        stream = {"cpu": (ValueError, 1), "cuda": (TypeError, "default")}
        self.use(device)
        kind, value = stream[device]
        self.refused(kind, "stream", lambda: tessera.moe(**self.given, stream=value))
        self.refused(kind, "stream", lambda: self.made(self.given["x"], self.given["topk_ids"],
                                                       self.given["topk_weights"], stream=value))

    @over(DEVICES)
    def test_tensors_that_require_grad(self, device):
        self.use(device)
        for name in ("x", "gate_up", "down", "topk_weights"):
            call = {**self.given, name: self.given[name].detach().requires_grad_()}
            for function in (tessera.moe, torch.ops.tessera.moe):
                for _ in range(2):
                    self.refused(RuntimeError, name, lambda: function(**call))
                with torch.no_grad():
                    self.assertEqual(problems(function(**call), self.expected), [])
                self.refused(RuntimeError, name, lambda: function(**call))  # known by now, and refused nonetheless
            made = tessera.MoELayer(call["gate_up"], call["down"], top_k=3)
            inputs = call["x"], call["topk_ids"], call["topk_weights"]
            for _ in range(2):
                self.refused(RuntimeError, name, lambda: made(*inputs))
            with torch.inference_mode():
                self.assertEqual(problems(made(*inputs), self.expected), [])
        with self.assertRaisesRegex(RuntimeError, "gate_up: got a tensor that requires grad"):
            weights = self.given["gate_up"].detach().requires_grad_()
            torch.compile(lambda x: tessera.moe(x, weights, *list(self.given.values())[2:]), fullgraph=True)(
                self.given["x"])

    @over(DEVICES)
    def test_weights_that_were_freed_or_moved(self, device):
        self.use(device)
        inputs = [self.given[name] for name in ("x", "topk_ids", "topk_weights")]
        for spoil in (lambda w: w.untyped_storage().resize_(0), lambda w: setattr(w, "data", torch.zeros_like(w)),
                      lambda w: w.set_(torch.zeros_like(w))):
            for name in ("gate_up", "down"):
                weights = {other: self.given[other].clone() for other in ("gate_up", "down")}
                made = tessera.MoELayer(**weights, top_k=3)
                self.assertEqual(problems(made(*inputs), self.expected), [])
                spoil(weights[name])
                for _ in range(2):
                    self.refused(RuntimeError, name, lambda: made(*inputs))
        freed = {name: tensor.clone() for name, tensor in self.given.items()}
        tessera.moe(**freed)
        for name in NAMES:
            call = {**self.given, name: freed[name]}
            freed[name].untyped_storage().resize_(0)
            for _ in range(2):
                self.refused(RuntimeError, name, lambda: tessera.moe(**call))

    @over(DEVICES)
    def test_a_layer_keeps_its_weights(self, device):
        self.use(device)
        made = tessera.MoELayer(self.given["gate_up"].clone(), self.given["down"].clone(), top_k=3)
        trash = [torch.full_like(self.given["gate_up"], float("nan")) for _ in range(8)]
        out = made(self.given["x"], self.given["topk_ids"], self.given["topk_weights"])
        self.assertEqual(problems(out, self.expected), [])
        del trash


MODEL = __file__.split("tests")[0] + "models/movie-reviews"
FORK = f"""
import os, sys, tessera, torch
from tensor_support import Layer
layer = Layer("cuda")
given = layer.inputs(4)
arguments = given[0], layer.gate_up, layer.down, *given[1:]
calls = [lambda: tessera.moe(*arguments), lambda: torch.ops.tessera.moe(*arguments)]
if BY_TESSERA:
    tessera.moe(*arguments)
    made = tessera.MoELayer(layer.gate_up, layer.down, top_k=3)
    made(*given)
    model = tessera.Classifier({MODEL!r}, device="cuda")
    model("a text")
    calls += [lambda: made(*given), lambda: model("a text"), lambda: tessera.Classifier({MODEL!r}, device="cuda"),
              lambda: tessera.MoELayer(layer.gate_up, layer.down, top_k=3), tessera.doctor]
torch.cuda.synchronize()
child = os.fork()
if child == 0:
    for call in calls:
        try:
            call()
            print("no error")
        except tessera.TesseraError as error:
            print("refused" if str(error).startswith("fork: got") else error)
        except BaseException as error:
            print(type(error), error)
    sys.stdout.flush()
    os._exit(0)
print("child", os.waitpid(child, 0)[1])
print("parent", bool(tessera.moe(*arguments).isfinite().all()))
"""


@ON_GPU
class Forks(unittest.TestCase):
    def in_fork(self, by_tessera, num_calls):
        """Every call in the child is refused in words; the parent's device goes on."""
        code, output = python(f"BY_TESSERA = {by_tessera}\n" + FORK)
        self.assertEqual((code, output.split("\n")), (0, ["refused"] * num_calls + ["child 0", "parent True", ""]), output)

    def test_after_the_library_used_cuda(self):
        self.in_fork(True, 7)

    def test_after_pytorch_alone_used_cuda(self):
        self.in_fork(False, 2)


if __name__ == "__main__":
    unittest.main()
