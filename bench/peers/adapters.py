"""One class for each library that is compared: how a user of it would run the layer.

    library = LIBRARIES["torch"]()          # raises where it cannot run here; the message is recorded
    library.load(gate_up, down, top_k)      # bf16 weights [E, 2I, H], [E, H, I] on the GPU
    call = library.layers()["torch grouped_mm"](x, ids, weights)  # x [T, H] bf16, ids [T, k] int64, weights [T, k] fp32
    out = call.run()                        # what is timed; call.result(out) is [T, H] for the check

Several objects of one class live side by side, each with its own weights: what a library imports, patches or tunes once is kept
in its module, not in the object.

To add one: a subclass of Library, here or in a module of its own; its name in LIBRARIES; its layers in cases.LAYERS and, with what
of them is its own, in theirs.LAYERS.
"""
import importlib
import importlib.metadata

import torch

import fp8
import peer_site
import theirs
from torch_moe import torch_layer

peer_site.enter()


class Skip(Exception):
    """A layer does not take this case; the message says why."""


class Call:
    """One prepared call. `run` does the layer's work and returns its output; preparing it is outside the timing."""

    def __init__(self, run, result=None, poison=None, note=None):
        self.run = run
        self.note = note or {}  # of what was chosen: configuration, tactic; texts and numbers, kept in the results
        self.result = result or (lambda out: out)  # from what run returns to the layer's output [T, H]
        self.poison = poison  # the output's tensor where the caller owns it


class Library:
    distributions = ()  # whose versions are recorded
    quick_to_try = True  # a first call takes seconds
    capture_problem = ""  # why its calls cannot be captured in a CUDA graph, where that is known beforehand

    def load(self, gate_up, down, top_k):
        self.gate_up, self.down, self.top_k = gate_up, down, top_k

    def unload(self):
        self.gate_up = self.down = None

    def layers(self):
        """Name of each layer -> function that prepares a call of it."""
        raise NotImplementedError

    def prepare_part(self, part, parts):
        """Before the compile-ahead of one part of several; only for those that have many variants to choose among."""

    def versions(self):
        found = {}
        for name in self.distributions:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "no metadata"
        return found


class Tessera(Library):
    """This library, through its Python package."""

    def __init__(self):
        import tessera
        self.package, self.layer, self.fp8_layer = tessera, None, None

    def versions(self):
        return {"tessera": self.package.__version__}

    def load(self, gate_up, down, top_k):
        super().load(gate_up, down, top_k)
        self.layer = self.package.MoELayer(gate_up, down, top_k=top_k)
        experts, hidden, intermediate = down.shape
        halves, scales = fp8.quantised_weights(torch, gate_up.view(2 * experts, intermediate, hidden))
        down_codes, down_scales = fp8.quantised_weights(torch, down)
        self.fp8_layer = self.package.MoELayer(
            halves.view(experts, 2 * intermediate, hidden), down_codes, top_k=top_k, weight_format="fp8-block",
            gate_up_scale=scales.view(experts, 2, *scales.shape[1:]), down_scale=down_scales)

    def unload(self):
        self.layer = self.fp8_layer = None
        super().unload()

    def layers(self):
        return {"tessera": lambda *inputs: self.call(self.layer, *inputs),
                "tessera fp8": lambda *inputs: self.call(self.fp8_layer, *inputs)}

    @staticmethod
    def call(layer, x, ids, weights):
        out = torch.empty_like(x)
        workspace = torch.empty(layer.workspace_bytes(x.shape[0]), dtype=torch.uint8, device=x.device)
        return Call(lambda: layer(x, ids, weights, out=out, workspace=workspace), poison=out)


