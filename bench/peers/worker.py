"""One process of the comparison: runs one library, or judges ("dense"). Started and told what to do by run.py.

Requests come as JSON lines on stdin, answers go as JSON lines to --reply-fd; whatever libraries print goes to stdout. With
--ahead PRESET it only runs the library once for each number of tokens, so that what is compiled lies in the caches.
"""
import argparse
import json
import math
import os
import sys
import zlib

import cases
import check
import grid

DEVICE = "cuda"
FLUSH_BYTES = 256 << 20  # five times a Hopper GPU's L2 cache
KEPT_SHARE = 1 / 48  # of the GPU's memory: what a process may keep beyond weights and inputs while others measure
FLUSH_US = 80  # what emptying the cache before a run takes, for budgets
WARM_BLOCKS = 3  # back-to-back runs, timed together
MOST_WARM_RUNS = 50
CHECKSUM_MASK = (1 << 64) - 1


def seeded(torch, *what):
    torch.manual_seed(zlib.crc32(repr(what).encode()))


def make_weights(torch, preset, number=0):
    """(gate_up [E, 2I, H], down [E, H, I]): random normal, standard deviation 0.02, from a seed of the preset's name and the
    number of the set."""
    hidden, intermediate, experts, _ = grid.PRESETS[preset]
    seeded(torch, "weights", preset, *([number] if number else []))
    shapes = (experts, 2 * intermediate, hidden), (experts, hidden, intermediate)
    return [torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16).mul_(0.02) for shape in shapes]


def make_inputs(torch, cell, place=None):
    """(x [T, H] bf16, ids [T, k] int64, weights [T, k] fp32 with values that bf16 has); others for each place in a chain."""
    from torch_moe import chosen_experts
    hidden, _, experts, top_k = grid.PRESETS[cell.preset]
    seeded(torch, *cell, *([] if place is None else ["chain", place]))
    x = torch.randn(cell.tokens, hidden, device=DEVICE, dtype=torch.bfloat16)
    ids = chosen_experts(torch, cell.routing, cell.tokens, experts, top_k).contiguous()
    return x, ids, torch.softmax(torch.randn(cell.tokens, top_k, device=DEVICE), 1).bfloat16().float()


def checksum(torch, tensors):
    """Of all bits and their places: equal in two processes only if their inputs are."""
    total, step = 0, 1 << 24
    for tensor in tensors:
        words = tensor.flatten().view(torch.int64)
        for begin in range(0, words.numel(), step):
            part = words[begin:begin + step]
            factors = torch.arange(part.numel(), device=part.device).mul_(2).add_(begin + 1)
            total = (total * 31 + int((part * factors).sum()) + int(part.sum())) & CHECKSUM_MASK
    return f"{total:016x}"


