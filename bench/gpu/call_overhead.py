#!/usr/bin/env python3
"""What one call costs the processor that makes it, in microseconds, into bench/results/call_overhead_<gpu>.json.

  call_overhead.py                        needs a GPU, torch and the Python package; 15 s
  call_overhead.py --output figures.json

Of the layer, the function, the operator, and of the library's C function alone, on one token of Qwen3-30B-A3B's layer, outside
of CUDA graphs. A call's figure is the median of a round; of ten rounds, in which all ways take turns, the quietest counts: a
neighbour on the host only ever adds. Exit code 1: a result was wrong.
"""
import argparse
import ctypes
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHAPE = {"hidden": 2048, "intermediate": 768, "experts": 128, "top_k": 8}
ROUNDS = 10
CALLS = 200  # of one way in a round
# So few calls lie between two synchronisations that the GPU's queue never fills: a call does not wait for the GPU.
CALLS_AT_A_TIME = 20
ROW_LIMIT = 3e-3  # relative error of a bf16 row whose sums are fp32


def quietest(rounds):
    """{way: the smallest of its rounds' figures, to 10 ns}, of [{way: us}]."""
    return {way: round(min(figures[way] for figures in rounds), 2) for way in rounds[0]}


def result_name(gpu):
    """'NVIDIA H100 80GB HBM3' -> 'call_overhead_h100.json'."""
    model = next(word for word in gpu.split() if any(character.isdigit() for character in word))
    return f"call_overhead_{model.split('-')[0].lower()}.json"


def median_us(call, synchronize):
    """Median time of a call while the GPU works through the calls before it."""
    times = []
    while len(times) < CALLS + CALLS_AT_A_TIME:  # the first ones warm up
        synchronize()
        for _ in range(CALLS_AT_A_TIME):
            begin = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - begin)
    return statistics.median(times[CALLS_AT_A_TIME:]) / 1000


def c_entry(torch, tessera, made, x, ids, weights, out, workspace):
    """tessera_moe_run alone, with everything it takes laid out before."""
    native = tessera._native
    inputs = native.PACK_INPUTS(native.INPUTS_BYTES, x.shape[0], int(ids.dtype == torch.int64), x.data_ptr(),
                                ids.data_ptr(), weights.data_ptr(), out.data_ptr(), 0, 0, 0)
    function, pointer = native.lib.tessera_moe_run, made._native.handle.pointer
    address, num_bytes = workspace.data_ptr(), workspace.numel()
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    return lambda: function(pointer, inputs, address, num_bytes, stream)


def ways_in(torch, tessera, layer):
    """({way: a call without arguments}, the tensor that those without a result fill, what is right)."""
    x, ids, weights = layer.inputs(1, torch.int32)
    gate_up, down = layer.gate_up, layer.down
    made = tessera.MoELayer(gate_up, down, top_k=layer.top_k)
    out = torch.empty_like(x)
    workspace = torch.empty(made.workspace_bytes(1), dtype=torch.uint8, device="cuda")
    operator = torch.ops.tessera.moe.default
    return {"layer_call": lambda: made(x, ids, weights, out=out, workspace=workspace),
            "layer_call_that_allocates": lambda: made(x, ids, weights),
            "function_call": lambda: tessera.moe(x, gate_up, down, ids, weights, out=out, workspace=workspace),
            "function_call_that_allocates": lambda: tessera.moe(x, gate_up, down, ids, weights),
            "operator_call": lambda: operator(x, gate_up, down, ids, weights),
            "c_call": c_entry(torch, tessera, made, x, ids, weights, out, workspace)}, out, layer.reference(x, ids, weights)


def wrong_ways(torch, ways, out, expected):
    """Ways whose result is not the layer's, each with its relative error."""
    wrong = []
    for way, call in ways.items():
        out.fill_(float("nan"))
        result = call()
        result = result if isinstance(result, torch.Tensor) else out
        error = float((result.double() - expected).norm() / expected.norm())
        if not error <= ROW_LIMIT:
            wrong.append(f"{way}: relative error {error:.2e}, at most {ROW_LIMIT}")
    return wrong


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, help="instead of bench/results/call_overhead_<gpu>.json")
    args = parser.parse_args()
    try:
        import tessera
        import torch
    except ImportError as error:
        sys.exit(f"call_overhead: {error}: it needs torch and the Python package tessera")
    if not torch.cuda.is_available():
        sys.exit("call_overhead: no GPU here")
    sys.path.insert(0, str(ROOT / "tests" / "gpu" / "python"))
    from tensor_support import Layer
    ways, out, expected = ways_in(torch, tessera, Layer("cuda", **SHAPE))
    with torch.inference_mode():
        wrong = wrong_ways(torch, ways, out, expected)
        if wrong:
            sys.exit("call_overhead: " + "; ".join(wrong))
        rounds = [{way: median_us(call, torch.cuda.synchronize) for way, call in ways.items()} for _ in range(ROUNDS)]
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu, driver = subprocess.run(query, text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines()[0].split(", ")
    figures = {"gpu": gpu, "driver": driver, "torch": torch.__version__, "python": platform.python_version(),
               "processor": processor(), "num_rounds": ROUNDS, "num_calls": CALLS,
               "calls_between_synchronisations": CALLS_AT_A_TIME, "num_tokens": 1, "hidden_size": SHAPE["hidden"],
               "intermediate_size": SHAPE["intermediate"], "num_experts": SHAPE["experts"], "top_k": SHAPE["top_k"],
               **{f"{way}_us": us for way, us in quietest(rounds).items()}}
    path = args.output or ROOT / "bench" / "results" / result_name(gpu)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"call_overhead: wrote {path}: {quietest(rounds)}")


if __name__ == "__main__":
    main()
