"""What of the FlashInfer adapter is neither torch nor FlashInfer: which compiled kernel a key names, which tactic is the best.

A tactic is FlashInfer's own tuple: (M tile, (GEMM 1's tile, swizzle), (GEMM 2's tile, cluster, raster along M)). Plain Python.
"""
import json
import pathlib

CPU_FLAGS = {"avx2", "bmi2", "fma", "avx512f", "avx512vl", "avx512bw", "avx512dq"}  # that launchers compiled ahead may use
SWIGLU = 3  # ActivationType.Swiglu


class Ahead(dict):
    """A cache of compiled kernels that looks among those compiled ahead before it says no. `named(key)`: the index's key of
    FlashInfer's, or None."""

    def __init__(self, kind, index, folder, named):
        super().__init__()
        self.known = {json.dumps(key, sort_keys=True): name for what, key, name in index if what == kind}
        self.folder, self.named, self.loaded, self.missed = folder, named, 0, 0

    def get(self, key, default=None):
        if key in self:
            return self[key]
        wanted = self.named(key)
        name = wanted and self.known.get(json.dumps(wanted, sort_keys=True))
        if not name:
            self.missed += 1
            return default
        self[key] = self.load(name)
        self.loaded += 1
        return self[key]

    def load(self, name):
        import cutlass.cute as cute
        return getattr(cute.runtime.load_module(str(self.folder / f"{name}.o"), enable_tvm_ffi=False), name)


def gather_key(key, bf16, constants):
    """The index's key of a gather + GEMM + SwiGLU kernel; None of one that no index has. constants: SwiGLU's own values."""
    ab, c, tile, cluster, topk, swizzle, raster, clusters, pdl, activation, *rest = key
    if ab is not bf16 or c is not bf16 or activation != SWIGLU or tuple(rest) != constants:
        return None
    return {"tile": list(tile), "cluster": list(cluster), "topk": topk, "swizzle": swizzle, "raster": raster, "mac": clusters,
            "pdl": pdl}


def finalize_key(key, bf16):
    """As gather_key, of a GEMM + weighted sum."""
    ab, c, tile, cluster, topk, finalize, raster, clusters, pdl = key
    if ab is not bf16 or c is not bf16:
        return None
    return {"tile": list(tile), "cluster": list(cluster), "topk": topk, "finalize": finalize, "raster": raster, "mac": clusters,
            "pdl": pdl}


def cpu_fits(cpuinfo=pathlib.Path("/proc/cpuinfo")):
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return CPU_FLAGS <= set(flags)


def best_by_parts(offered, cost):
    """(the tactic of least cost, how many were tried): for each M tile the first GEMM's with the second's plain one, then the
    second's with that first; the best of all tiles. A quarter of the runs of trying all pairs. cost(tactic) -> microseconds.
    """
    known = {}

    def cheapest(tactics):
        for tactic in tactics:
            if tactic not in known:
                known[tactic] = cost(tactic)
        return min(tactics, key=known.get)
    best = []
    for tile in sorted({tactic[0] for tactic in offered}):
        mine = [tactic for tactic in offered if tactic[0] == tile]
        second = next((t[2] for t in mine if t[2] == ((tile, 128), (1, 1), False)), mine[0][2])
        first = cheapest([t for t in mine if t[2] == second])[1]
        best.append(cheapest([t for t in mine if t[1] == first]))
    return cheapest(best), len(known)


class Tuned:
    """Tactics found in this process. One object tunes again when it is given another routing; other objects, the layers of a
    chain, take what the first of them found for as many tokens."""

    def __init__(self):
        self.found = {}

    def tactic(self, key, owner, routing, tune):
        """(tactic, words) for `key`; tune() finds them anew. routing: what tells one routing from another."""
        known = self.found.get(key)
        if known is None or known[0] is owner and known[1] != routing:
            self.found[key] = known = (owner, routing, *tune())
        return known[2:]
