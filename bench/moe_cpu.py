#!/usr/bin/env python3
"""Measures the MoE layer on this machine's CPU beside plain products of the same FLOPs and writes bench/results/cpu_moe.json.

  moe_cpu.py                          f32 and bf16, 1 to 256 tokens, three shapes scaled to fit; build/test's command
  moe_cpu.py --rounds 9 --command build/cpu/tools/tessera/tessera --out moe.json

Each round is a `tessera bench moe`, where layer and product take turns. On a machine that others use, too, a time says more the
shorter it is: r is the least time of the product over the least of the layer, and beside it stands the spread of the rounds' own
r. A command without oneDNN is refused: its product would be this library's own loops.
"""
import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENS = (1, 4, 16, 64, 256)
# Ratios of hidden to intermediate size, and experts a token, of the published shape; fewer experts, so that an f32 layer has
# less than 2 GiB.
SHAPES = {"Mixtral 8x7B, a quarter as wide": (1024, 3584, 8, 2), "OLMoE, half as wide": (1024, 512, 64, 8),
          "Qwen3-30B-A3B, 32 of its 128 experts": (2048, 768, 32, 8)}


def measure(command, shape, dtype):
    """What one `bench moe` says."""
    sizes = dict(zip(("--hidden", "--intermediate", "--experts", "--top-k"), map(str, shape)))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "moe.json"
        done = subprocess.run([command, "bench", "moe", *(word for pair in sizes.items() for word in pair), "--dtype", dtype,
                               "--tokens", ",".join(map(str, TOKENS)), "--device", "cpu", "--seconds", "0", "--json", path],
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            sys.exit(f"moe_cpu.py: error: {command} ended with {done.returncode}:\n{done.stderr}")
        return json.loads(path.read_text())


def summary(rounds, case):
    """The quietest round's times of one number of tokens."""
    bursts = [one["cases"][case]["burst"] for one in rounds]
    layer, dense = (min(burst[name]["min"] for burst in bursts) for name in ("layer_us", "dense_us"))
    each = [burst["r"]["median"] for burst in bursts]
    return {"tokens": TOKENS[case], "layer_us": layer, "dense_us": dense, "r": dense / layer,
            "r_of_rounds": {"min": min(each), "median": statistics.median(each), "max": max(each)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", type=pathlib.Path, default=ROOT / "build" / "test" / "tools" / "tessera" / "tessera")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench" / "results" / "cpu_moe.json")
    args = parser.parse_args()
    rounds = {}
    for number in range(args.rounds):  # shapes take turns: a noisy minute hits one round of each
        for name, shape in SHAPES.items():
            for dtype in ("f32", "bf16"):
                one = measure(args.command, shape, dtype)
                if "oneDNN" not in one["machine"]["products"]:
                    sys.exit(f"moe_cpu.py: error: {args.command}: got products by {one['machine']['products']}, expected oneDNN")
                rounds.setdefault((name, dtype), []).append(one)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    layers = [{"shape": name, "dtype": dtype, "sizes": dict(zip(("hidden", "intermediate", "experts", "top_k"), SHAPES[name])),
               "cases": [summary(found, case) for case in range(len(TOKENS))]} for (name, dtype), found in rounds.items()]
    rows = [[layer["shape"], layer["dtype"], *(f"{case['r']:.2f}" for case in layer["cases"])] for layer in layers]
    table = {"columns": ["shape", "type", *(f"T = {tokens}" for tokens in TOKENS)], "rows": rows}
    machine = next(iter(rounds.values()))[0]["machine"]
    args.out.write_text(json.dumps({"what": __doc__.splitlines()[0], "date": datetime.date.today().isoformat(), "machine": machine,
                                    "rounds": args.rounds, "layers": layers, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
