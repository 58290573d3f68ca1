#!/usr/bin/env python3
"""Runs every layer of every library once, on a small cell and on a real one, and says in a line each whether it works here.

  try_adapters.py                                on a GPU machine, after pack/unpack.py: about a minute
  try_adapters.py --libraries sglang,vllm
  try_adapters.py --slow                         also those whose first call tunes for minutes (Liger)

A process a library, side by side. A layer is run as the benchmark runs it (CUDA graph, then as called) and judged as there. On
the small cell a library is loaded twice, with two sets of weights that live side by side, as the layers of a chain do. Exit
code 1: a layer failed or its result was wrong; a library that is absent or a cell that a layer does not take is none.
"""
import argparse
import os
import subprocess
import sys
import time

import check
import grid
import theirs

SMALL = ("small", (512, 512, 8, 4))  # H, I, experts, k: few, and multiples of 128
CELLS = (grid.Cell("small", 16, "random"), grid.Cell("qwen3-30b", 64, "random"))
SLOW = ("liger",)
FAILED = ("WRONG", "FAILED")


def judged_call(torch, worker, library, layer, weights, cell):
    """Words on one layer of a loaded library."""
    judge = worker.Judge(torch)
    judge.weights = weights
    reference = check.decoded_reference(judge.reference({"cell": list(cell)}))
    begin = time.monotonic()
    call = library.layers()[layer](*worker.make_inputs(torch, cell))
    prepared = worker.Prepared(torch, call, not library.capture_problem)
    seconds = time.monotonic() - begin
    answer = prepared.measured(worker.Timer(torch), {"budget_us": 1.0, "least": 3, "most": 3, "modes": ("graph_cold", "eager")})
    slack = check.OWN_SLACK if layer == "tessera" else check.PEER_SLACK
    for kind, output in answer["outputs"].items():
        found = check.judged(output, reference, slack, theirs.LAYERS[layer].format)
        if found["problem"]:
            return f"WRONG ({kind}): {found['problem']}"
    times = ", ".join(f"{mode} {min(us):.1f} us" for mode, us in answer["times"].items())
    notes = "; ".join(f"{key}: {value}" for key, value in call.note.items() if key not in ("theirs", "ours"))
    return f"ok: row error {found['row_error']:.2g}, {times}, prepared in {seconds:.1f} s" + (f"; {notes}" if notes else "")


def said_of(torch, worker, library, layer, weights, cell):
    from adapters import Skip
    try:
        return judged_call(torch, worker, library, layer, weights, cell)
    except Skip as reason:
        return f"skipped: {reason}"
    except Exception as error:  # one layer's failure is a line, the next may work
        return f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def try_library(name):
    """Prints a line for each layer and cell."""
    import torch
    torch.set_grad_enabled(False)
    import worker
    from adapters import LIBRARIES
    grid.PRESETS.setdefault(*SMALL)
    begin = time.monotonic()
    try:
        objects = [LIBRARIES[name]() for _ in range(2)]
    except Exception as error:
        print(f"{name}: absent: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        return
    print(f"{name}: {time.monotonic() - begin:.1f} s to import; {objects[0].versions()}", flush=True)
    for cell in CELLS:
        weights = [worker.make_weights(torch, cell.preset)]
        if cell.preset == SMALL[0]:
            weights.append([part.flip(0) for part in weights[0]])  # other experts
        loaded = list(zip(objects, weights))
        for library, mine in loaded:
            library.load(*mine, grid.PRESETS[cell.preset][3])
        for layer in theirs.layers(name):
            for number, (library, mine) in enumerate(loaded):
                words = said_of(torch, worker, library, layer, mine, cell)
                print(f"{layer:24} {cell.preset} T={cell.tokens}{' second' if number else ''}: {words}", flush=True)
        for library, _ in loaded:
            library.unload()
        del weights, loaded
        torch.cuda.empty_cache()


def finish(process, seconds):
    """(what it printed, words on its end or "")."""
    try:
        text, _ = process.communicate(timeout=max(seconds, 0.1))
        ended = f"ended with exit code {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        ended = "no end in time"
    return text, ended


def main():
    from torch_moe import choice_of
    libraries = tuple(dict.fromkeys(parts.library for parts in theirs.LAYERS.values()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", type=choice_of(libraries))
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--seconds", type=float, default=90, help="for all of them")
    parser.add_argument("--library", choices=libraries, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        try_library(options.library)
        return 0
    chosen = options.libraries or [name for name in libraries if options.slow or name not in SLOW]
    begin, failed = time.monotonic(), 0
    running = {name: subprocess.Popen([sys.executable, os.path.abspath(__file__), "--library", name], text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for name in chosen}
    heads = tuple(f"{name}: " for name in chosen) + tuple(theirs.LAYERS)
    for name, process in running.items():
        text, ended = finish(process, options.seconds - (time.monotonic() - begin))
        lines = text.splitlines()
        print("\n".join(line for line in lines if line.startswith(heads)), flush=True)
        failed += sum(f": {word}" in line for line in lines for word in FAILED)
        if ended:
            failed += 1
            print(f"{name}: {ended}: " + " | ".join(line.strip() for line in lines[-4:])[-500:], flush=True)
    print(f"{len(chosen)} libraries in {time.monotonic() - begin:.0f} s, {failed} failures", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
