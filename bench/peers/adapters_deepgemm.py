"""DeepGEMM's grouped GEMMs, BF16 and FP8, with Triton kernels for all that is around them (padded_rows.py).

A layer takes as many rows as any routing may need, as Transformers and vLLM do, so that nothing waits for the host; "GEMMs"
alone takes the rows of this routing, already gathered, and activations computed before: a bound.
"""
import functools

import torch

import fp8
import padded_rows
import theirs
from adapters import Call, Library


@functools.cache
def package():
    """(deep_gemm, rows that an expert's share is padded to)."""
    import deep_gemm
    align = getattr(deep_gemm, "get_mk_alignment_for_contiguous_layout", None) \
        or deep_gemm.get_m_alignment_for_contiguous_layout
    return deep_gemm, int(align())


class Padded(Library):
    """What both formats share: `prepared(x, num_rows)` makes the buffers, `first` and `second` run a part of the layer on them."""

    distributions = ("sgl-deep-gemm", "deep-gemm", "apache-tvm-ffi", "triton")
    name = ""

    def __init__(self):
        self.package, self.alignment = package()

    def versions(self):
        return {name: version for name, version in super().versions().items() if version != "no metadata"}

    def layers(self):
        return {self.name: self.call, self.name + " GEMMs": self.gemms}

    def sizes(self):
        """(experts, H, I)."""
        return self.down.shape

    def buffers(self, x, num_rows):
        raise NotImplementedError

    def enter(self, plan, x, buffers):
        """Gathers the rows of the first GEMM."""
        raise NotImplementedError

    def activate(self, plan, buffers):
        """From the first GEMM's output to the second's input."""
        raise NotImplementedError

    def first(self, buffers, row_expert):
        raise NotImplementedError

    def second(self, buffers, row_expert):
        raise NotImplementedError

    def clear(self, buffers):
        """Padding is multiplied too, as a user's buffer would be: its values must be numbers."""
        raise NotImplementedError

    def call(self, x, ids, weights):
        plan = padded_rows.PaddedRows(*ids.shape, self.sizes()[0], self.alignment, device=x.device)
        buffers, out = self.buffers(x, plan.num_rows), torch.empty_like(x)

        def run():
            plan.plan(ids)
            self.enter(plan, x, buffers)
            self.first(buffers, plan.row_expert)
            self.activate(plan, buffers)
            self.second(buffers, plan.row_expert)
            plan.combine(buffers["outputs"], weights, out)
            return out
        return Call(run, poison=out, note=theirs.note(self.name, rows=plan.num_rows))

    def gemms(self, x, ids, weights):
        plan = padded_rows.PaddedRows(*ids.shape, self.sizes()[0], self.alignment, device=x.device)
        plan.plan(ids)
        used = plan.used_rows()
        plan.num_rows, layout = used, plan.row_expert[:used]
        buffers = self.buffers(x, used)
        self.clear(buffers)
        self.enter(plan, x, buffers)
        self.first(buffers, layout)
        self.activate(plan, buffers)

        def run():
            self.first(buffers, layout)
            self.second(buffers, layout)
            return buffers["outputs"]

        def result(_):
            out = torch.empty_like(x)
            plan.combine(buffers["outputs"], weights, out)
            return out
        return Call(run, result, poison=buffers["outputs"], note=theirs.note(self.name + " GEMMs", rows=used))


class DeepGemm(Padded):
    name = "deepgemm"

    def buffers(self, x, num_rows):
        _, hidden, intermediate = self.sizes()
        widths = {"inputs": hidden, "gate_up": 2 * intermediate, "hidden": intermediate, "outputs": hidden}
        return {name: torch.empty(num_rows, width, dtype=x.dtype, device=x.device) for name, width in widths.items()}

    def clear(self, buffers):
        buffers["inputs"].zero_()
        buffers["hidden"].zero_()

    def enter(self, plan, x, buffers):
        plan.gather(x, buffers["inputs"])

    def activate(self, plan, buffers):
        plan.swiglu(buffers["gate_up"], buffers["hidden"])

    def first(self, buffers, row_expert):
        self.package.m_grouped_bf16_gemm_nt_contiguous(buffers["inputs"], self.gate_up, buffers["gate_up"], row_expert)

    def second(self, buffers, row_expert):
        self.package.m_grouped_bf16_gemm_nt_contiguous(buffers["hidden"], self.down, buffers["outputs"], row_expert)


class DeepGemmFp8(Padded):
    """e4m3 weights with a scale for each 128 x 128, quantised once; activations with one for each row and 128 columns."""

    name = "deepgemm fp8"

    def load(self, gate_up, down, top_k):
        self.shape, self.top_k = tuple(down.shape), top_k
        self.gate_up, self.down = (fp8.quantised_weights(torch, weights) for weights in (gate_up, down))

    def sizes(self):
        return self.shape

    def buffers(self, x, num_rows):
        _, hidden, intermediate = self.shape

        def plain(width):
            return torch.empty(num_rows, width, dtype=x.dtype, device=x.device)
        return {"inputs": padded_rows.Fp8Rows(num_rows, hidden, x.device), "gate_up": plain(2 * intermediate),
                "hidden": padded_rows.Fp8Rows(num_rows, intermediate, x.device), "outputs": plain(hidden)}

    def clear(self, buffers):
        buffers["inputs"].clear()
        buffers["hidden"].clear()

    def enter(self, plan, x, buffers):
        plan.gather_fp8(x, buffers["inputs"])

    def activate(self, plan, buffers):
        plan.swiglu_fp8(buffers["gate_up"], buffers["hidden"])

    def first(self, buffers, row_expert):
        self.package.m_grouped_fp8_gemm_nt_contiguous(buffers["inputs"].pair(), self.gate_up, buffers["gate_up"], row_expert)

    def second(self, buffers, row_expert):
        self.package.m_grouped_fp8_gemm_nt_contiguous(buffers["hidden"].pair(), self.down, buffers["outputs"], row_expert)
