#!/usr/bin/env python3
"""Which order of experts is best: the layer under every routing, in every order, with and without clusters that take
tiles from the back of the list. Writes bench/results/moe_orders_<gpu>.json; `make figures` fills the kernel's README.

  moe_orders.py build/cuda/tools/tessera/tessera
"""
import argparse
import json
import pathlib
import sys

import moe_table

PRESET, TOKENS = "qwen2-57b", 4096
ROUTINGS = ("balanced", "best", "worst", "random", "zipf", "one")
POLICIES = {"natural": ("natural", 0), "heavy-first": ("heavy-first", 0), "interleaved": ("interleaved", 0),
            "heavy-first, 1 of 6 from the back": ("heavy-first", 6)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tessera", help="the built command")
    parser.add_argument("--output", type=pathlib.Path, help="instead of bench/results/moe_orders_<gpu>.json")
    args = parser.parse_args()
    columns, machine = [], {}
    for order, back in POLICIES.values():
        measured = moe_table.measure(args.tessera, PRESET, TOKENS, ROUTINGS, 0,
                                     ["--no-dense", "--order", order, "--back-every", str(back)])
        machine = measured["machine"]
        columns.append([round(case["burst"]["layer_us"]["median"]) for case in measured["cases"]])
    rows = [[routing, *(column[number] for column in columns)] for number, routing in enumerate(ROUTINGS)]
    what = f"{PRESET}, T = {TOKENS}, bf16: microseconds of the whole layer in bursts, by order of the experts"
    table = {"columns": ["routing", *(f"{name}, us" for name in POLICIES)], "rows": rows}
    path = args.output or moe_table.file_name(machine, "moe_orders")
    path.write_text(json.dumps({"what": what, "machine": machine, "table": table}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
