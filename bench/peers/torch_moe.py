#!/usr/bin/env python3
"""Tessera's MoE layer against the layer that PyTorch users get (F.grouped_mm), in one process on one GPU.

  torch_moe.py --json bench/results/torch_moe_h100.json
  torch_moe.py --presets olmoe,gemma4 --tokens 1,32,4096 --routings random --budget-seconds 120
  torch_moe.py --continue ...      keeps the cells of the JSON file and measures those that are missing
  torch_moe.py --self-test         the bookkeeping alone: needs neither torch nor a GPU

Ours is tessera.MoELayer of the installed Python package (TESSERA_LIBRARY: another libtessera.so than the package's).

The torch layer: stable sort of the expert ids, gather, grouped_mm, silu * up, grouped_mm, routing weights, back to token
order, sum. Both layers get the same bf16 tensors and int64 ids. A cell times them in turns, torch, ours, torch, ours,
each run alone between two events as a user calls it, launches included, after the L2 cache was overwritten; medians.
Graph columns are replays of CUDA graphs of the same calls. The outputs of the timed runs are compared. The bound of a
cell is the larger of: weights of the experts in use at the HBM read rate measured first; two dense cuBLAS products of
the same FLOPs. Exit code 1: a cell was lost or its results differ.
"""
import argparse
import datetime
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
import zlib

import grid

LEAST_REPETITIONS, MOST_REPETITIONS = 3, 15
FLUSH_BYTES = 128 << 20  # more than twice an H100's L2 cache
SPARE_BYTES = 30 << 30  # cached by torch's allocator beyond this: given back between cells
ROW_LIMIT = 1e-2  # relative error of a row between the layers: ten roundings to bf16 make about 0.003
UNIT, ACCUMULATOR_UNIT = 2.0**-8, 2.0**-21  # roundoff of bf16; of the tensor cores' accumulators, which truncate
GRAPH_TOKENS = 1024  # beyond this a layer takes far longer than its launches


def chosen_experts(torch, kind, tokens, experts, top_k):
    """[T, k] int64, the experts of a token distinct."""
    if kind == "balanced":
        return (torch.arange(tokens * top_k, device="cuda") % experts).view(tokens, top_k)
    if kind == "worst":  # every cold expert one row, the k hot ones share the rest
        ids = torch.arange(top_k, device="cuda").repeat(tokens)
        ids[:experts - top_k] = torch.arange(top_k, experts, device="cuda")
        return ids.view(tokens, top_k)
    keys = torch.rand(tokens, experts, device="cuda")
    if kind == "zipf":  # the k largest of log p + Gumbel noise are k draws without replacement, p ~ 1 / rank
        ranks = torch.arange(1, experts + 1, device="cuda")
        keys = -torch.log(-torch.log(keys.clamp(1e-30, 1 - 1e-7))) - torch.log(ranks)
    return keys.topk(top_k, 1).indices