class Torch(Library):
    """torch.nn.functional.grouped_mm with sort, gather, SwiGLU and weighted sum; and two torch.bmm over rows that are
    already in order and equally many for each expert, which no layer has: a bound."""

    distributions = ("torch", "triton")

    def layers(self):
        return {"torch grouped_mm": self.call, "torch bmm": self.bmm}

    def call(self, x, ids, weights):
        rounded = weights.to(x.dtype)
        return Call(lambda: torch_layer(torch, x, self.gate_up, self.down, ids, rounded))

    def bmm(self, x, ids, weights):
        import padded_rows
        (tokens, top_k), experts = ids.shape, self.down.shape[0]
        counts = torch.bincount(ids.flatten(), minlength=experts)
        if int(counts.min()) != int(counts.max()):
            raise Skip("only for equally many rows for each expert")
        order = ids.flatten().argsort(stable=True)
        rows = x[order // top_k].view(experts, -1, x.shape[1])
        every_row = torch.zeros(tokens * top_k, dtype=torch.int32, device=x.device)
        first, second = self.gate_up.transpose(1, 2), self.down.transpose(1, 2)
        intermediate = torch.empty(tokens * top_k, self.down.shape[2], dtype=x.dtype, device=x.device)

        def run():
            gate_up = torch.bmm(rows, first)
            padded_rows.swiglu(gate_up.view(tokens * top_k, -1), every_row, intermediate)
            return torch.bmm(intermediate.view(experts, -1, intermediate.shape[1]), second)

        def result(out):
            slots = torch.empty(tokens * top_k, x.shape[1], dtype=torch.float32, device=x.device)
            slots[order] = out.reshape(tokens * top_k, -1).float()
            return (slots.view(tokens, top_k, -1) * weights.unsqueeze(2)).sum(1).to(x.dtype)
        return Call(run, result)


class Transformers(Library):
    """The experts functions of Transformers on its own Qwen3MoeExperts module."""

    distributions = ("transformers", "torch")
    implementations = ("grouped_mm", "batched_mm")
    MOST_GATHERED_BYTES = 8 << 30

    def __init__(self):
        from transformers import Qwen3MoeConfig
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
        self.config_class, self.module_class, self.known = Qwen3MoeConfig, Qwen3MoeExperts, ALL_EXPERTS_FUNCTIONS

    def load(self, gate_up, down, top_k):
        super().load(gate_up, down, top_k)
        self.modules = {name: self.module(name) for name in self.implementations}

    def module(self, implementation):
        experts, hidden, intermediate = self.down.shape
        config = self.config_class(hidden_size=hidden, moe_intermediate_size=intermediate, num_experts=experts,
                                   num_experts_per_tok=self.top_k, hidden_act="silu")
        config._experts_implementation = implementation
        with torch.device("meta"):
            module = self.module_class(config)
        module.gate_up_proj = torch.nn.Parameter(self.gate_up, requires_grad=False)
        module.down_proj = torch.nn.Parameter(self.down, requires_grad=False)
        return module.train(False)

    def unload(self):
        self.modules = {}
        super().unload()

    def layers(self):
        return {"transformers " + name: lambda *inputs, chosen=name: self.call(chosen, *inputs)
                for name in self.implementations}

    def call(self, implementation, x, ids, weights):
        if implementation == "batched_mm":  # it copies the weights of every slot's expert
            gathered = ids.numel() * 2 * self.gate_up[0].numel()
            if gathered > self.MOST_GATHERED_BYTES:
                raise Skip(f"would copy {gathered / 2**30:.1f} GiB of weights, at most "
                           f"{self.MOST_GATHERED_BYTES / 2**30:.0f} here")
        module, rounded = self.modules[implementation], weights.to(x.dtype)
        return Call(lambda: module(x, ids, rounded))


class SonicMoe(Transformers):
    """SonicMoE as Transformers runs it: from the kernels hub, through the package `kernels`."""

    distributions = ("kernels", "nvidia-cutlass-dsl", "transformers")
    implementations = ("sonicmoe",)

    def __init__(self):
        super().__init__()
        from transformers.integrations.sonicmoe import load_sonicmoe_kernel
        load_sonicmoe_kernel()

    def layers(self):
        return {"sonicmoe": lambda *inputs: self.call("sonicmoe", *inputs)}


class Liger(Library):
    """Liger's fused MoE in Triton, forward pass. Its GEMMs choose among 32 variants each when (H, I) is first seen, and keep
    the choice for any number of tokens: they choose at TUNING_TOKENS."""

    TUNING_TOKENS = 4096

    distributions = ("liger-kernel", "triton")
    quick_to_try = False
    capture_problem = "reads the number of tiles back on the host in every call"

    def __init__(self):
        from liger_kernel.ops import fused_moe
        self.module = fused_moe

    def prepare_part(self, part, parts):
        for name in ("_fused_up_proj_swiglu_kernel", "_fused_down_proj_kernel"):
            kernel = getattr(self.module, name)
            kernel.configs = kernel.configs[part::parts]

    def load(self, gate_up, down, top_k):
        super().load(gate_up, down, top_k)
        experts, hidden, _ = down.shape
        x = torch.randn(self.TUNING_TOKENS, hidden, dtype=down.dtype, device=down.device)
        ids = torch.rand(self.TUNING_TOKENS, experts, device=down.device).topk(top_k, 1).indices
        self.call(x, ids, torch.full(ids.shape, 1.0 / top_k, device=down.device)).run()

    def layers(self):
        return {"liger": self.call}

    def call(self, x, ids, weights):
        ids32, rounded = ids.to(torch.int32), weights.to(x.dtype)
        apply = self.module.LigerFusedMoEFunction.apply
        return Call(lambda: apply(x, self.gate_up, self.down, ids32, rounded))


class FlashInferCutlass(Library):
    """FlashInfer's CUTLASS fused MoE. It wants the up rows first; the weights are reordered once, outside the timing."""

    distributions = ("flashinfer-python", "flashinfer-jit-cache", "torch")

    def __init__(self):
        from flashinfer.fused_moe import cutlass_fused_moe
        self.function = cutlass_fused_moe

    def load(self, gate_up, down, top_k):
        gate, up = gate_up.chunk(2, 1)
        super().load(torch.cat([up, gate], 1), down, top_k)

    def layers(self):
        return {"flashinfer cutlass": self.call}

    def call(self, x, ids, weights):
        ids32, out = ids.to(torch.int32), torch.empty_like(x)

        def run():
            self.function(x, ids32, weights, self.gate_up, self.down, x.dtype, quant_scales=[], output=out)
            return out
        return Call(run, poison=out)


def late(module, name):
    """A library whose module is imported when it is asked for: it needs packages that others do not."""
    return lambda: getattr(importlib.import_module(module), name)()


LIBRARIES = {"tessera": Tessera, "torch": Torch, "transformers": Transformers, "liger": Liger, "sonicmoe": SonicMoe,
             "flashinfer": late("adapters_flashinfer", "FlashInfer"), "flashinfer_cutlass": FlashInferCutlass,
             "sglang": late("adapters_engines", "Sglang"), "vllm": late("adapters_engines", "Vllm"),
             "deepgemm": late("adapters_deepgemm", "DeepGemm"), "deepgemm_fp8": late("adapters_deepgemm", "DeepGemmFp8")}
assert set(LIBRARIES) == {parts.library for parts in theirs.LAYERS.values()}
