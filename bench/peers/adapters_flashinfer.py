"""FlashInfer's CuTe-DSL fused MoE for Hopper, `cute_dsl_fused_moe_bf16`: its default tactic, and the best of its own for a cell.

Where the pack is (peer_site.py), two things that FlashInfer would compile at first use were compiled ahead: moe_utils (sorting,
unpermuting), for which it would call nvcc for minutes, and the CuTe-DSL kernels of every tile that its tuner offers. A kernel
that is not among them is compiled on the spot, in a second or two.
"""
import functools
import importlib.metadata
import os
import statistics
import time

import torch

import peer_site
import tactics
import theirs
from adapters import Call, Library

FLUSH_BYTES = 256 << 20  # five times an H100's L2 cache
RUNS = 4  # of a tactic while tuning; the first beside them is not counted

# Layer -> use_fused_finalize (one kernel multiplies and adds up, by atomics: not deterministic), tuned.
VARIANTS = {"flashinfer": (True, True), "flashinfer det": (False, True), "flashinfer untuned": (True, False),
            "flashinfer det untuned": (False, False)}


class Package:
    """What is imported and put in once a process."""

    def __init__(self):
        torch.zeros(1, device="cuda")  # brings libcudart into the process
        from flashinfer.fused_moe.cute_dsl import moe_utils, sm90_fused_moe, sm90_tuner
        from flashinfer.fused_moe.cute_dsl import sm90_contiguous_gather_grouped_gemm_act_fusion as first
        from flashinfer.fused_moe.cute_dsl import sm90_contiguous_grouped_gemm_finalize_fusion as second
        self.tuner, self.function = sm90_tuner, sm90_fused_moe.cute_dsl_fused_moe_bf16
        self.interleaved, self.caches = first.interleave_up_gate_sm90, []
        if (peer_site.COMPILED / "moe_utils.so").is_file():
            import tvm_ffi
            module = tvm_ffi.load_module(str(peer_site.COMPILED / "moe_utils.so"))
            moe_utils._get_moe_utils_module = lambda: module
        index = peer_site.compiled_index(peer_site.COMPILED / "kernels")
        if index and os.environ.get("PEER_AHEAD", "1") != "0" and tactics.cpu_fits():
            self.look_ahead(index, first, second)

    def look_ahead(self, index, first, second):
        import cutlass
        bf16, constants = cutlass.BFloat16, (1.0, 0.0, first.DEFAULT_SWIGLU_LIMIT, None, None)
        folder = peer_site.COMPILED / "kernels"
        first._gather_kernel_cache = tactics.Ahead("g1", index, folder, lambda key: tactics.gather_key(key, bf16, constants))
        second._finalize_kernel_cache = tactics.Ahead("g2", index, folder, lambda key: tactics.finalize_key(key, bf16))
        self.caches = [first._gather_kernel_cache, second._finalize_kernel_cache]

    def kernels_text(self):
        if not self.caches:
            return "compiled on the spot"
        return f"{sum(c.loaded for c in self.caches)} compiled ahead, {sum(c.missed for c in self.caches)} on the spot"


@functools.cache
def package():
    return Package()


@functools.cache
def version():
    try:
        return importlib.metadata.version("flashinfer-python")
    except importlib.metadata.PackageNotFoundError:  # the pack has the package without its metadata
        from flashinfer.version import __version__
        return __version__


def replayed_us(run, flushed):
    """Median of a few replays with a cold L2 cache."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    pairs = []
    for number in range(RUNS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.fill_(number)
        begin.record()
        graph.replay()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) * 1e3 for begin, end in pairs[1:])


_TUNED = tactics.Tuned()


class FlashInfer(Library):
    distributions = ("nvidia-cutlass-dsl", "apache-tvm-ffi", "torch")
    quick_to_try = False  # its tuner runs in a first call

    def __init__(self):
        self.package, self.owner = package(), object()

    def versions(self):
        return {"flashinfer-python": version(), **super().versions()}

    def load(self, gate_up, down, top_k):
        """Gate and up rows in the order the kernel wants: made once, outside the timing; gate_up itself is not kept."""
        ordered = torch.empty_like(gate_up)
        for begin in range(0, gate_up.shape[0], 8):
            ordered[begin:begin + 8] = self.package.interleaved(gate_up[begin:begin + 8])
        super().load(ordered, down, top_k)

    def layers(self):
        return {layer: lambda *inputs, chosen=layer: self.call(chosen, *inputs) for layer in VARIANTS}

    def call(self, layer, x, ids, weights):
        finalize, tuned = VARIANTS[layer]
        ids32, out = ids.to(torch.int32), torch.empty_like(x)

        def run_with(tactic):
            self.package.function(x, ids32, weights, self.gate_up, self.down, num_experts=self.down.shape[0], top_k=self.top_k,
                                  use_fused_finalize=finalize, moe_output=out, tactic=tactic)

        def tune():
            return self.tuned(run_with, [x, ids32, weights, self.gate_up, self.down, out], finalize)
        tactic, how = self.package.tuner.DEFAULT_SM90_MOE_TACTIC, "default"
        if tuned:
            tactic, how = _TUNED.tactic((*self.down.shape, self.top_k, x.shape[0], finalize), self.owner, ids.tolist(), tune)

        def run():
            run_with(tactic)
            return out
        run()
        return Call(run, poison=out, note=theirs.note(layer, tactic=str(tactic), tuning=how,
                                                      kernels=self.package.kernels_text()))

    def tuned(self, run_with, inputs, finalize):
        """(tactic, words): the best of those that its runner offers for these inputs."""
        experts, default = self.down.shape[0], self.package.tuner.DEFAULT_SM90_MOE_TACTIC
        runner = self.package.tuner.CuteDslFusedMoESm90Runner(
            forward_impl=None, num_experts=experts, top_k=self.top_k, num_local_experts=experts, use_fused_finalize=finalize)
        offered = [default if tactic == -1 else tactic for tactic in runner.get_valid_tactics(inputs, None)]
        begin, flushed = time.monotonic(), torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=inputs[0].device)
        tactic, tried = tactics.best_by_parts(offered, lambda candidate: replayed_us(lambda: run_with(candidate), flushed))
        return tactic, f"{tried} of {len(offered)} offered tried, {time.monotonic() - begin:.1f} s"
