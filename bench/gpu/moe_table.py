#!/usr/bin/env python3
"""Measures the layer's table on a GPU with `tessera bench moe` and writes bench/results/moe_<gpu>.json.

  moe_table.py build/cuda/tools/tessera/tessera                       all rows: about 3 minutes, half of it with --seconds 1
  moe_table.py TESSERA --rows mixtral,qwen30 --seconds 2              some rows; others of the same machine and
                                                                      policies stay as they are
  moe_table.py TESSERA --output FILE -- --order natural               elsewhere, with more options for the command

Rows of one shape and number of tokens are measured in one process, which makes the weights once. Needs Python alone, so that
it runs on a machine that has a driver and the built program. `make figures` then fills the tables of the kernels' READMEs.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ROWS = {  # name: preset, tokens, routing
    "mixtral": ("mixtral-8x7b", 4096, "balanced"),
    "mixtral16k": ("mixtral-8x7b", 16384, "balanced"),
    "mixtral-r": ("mixtral-8x7b", 4096, "random"),
    "qwen57": ("qwen2-57b", 4096, "balanced"),
    "qwen57-best": ("qwen2-57b", 4096, "best"),
    "qwen57-worst": ("qwen2-57b", 4096, "worst"),
    "qwen30": ("qwen3-30b", 16384, "balanced"),
    "qwen30-r": ("qwen3-30b", 16384, "random"),
    "dsv3": ("deepseek-v3-shard32", 16384, "balanced"),
    "gptoss-r": ("gpt-oss-120b", 16384, "random"),
    "gptoss": ("gpt-oss-120b", 16384, "balanced"),
}


def measure(tessera, preset, tokens, routings, seconds, more):
    """What the command writes as JSON, a case for each routing; ends the program if it fails or finds a result wrong."""
    words = f"{preset} {tokens} {','.join(routings)}"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "row.json"
        done = subprocess.run([tessera, "bench", "moe", "--preset", preset, "--tokens", str(tokens), "--routing",
                               ",".join(routings), "--seconds", str(seconds), "--device", "cuda", "--json", str(path), *more],
                              check=False)
        if done.returncode != 0:
            sys.exit(f"moe_table: {words}: exit code {done.returncode}")
        measured = json.loads(path.read_text())
    if len(measured["cases"]) != len(routings):
        sys.exit(f"moe_table: {words}: got {len(measured['cases'])} cases, expected {len(routings)}")
    return measured


def groups(names):
    """Rows that one process measures: {(preset, tokens): names}."""
    found = {}
    for name in names:
        found.setdefault(ROWS[name][:2], []).append(name)
    return found


def file_name(machine, stem):
    """bench/results/moe_h200.json for an H200."""
    model = re.search(r"\b([A-Z]+\d+\w*)\b", machine["GPU"])
    return ROOT / "bench" / "results" / f"{stem}_{model[1].lower() if model else 'gpu'}.json"


def duel_figures(case, kind):
    """Layer against dense, sustained or in bursts."""
    duel = case[kind]
    return {"r": round(duel["r"]["median"], 3), "r_min": round(duel["r"]["min"], 3), "r_max": round(duel["r"]["max"], 3),
            "layer_ms": round(duel["layer_us"]["median"] / 1e3, 3), "layer_tflops": round(duel["layer_tflops"]),
            "dense_ms": round(duel["dense_us"]["median"] / 1e3, 3), "dense_tflops": round(duel["dense_tflops"]),
            "largest_error_of_bound": round(case["check"]["largest_error_of_bound"], 3)}


def kernel_figures(case):
    figures = {"plan_us": round(case["kernels"]["plan"]["us"], 1)}
    for name in ("gemm1", "gemm2"):
        kernel = case["kernels"][name]
        figures[f"{name}_tflops"] = round(kernel["tflops"])
        figures[f"{name}_dense_tflops"] = round(kernel["dense_tflops"])
        figures[f"{name}_of_dense"] = round(kernel["of_dense"], 3)
    combine = case["kernels"]["combine"]
    return {**figures, "combine_us": round(combine["us"], 1), "combine_gb_per_s": round(combine["gb_per_s"])}


def layer_table(results):
    rows = []
    for name in [row for row in ROWS if row in results["burst"]]:
        burst, sustained = results["burst"][name], results["sustained"].get(name)
        spread = f"{sustained['r']:.3f} ({sustained['r_min']:.3f}..{sustained['r_max']:.3f})" if sustained else "-"
        layer = f"{sustained['layer_ms']:.3f} ms, {sustained['layer_tflops']}" if sustained else "-"
        gemms = [f"{burst[f'{gemm}_tflops']} ({burst[f'{gemm}_of_dense']:.3f})" for gemm in ("gemm1", "gemm2")]
        rows.append([name, spread, layer, sustained["dense_tflops"] if sustained else "-", f"{burst['r']:.3f}", *gemms])
    return {"columns": ["row", "r sustained (min..max of 3)", "layer, TFLOP/s", "dense, TFLOP/s", "r burst",
                        "GEMM 1 (of dense)", "GEMM 2 (of dense)"], "rows": rows}


def combine_table(results):
    rows = [[name, results["burst"][name]["combine_us"], results["burst"][name]["combine_gb_per_s"]]
            for name in ROWS if name in results["burst"]]
    return {"columns": ["row", "combine, us", "GB/s"], "rows": rows}


def plan_table(results):
    rows = []
    for name in [row for row in ROWS if row in results["burst"]]:
        preset, tokens, routing = ROWS[name]
        rows.append([name, f"{preset}, T = {tokens}, {routing}", results["burst"][name]["plan_us"]])
    return {"columns": ["row", "load", "plan, us"], "rows": rows}


def add_row(results, name, measured, number=0):
    """Puts one measurement of one load into the results: the case of this number."""
    case = measured["cases"][number]
    results["burst"][name] = {**duel_figures(case, "burst"), **kernel_figures(case), "launch": case["launch"]}
    if "sustained" in case:
        results["sustained"][name] = duel_figures(case, "sustained")
        states = {f"{who}_{what}": round(case["sustained"][f"{who}_state"][what]) for who in ("layer", "dense")
                  if f"{who}_state" in case["sustained"] for what in ("sm_mhz", "watts")}
        results["sustained"][name].update(states)


def what(measured, seconds):
    machine = measured["machine"]
    driver = f"driver {machine['driver']}" if "driver" in machine else machine.get("monitor", "")
    return (f"tessera bench moe {measured['version']} on {machine['GPU']}, {driver}, CUDA {machine['CUDA']}, "
            f"{machine.get('power', 'power unknown')}; dense by {machine['dense']}; {measured['dtype']}, random normal data; "
            f"r = time of the two dense products / time of the whole layer, A B A B in one process; sustained: blocks of "
            f"{seconds:g} s, burst: blocks of 50 ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tessera", help="the built command")
    parser.add_argument("--rows", help="names with commas between", default=",".join(ROWS))
    parser.add_argument("--seconds", type=float, default=2.0, help="of a sustained block, 0 = bursts only")
    parser.add_argument("--output", type=pathlib.Path, help="instead of bench/results/moe_<gpu>.json")
    parser.add_argument("more", nargs="*", help="options for the command, after --")
    args = parser.parse_args()
    names = args.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        sys.exit(f"moe_table: --rows: got {', '.join(unknown)}, expected some of {', '.join(ROWS)}")
    results, path = {}, args.output
    for (preset, tokens), rows in groups(names).items():
        measured = measure(args.tessera, preset, tokens, [ROWS[name][2] for name in rows], args.seconds, args.more)
        if not results:
            path = args.output or file_name(measured["machine"], "moe")
            results = json.loads(path.read_text()) if path.exists() else {}
        if results.get("machine") != measured["machine"]:
            results = {"machine": measured["machine"], "sustained": {}, "burst": {}}
        for number, name in enumerate(rows):
            add_row(results, name, measured, number)
        results = {"what": what(measured, args.seconds), "machine": measured["machine"],
                   "sustained": results["sustained"], "burst": results["burst"],
                   "layer_table": layer_table(results), "combine_table": combine_table(results),
                   "plan_table": plan_table(results)}
        path.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
