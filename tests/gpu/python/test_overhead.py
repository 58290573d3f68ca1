"""What one call costs the processor that makes it, in microseconds: of the layer, the function, the operator, and of the
library's C function alone. On a GPU the figures go to the file that TESSERA_OVERHEAD_JSON names."""
import ctypes
import os
import platform
import statistics
import subprocess
import time
import unittest

import tessera
import torch
from tensor_support import DEVICES, Layer, write_json
from tessera import _native

CALLS = 2000
# So few calls lie between two synchronisations that the GPU's queue never fills: a call does not wait for the GPU.
CALLS_AT_A_TIME = 20
LIMIT_US = 20.0  # of the direct call: what an engine can afford a layer outside of a graph


def median_us(call, device):
    """Median time of a call while the GPU works through the calls before it."""
    times = []
    while len(times) < CALLS + CALLS_AT_A_TIME:
        if device == "cuda":
            torch.cuda.synchronize()
        for _ in range(CALLS_AT_A_TIME):
            begin = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - begin)
    return statistics.median(times[CALLS_AT_A_TIME:]) / 1000


def c_entry(layer, made, x, ids, weights, out, workspace):
    """tessera_moe_run alone, with everything it takes laid out before."""
    inputs = _native.PACK_INPUTS(_native.INPUTS_BYTES, x.shape[0], int(ids.dtype == torch.int64), x.data_ptr(),
                                 ids.data_ptr(), weights.data_ptr(), out.data_ptr(), 0, 0)
    function, pointer = _native.lib.tessera_moe_run, made._native.handle.pointer
    address, num_bytes = workspace.data_ptr(), workspace.numel()
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream) if layer.device == "cuda" else None
    return lambda: function(pointer, inputs, address, num_bytes, stream)


def calls_of(device):
    """{name: a call without arguments} of every way into the library, on one token."""
    layer = Layer(device, hidden=2048, intermediate=768, experts=128, top_k=8) if device == "cuda" else Layer(device)
    x, ids, weights = layer.inputs(1, torch.int32)
    gate_up, down = layer.gate_up, layer.down
    made = tessera.MoELayer(gate_up, down, top_k=layer.top_k)
    out, workspace = torch.empty_like(x), torch.empty(made.workspace_bytes(1), dtype=torch.uint8, device=device)
    operator = torch.ops.tessera.moe.default
    return layer, out, {
        "layer_call": lambda: made(x, ids, weights, out=out, workspace=workspace),
        "layer_call_that_allocates": lambda: made(x, ids, weights),
        "function_call": lambda: tessera.moe(x, gate_up, down, ids, weights, out=out, workspace=workspace),
        "function_call_that_allocates": lambda: tessera.moe(x, gate_up, down, ids, weights),
        "operator_call": lambda: operator(x, gate_up, down, ids, weights),
        "c_call": c_entry(layer, made, x, ids, weights, out, workspace)}, layer.reference(x, ids, weights)


class Overhead(unittest.TestCase):
    def test_calls(self):
        for device in DEVICES:
            layer, out, calls, expected = calls_of(device)
            figures = {}
            with torch.inference_mode():
                for name, call in calls.items():
                    out.fill_(float("nan"))
                    result = call()
                    result = result if isinstance(result, torch.Tensor) else out
                    self.assertLess(float((result.double() - expected).norm() / expected.norm()), 3e-3, name)
                    figures[f"{name}_us"] = round(median_us(call, device), 2)
            print(f"\n{device}: {figures}")
            if device == "cuda":
                self.assertLessEqual(figures["layer_call_us"], LIMIT_US)
                self.write(layer, figures)

    def write(self, layer, figures):
        path = os.environ.get("TESSERA_OVERHEAD_JSON")
        if path:
            query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            gpu, driver = subprocess.run(query, text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines()[0].split(", ")
            write_json(path, {"gpu": gpu, "driver": driver, "torch": torch.__version__,
                              "python": platform.python_version(), "processor": processor(), "num_calls": CALLS,
                              "calls_between_synchronisations": CALLS_AT_A_TIME, "num_tokens": 1,
                              "hidden_size": layer.hidden, "intermediate_size": layer.intermediate,
                              "num_experts": layer.experts, "top_k": layer.top_k, **figures})


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    unittest.main()