def torch_layer(torch, x, gate_up, down, ids, weights):
    functional, (tokens, top_k), experts = torch.nn.functional, ids.shape, gate_up.shape[0]
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.histc(flat.float(), bins=experts, min=0, max=experts - 1).cumsum(0).to(torch.int32)
    gate, up = functional.grouped_mm(x[order // top_k], gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    rows = functional.grouped_mm(functional.silu(gate) * up, down.transpose(1, 2), offs=ends)
    rows = rows * weights.flatten()[order].unsqueeze(1)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return rows[inverse].view(tokens, top_k, -1).sum(1)


def exact_rows(torch, x, gate_up, down, ids, weights, tokens):
    """fp64 rows of the layer for a few tokens, rounding where it declares to, and the error allowed to each element."""
    exact, allowed = [], []
    for token in tokens:
        out, bound = 0.0, 0.0
        for expert, weight in zip(ids[token].tolist(), weights[token].double()):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            hidden = (torch.nn.functional.silu(gate) * up).to(x.dtype).double()
            matrix = down[expert].double()
            row, magnitude = matrix @ hidden, matrix.abs() @ hidden.abs()
            out = out + weight * row.to(x.dtype).double()
            bound = bound + weight.abs() * (2 * UNIT * row.abs() + (2 * UNIT + 4 * ACCUMULATOR_UNIT) * magnitude)
        exact.append(out)
        allowed.append(bound + 2 * UNIT * out.abs())
    return torch.stack(exact), torch.stack(allowed)


def exact_slots(torch, x, gate_up, down, ids, weights, tokens):
    """fp64 [n, k, H]: what each expert of a few tokens contributes to its row, weighted; exact_rows without the roundings."""
    slots = []
    for token in tokens:
        for expert, weight in zip(ids[token].tolist(), weights[token].double()):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            slots.append(weight * (down[expert].double() @ (torch.nn.functional.silu(gate) * up)))
    return torch.stack(slots).view(len(tokens), ids.shape[1], -1)


def disagreement(torch, ours, theirs, problem):
    """What is wrong with our output, or an empty text. `problem`: x, gate_up, down, ids, weights."""
    tokens = sorted({0, ours.shape[0] // 2, ours.shape[0] - 1})
    exact, allowed = exact_rows(torch, *problem, tokens)
    error = (ours[tokens].double() - exact).abs()
    if not bool((error <= allowed).all()):  # also where the error is NaN
        return f"an element of tokens {tokens} is off by {float((error / allowed).max()):.3g} of what is allowed"
    worst = 0.0
    for begin in range(0, ours.shape[0], 8192):
        expected = theirs[begin:begin + 8192].float()
        relative = (ours[begin:begin + 8192].float() - expected).norm(dim=1) / expected.norm(dim=1)
        worst = max(worst, float(relative.nan_to_num(math.inf).max()))
    return "" if worst <= ROW_LIMIT else f"a row differs from torch's by {worst:.3g}, at most {ROW_LIMIT}"


class Stopwatch:
    """Times one call at a time, its launches included, on an idle GPU whose L2 cache holds nothing of use."""

    def __init__(self, torch):
        self.torch = torch
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def warm_us(self, work):
        self.torch.cuda.synchronize()
        self.begin.record()
        work()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) * 1e3

    def cold_us(self, work):
        self.flush.zero_()
        return self.warm_us(work)

    def medians(self, works, seconds):
        """Median of each of `works` (name -> call), run in turns for about so many seconds."""
        estimate = sum(self.cold_us(work) + 100 for work in works.values())
        repetitions = min(max(int(seconds * 1e6 / estimate), LEAST_REPETITIONS), MOST_REPETITIONS)
        times = {name: [] for name in works}
        for _ in range(repetitions):
            for name, work in works.items():
                times[name].append(self.cold_us(work))
        return {name: statistics.median(values) for name, values in times.items()}


def captured(torch, work):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def read_bytes_per_second(torch, stopwatch):
    """The best of a large copy (bytes read and written) and a large sum (bytes read)."""
    source = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    size = source.numel() * 4
    works = ((2 * size, lambda: target.copy_(source)), (size, lambda: source.sum()))
    rate = max(count / min(stopwatch.warm_us(work) for _ in range(6)) * 1e6 for count, work in works)
    del source, target
    torch.cuda.empty_cache()
    return rate


class Bench:
    """Measures cells; keeps the weights of the preset it is at."""

    def __init__(self, torch, tessera, cell_seconds, graph_tokens):
        self.torch, self.tessera = torch, tessera
        self.cell_seconds, self.graph_tokens = cell_seconds, graph_tokens
        self.stopwatch = Stopwatch(torch)
        self.rate = read_bytes_per_second(torch, self.stopwatch)
        self.preset, self.layer, self.dense = None, None, {}

    def take_up(self, preset):
        if preset == self.preset:
            return
        self.layer = self.gate_up = self.down = None
        self.torch.cuda.empty_cache()
        hidden, intermediate, experts, top_k = grid.PRESETS[preset]
        self.gate_up = self.randn(experts, 2 * intermediate, hidden).mul_(0.02)
        self.down = self.randn(experts, hidden, intermediate).mul_(0.02)
        self.layer = self.tessera.MoELayer(self.gate_up, self.down, top_k=top_k)
        self.preset, self.dense = preset, {}

    def randn(self, *shape):
        return self.torch.randn(*shape, device="cuda", dtype=self.torch.bfloat16)

    def dense_us(self, rows):
        """Two dense products of as many FLOPs as so many routed rows, in replays without launch gaps."""
        if rows not in self.dense:
            torch, (hidden, intermediate) = self.torch, grid.PRESETS[self.preset][:2]
            inputs = self.randn(rows, hidden), self.randn(rows, intermediate)
            outputs = tuple(torch.empty(rows, n, device="cuda", dtype=torch.bfloat16) for n in (2 * intermediate, hidden))

            def pair():
                torch.mm(inputs[0], self.gate_up[0].t(), out=outputs[0])
                torch.mm(inputs[1], self.down[0].t(), out=outputs[1])
            self.stopwatch.warm_us(pair)
            count = min(max(int(2e4 / self.stopwatch.warm_us(pair)), 1), 20)
            graph = captured(torch, lambda: [pair() for _ in range(count)])
            self.dense[rows] = statistics.median(self.stopwatch.warm_us(graph.replay) for _ in range(5)) / count
        return self.dense[rows]

    def calls(self, problem, out):
        """(works by column, the dictionary in which the torch layer leaves its output)."""
        torch, (x, _, _, ids, weights) = self.torch, problem
        theirs = {}
        workspace = torch.empty(self.layer.workspace_bytes(x.shape[0]), dtype=torch.uint8, device="cuda")
        float_weights = weights.float()

        def run_torch():
            theirs["out"] = torch_layer(torch, *problem)

        def run_ours():
            self.layer(x, ids, float_weights, out=out, workspace=workspace)
        works = {"torch_us": run_torch, "ours_us": run_ours}
        for work in works.values():  # libraries load and choose their kernels
            work()
            work()
        if x.shape[0] <= self.graph_tokens:
            try:
                works["torch_graph_us"] = captured(torch, lambda: torch_layer(torch, *problem)).replay
            except RuntimeError as error:
                print(f"no graph of the torch layer: {error}", flush=True)
                torch.cuda.synchronize()
            works["ours_graph_us"] = captured(torch, run_ours).replay
        return works, theirs

    def measure_here(self, cell):
        torch, (hidden, _, experts, top_k) = self.torch, grid.PRESETS[cell.preset]
        self.take_up(cell.preset)
        torch.manual_seed(zlib.crc32(repr(tuple(cell)).encode()))
        dense_us = self.dense_us(cell.tokens * top_k)
        ids = chosen_experts(torch, cell.routing, cell.tokens, experts, top_k)
        weights = torch.softmax(torch.randn(cell.tokens, top_k, device="cuda"), 1).bfloat16()
        problem = self.randn(cell.tokens, hidden), self.gate_up, self.down, ids, weights
        out = torch.empty(cell.tokens, hidden, device="cuda", dtype=torch.bfloat16)
        works, theirs = self.calls(problem, out)
        out.fill_(math.nan)  # what is compared below is what the timed runs wrote
        times = self.stopwatch.medians(works, self.cell_seconds)
        wrong = disagreement(torch, out, theirs["out"], problem)
        if not wrong and "ours_graph_us" in works:
            replayed = out.clone()
            out.fill_(math.nan)
            works["ours_us"]()
            wrong = "" if torch.equal(out, replayed) else "graph replay and eager run have different bits"
        return {"torch_us": times["torch_us"], "ours_us": times["ours_us"], "dense_us": dense_us,
                "active_experts": ids.unique().numel(), "bytes_per_second": self.rate, "problem": wrong,
                "torch_graph_us": times.get("torch_graph_us"), "ours_graph_us": times.get("ours_graph_us")}

    def measure(self, cell):
        try:
            return self.measure_here(cell)
        except self.torch.cuda.OutOfMemoryError as error:
            print(f"left out, does not fit: {tuple(cell)}: {str(error)[:120]}", flush=True)
            raise MemoryError from None
        finally:
            if self.torch.cuda.memory_reserved() - self.torch.cuda.memory_allocated() > SPARE_BYTES:
                self.torch.cuda.empty_cache()


def machine(torch):
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    listing = subprocess.run(query, text=True, stdout=subprocess.PIPE, check=False).stdout.splitlines()
    driver, power, clock = (listing[0] if listing else "unknown, unknown, unknown").split(", ")
    return {"gpu": torch.cuda.get_device_name(0), "driver": driver, "power_limit": power, "max_sm_clock": clock,
            "torch": torch.__version__, "cuda": torch.version.cuda}


def write_document(path, meta, records, left_out):
    if path:
        path.write_text(json.dumps(grid.document(meta, records, left_out), indent=1) + "\n")


def records_to_keep(path, meta):
    """Of a file written by an earlier run on the same machine and versions."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    for key in ("gpu", "driver", "torch", "cuda"):
        if earlier["meta"][key] != meta[key]:
            sys.exit(f"torch_moe.py: {path}: {key}: got {earlier['meta'][key]}, expected {meta[key]} to continue")
    return earlier["records"]


def compare(options):
    import tessera  # late: --self-test and --help need neither
    import torch
    torch.set_grad_enabled(False)
    start = time.monotonic()
    bench = Bench(torch, tessera, options.cell_seconds, options.graph_tokens)
    meta = {**machine(torch), "date": datetime.date.today().isoformat(), "hbm_bytes_per_second": bench.rate,
            "method": " ".join(__doc__.split("\n\n")[3].split())}
    print(json.dumps(meta, indent=1), flush=True)
    done = records_to_keep(options.json, meta) if options.json and options.keep else []
    wanted = grid.cells(options.presets, options.tokens, options.routings)
    finished = list(done)

    def report(record):
        finished.append(record)
        print("  ".join(grid.row_of(record)), record["problem"], flush=True)
        if len(finished) % 25 == 0:  # a run that is cut off loses little
            write_document(options.json, meta, finished, [])
    try:
        records, left_out = grid.run_grid(wanted, bench.measure,
                                          lambda: options.budget_seconds - (time.monotonic() - start), report, done)
    except BaseException:
        write_document(options.json, meta, finished, [])
        raise
    asked = {tuple(cell) for cell in wanted}
    records += [r for r in done if (r["preset"], r["tokens"], r["routing"]) not in asked]
    write_document(options.json, meta, records, left_out)
    total = grid.counts(records)
    print("\nlost or wrong:")
    print(grid.text_table(grid.COLUMNS, [grid.row_of(r) for r in records if r["verdict"] != "won"]))
    print(f"\nleft out: {len(left_out)} cells", *(f"{c.preset}/{c.tokens}/{c.routing}" for c in left_out[:20]),
          "..." if len(left_out) > 20 else "")
    print(grid.text_table(grid.SUMMARY_COLUMNS, grid.summary_rows(records)))
    return 0 if records and total["won"] == total["cells"] else 1


def choice_of(known, convert=str):
    """An argument type: a comma-separated subset of `known`."""
    def parse(text):
        try:
            values = [convert(word) for word in text.split(",")]
        except ValueError:
            values = [None]
        unknown = [value for value in values if value not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"got '{text}', expected some of {','.join(map(str, known))}")
        return values
    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", type=choice_of(tuple(grid.PRESETS)), default=list(grid.PRESETS))
    parser.add_argument("--tokens", type=choice_of(grid.TOKENS, int), default=list(grid.TOKENS))
    parser.add_argument("--routings", type=choice_of(grid.ROUTINGS), default=list(grid.ROUTINGS))
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="start no cell after so long")
    parser.add_argument("--cell-seconds", type=float, default=0.12, help="time spent measuring a cell, about")
    parser.add_argument("--graph-tokens", type=int, default=GRAPH_TOKENS, help="largest T with CUDA graph columns")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--continue", dest="keep", action="store_true", help="keep what the JSON file has")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        grid.self_test()
        print("torch_moe.py: self-test passed")
        return 0
    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