def sampled_tokens(tokens):
    return sorted({0, tokens // 3, tokens // 2, tokens - 1})


def projections(torch, out):
    """[T * NUM_PROBES] floats: each row's sums with random signs."""
    generator = torch.Generator().manual_seed(7)
    signs = torch.randint(0, 2, (out.shape[1], check.NUM_PROBES), generator=generator).mul_(2).sub_(1)
    signs = signs.to(device=out.device, dtype=torch.float32)
    return torch.cat([part.float() @ signs for part in out.split(4096)]).flatten().tolist()


def output_text(torch, out):
    rows = out[sampled_tokens(out.shape[0])].float().flatten().tolist()
    return {"rows": check.to_text("f", rows), "projections": check.to_text("f", projections(torch, out))}


class Timer:
    """Microseconds of runs: with a cold or a warm L2 cache, queued without gaps or one by one as a caller sees them."""

    def __init__(self, torch):
        self.torch = torch
        self.cache = torch.ones(FLUSH_BYTES // 4, dtype=torch.int32, device=DEVICE)
        self.flushed = torch.zeros((), dtype=torch.int64, device=DEVICE)

    def flush(self):
        """Reads so much that nothing of use stays in the L2 cache, and nothing that has to be written back."""
        self.torch.sum(self.cache, dim=0, out=self.flushed)

    def events(self):
        return [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def elapsed_us(self, pairs):
        self.torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]

    def cold(self, run, repetitions, flush=True):
        """The GPU's time, with a cold cache: the launch is queued while the flush before it runs. Without `flush` for what
        empties the cache itself."""
        pairs = []
        for _ in range(repetitions):
            begin, end = self.events()
            if flush:
                self.flush()
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        return self.elapsed_us(pairs)

    def warm(self, run, estimate_us):
        """Mean of runs back to back, several times."""
        runs = min(max(int(1e4 / max(estimate_us, 1.0)), 2), MOST_WARM_RUNS)
        blocks = []
        for _ in range(WARM_BLOCKS):
            begin, end = self.events()
            begin.record()
            for _ in range(runs):
                run()
            end.record()
            blocks.append((begin, end))
        return [us / runs for us in self.elapsed_us(blocks)]

    def as_called(self, run, repetitions):
        """On an idle GPU with a cold cache, the host's work for the launches included."""
        times, out = [], None
        for _ in range(repetitions):
            begin, end = self.events()
            self.flush()
            self.torch.cuda.synchronize()
            begin.record()
            out = run()
            end.record()
            times += self.elapsed_us([(begin, end)])
        return times, out


def number_of_runs(request, estimate_us):
    return min(max(int(request["budget_us"] / (estimate_us + FLUSH_US)), request["least"]), request["most"])


class CaptureFailed(Exception):
    pass


def captured(torch, run):
    """(graph, what run returned inside it)."""
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        torch.cuda.synchronize()
    except Exception as error:
        raise CaptureFailed(f"{type(error).__name__}: {error}") from error
    return graph, out


class Prepared:
    """A call of a layer on a cell, and its CUDA graph."""

    def __init__(self, torch, call, graph_wanted):
        self.torch, self.call, self.graph, self.estimate = torch, call, None, None
        for _ in range(2):  # kernels are compiled, chosen, loaded
            self.out = call.run()
        torch.cuda.synchronize()
        if graph_wanted:
            self.graph, self.out = captured(torch, call.run)

    def poison(self, out):
        """What is checked afterwards is what the timed runs wrote."""
        (out if self.call.poison is None else self.call.poison).fill_(math.nan)

    def measured(self, timer, request):
        """Times of the modes asked for, and what the runs of each kind left behind. Runs for about request["budget_us"], but
        from request["least"] to request["most"] times."""
        times, outputs, modes = {}, {}, request["modes"]
        if self.graph:
            self.estimate = self.estimate or timer.cold(self.graph.replay, 2)[-1]
            self.poison(self.out)
            times["graph_cold"] = timer.cold(self.graph.replay, number_of_runs(request, self.estimate))
            if "graph_warm" in modes:
                times["graph_warm"] = timer.warm(self.graph.replay, self.estimate)
            outputs["graph"] = output_text(self.torch, self.call.result(self.out))
        if "eager" in modes or not self.graph:
            if self.call.poison is not None:
                self.poison(None)
            times["eager"], out = timer.as_called(self.call.run, request["least"])
            outputs["eager"] = output_text(self.torch, self.call.result(out))
        return {"times": {mode: [round(us, 3) for us in values] for mode, values in times.items()}, "outputs": outputs}


def noted(call):
    """What the adapter says of a call: the tuned file, the tactic."""
    note = getattr(call, "note", None)
    return {"note": note} if note else {}


class LibraryWorker:
    """Answers for one library."""

    def __init__(self, torch, name):
        from adapters import LIBRARIES
        self.torch, self.name, self.make_library, self.sets, self.primer = torch, name, LIBRARIES[name], [], None
        self.library = self.make_library()
        self.timer, self.cell, self.kept = Timer(torch), None, {}
        self.most_kept = torch.cuda.get_device_properties(0).total_memory * KEPT_SHARE

    def hello(self, _):
        """Runs every layer once on a small problem: what cannot run here says so now."""
        if self.library.quick_to_try:
            self.try_out()
        return {"versions": self.library.versions(), "capture_problem": self.library.capture_problem}

    def try_out(self):
        from adapters import Skip
        torch = self.torch
        weights = [torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * 0.02
                   for shape in ((8, 512, 256), (8, 256, 256))]
        x = torch.randn(16, 256, device=DEVICE, dtype=torch.bfloat16)
        ids = (torch.arange(32, device=DEVICE) % 8).view(16, 2)
        self.library.load(*weights, 2)
        for prepare in self.library.layers().values():
            try:
                call = prepare(x, ids, torch.full((16, 2), 0.5, device=DEVICE))
                call.result(call.run())
            except Skip:
                pass
        torch.cuda.synchronize()
        self.library.unload()

    def unload(self, _=None):
        self.cell, self.kept = None, {}
        for library in [self.library, *self.sets, *([self.primer] if self.primer else [])]:
            library.unload()
        self.sets, self.primer = [], None
        self.torch.cuda.empty_cache()
        return {}

    def load(self, request):
        self.unload()
        weights = make_weights(self.torch, request["preset"])
        self.library.load(*weights, grid.PRESETS[request["preset"]][3])
        answer = {"checksum": checksum(self.torch, weights)}
        del weights  # a library that keeps them in an order of its own needs no second copy
        self.torch.cuda.empty_cache()
        return answer

    def take_up(self, cell):
        if cell != self.cell:
            self.kept, self.cell = {}, cell
            self.inputs = make_inputs(self.torch, cell)
            self.checksum = checksum(self.torch, self.inputs)
            self.torch.cuda.empty_cache()
            self.base = self.torch.cuda.memory_reserved()

    def measure(self, request):
        from adapters import Skip
        layer = request["layer"]
        self.take_up(grid.Cell(*request["cell"]))
        try:
            if layer not in self.kept:
                call = self.library.layers()[layer](*self.inputs)
                self.kept[layer] = Prepared(self.torch, call, request["graph"])
            answer = {"checksum": self.checksum, **self.kept[layer].measured(self.timer, request),
                      **noted(self.kept[layer].call)}
        except Skip as reason:
            return {"skip": str(reason)}
        except CaptureFailed as error:
            return {"capture_error": str(error)}
        except self.torch.cuda.OutOfMemoryError as error:
            self.cell, self.kept = None, {}
            answer = {"skip": "does not fit into the GPU's memory beside the other processes: " + str(error)[:160]}
        if self.torch.cuda.memory_reserved() - self.base > self.most_kept:
            self.kept = {}
            self.torch.cuda.empty_cache()
        return answer

    def chain_load(self, request):
        """Several sets of weights, each in a library object of its own; their checksums. Where calls are tuned, an object
        beside them tunes for each number of tokens, and the layers take what it found: one that has several places in the
        chain would tune for the routing of each."""
        self.unload()
        checksums, self.primer = [], None
        try:
            if self.name in cases.TUNED:
                self.primer = self.make_library()
                self.primer.load(*make_weights(self.torch, request["preset"]), grid.PRESETS[request["preset"]][3])
            for number in range(request["sets"]):
                weights = make_weights(self.torch, request["preset"], number)
                self.sets.append(self.make_library())
                self.sets[-1].load(*weights, grid.PRESETS[request["preset"]][3])
                checksums.append(checksum(self.torch, weights))
                del weights
                self.torch.cuda.empty_cache()
        except self.torch.cuda.OutOfMemoryError as error:
            self.unload()
            return {"skip": f"{request['sets']} sets of weights do not fit into the GPU's memory: {str(error)[:160]}"}
        return {"checksums": checksums}

    def chain(self, request):
        """One CUDA graph of as many layers as asked for, each with its own inputs; microseconds a layer of each replay."""
        from adapters import Skip
        torch, cell = self.torch, grid.Cell(*request["cell"])
        try:
            made = [make_inputs(torch, cell, place) for place in range(request["layers"])]
            if self.primer:
                self.primer.layers()[request["layer"]](*made[0])
            calls = [self.sets[place % len(self.sets)].layers()[request["layer"]](*inputs)
                     for place, inputs in enumerate(made)]
            for call in calls:
                call.run()
            torch.cuda.synchronize()
            graph, outs = captured(torch, lambda: [call.run() for call in calls])
        except Skip as reason:
            return {"skip": str(reason)}
        except CaptureFailed as error:
            self.unload()
            return {"skip": "its calls cannot be captured in a CUDA graph: " + str(error)[:300]}
        except torch.cuda.OutOfMemoryError as error:
            return {"skip": "does not fit into the GPU's memory: " + str(error)[:160]}
        estimate = self.timer.cold(graph.replay, 2, flush=False)[-1]
        for call, out in zip(calls, outs):
            (out if call.poison is None else call.poison).fill_(math.nan)
        times = self.timer.cold(graph.replay, number_of_runs(request, estimate), flush=False)
        answer = {"times": [round(us / len(calls), 3) for us in times], **noted(calls[0]),
                  "checksums": {str(place): checksum(torch, made[place]) for place in request["sampled"]},
                  "outputs": {str(place): output_text(torch, calls[place].result(outs[place]))
                              for place in request["sampled"]}}
        del graph, outs, calls, made
        torch.cuda.empty_cache()
        return answer


class Judge:
    """The machine's limits, the reference results and the dense products of each cell."""

    def __init__(self, torch):
        self.torch, self.timer, self.weights = torch, Timer(torch), None

    def hello(self, _):
        from torch_moe import Stopwatch, machine, read_bytes_per_second
        rate = read_bytes_per_second(self.torch, Stopwatch(self.torch))
        self.torch.cuda.empty_cache()
        return {"machine": machine(self.torch), "hbm_bytes_per_second": rate}

    def load(self, request):
        self.weights = None
        self.torch.cuda.empty_cache()
        self.weights = make_weights(self.torch, request["preset"])
        return {"checksum": checksum(self.torch, self.weights)}

    def unload(self, _):
        self.weights = None
        self.torch.cuda.empty_cache()
        return {}

    def reference(self, request):
        cell = grid.Cell(*request["cell"])
        inputs = make_inputs(self.torch, cell)
        answer = {**self.judgement(inputs), "active_experts": inputs[1].unique().numel()}
        del inputs
        self.torch.cuda.empty_cache()
        return answer

    def judgement(self, inputs):
        """What a result of these inputs is checked with."""
        from torch_moe import exact_rows, exact_slots, torch_layer
        torch, (x, ids, weights) = self.torch, inputs
        tokens = sampled_tokens(x.shape[0])
        exact, allowed = exact_rows(torch, x, *self.weights, ids, weights, tokens)
        out = torch_layer(torch, x, *self.weights, ids, weights.to(x.dtype))
        norms = torch.cat([part.float().norm(dim=1) for part in out.split(4096)])
        return {"tokens": tokens, "exact": check.to_text("d", exact.flatten().tolist()),
                "allowed": check.to_text("d", allowed.flatten().tolist()),
                "slots": check.to_text("f", exact_slots(torch, x, *self.weights, ids, weights, tokens).flatten().tolist()),
                "projections": check.to_text("f", projections(torch, out)), "norms": check.to_text("f", norms.tolist()),
                "checksum": checksum(torch, (x, ids, weights))}

    def chain_routing(self, request):
        """The experts that each layer of a chain uses, for each number of tokens."""
        return {"experts": {str(tokens): [make_inputs(self.torch, grid.Cell(request["preset"], tokens, "random"), place)[1]
                                          .unique().tolist() for place in range(request["layers"])]
                            for tokens in request["tokens"]}}

    def chain_reference(self, request):
        """For one layer of a chain and each number of tokens what its result is checked with."""
        self.unload(None)
        self.weights = make_weights(self.torch, request["preset"], request["set"])
        found = {str(tokens): self.judgement(make_inputs(self.torch, grid.Cell(request["preset"], tokens, "random"),
                                                         request["place"])) for tokens in request["tokens"]}
        answer = {"checksum": checksum(self.torch, self.weights), "references": found}
        self.unload(None)
        return answer

    def dense(self, request):
        """Two dense products of as many FLOPs: [R, H] x [H, 2I] and [R, I] x [I, H], replayed, with a cold cache."""
        torch, cell = self.torch, grid.Cell(*request["cell"])
        hidden, intermediate, _, top_k = grid.PRESETS[cell.preset]
        rows, (gate_up, down) = cell.tokens * top_k, (weight[0].t() for weight in self.weights)
        made = [torch.randn(rows, width, device=DEVICE, dtype=torch.bfloat16) for width in (hidden, intermediate)]
        outs = [torch.empty(rows, width, device=DEVICE, dtype=torch.bfloat16) for width in (2 * intermediate, hidden)]

        def pair():
            torch.mm(made[0], gate_up, out=outs[0])
            torch.mm(made[1], down, out=outs[1])
        pair()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            pair()
        estimate = self.timer.cold(graph.replay, 2)[-1]
        times = self.timer.cold(graph.replay, number_of_runs(request, estimate))
        del graph, made, outs
        torch.cuda.empty_cache()
        return {"times": {"graph_cold": [round(us, 3) for us in times]}}


def serve(make, reply_fd):
    """Answers requests until stdin ends. An error ends the process: after one a CUDA context may be of no use."""
    with os.fdopen(reply_fd, "w") as replies:
        def answer(content):
            replies.write(json.dumps(content) + "\n")
            replies.flush()
        try:
            worker = make()
            for line in sys.stdin:
                request = json.loads(line)
                answer(getattr(worker, request["do"])(request))
        except BaseException as error:
            answer({"error": f"{type(error).__name__}: {error}"[:600]})
            raise


def compile_ahead(torch, name, preset, tokens, part, parts):
    from adapters import LIBRARIES, Skip
    library = LIBRARIES[name]()
    library.prepare_part(part, parts)
    library.load(*make_weights(torch, preset), grid.PRESETS[preset][3])
    for count in tokens:
        for prepare in library.layers().values():
            try:
                prepare(*make_inputs(torch, grid.Cell(preset, count, "random"))).run()
            except Skip:
                continue
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="a name of adapters.LIBRARIES, or dense")
    parser.add_argument("--reply-fd", type=int)
    parser.add_argument("--ahead", metavar="PRESET")
    parser.add_argument("--tokens", type=lambda text: [int(word) for word in text.split(",")], default=[])
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()

    def make():
        import torch
        torch.set_grad_enabled(False)
        torch.zeros(1, device=DEVICE)
        return Judge(torch) if options.library == "dense" else LibraryWorker(torch, options.library)
    if options.ahead:
        import torch
        torch.set_grad_enabled(False)
        compile_ahead(torch, options.library, options.ahead, options.tokens, options.part, options.parts)
    else:
        serve(make, options.reply_fd)


if __name__ == "__main__":
    main()
