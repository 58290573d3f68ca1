#!/usr/bin/env python3
"""Draws TFLOP/s of whole MoE layers against tokens, a panel a shape, with the dense cuBLAS line. Prints SVG, or nothing."""
import peers


def main():
    content = peers.results()
    records = [record for record in content["cells"] if record["routing"] == "random"] if content else []
    if not records:
        return
    print(peers.panels(
        records, "Whole MoE layers, TFLOP/s against tokens",
        ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured.",
         "Dashed: two dense cuBLAS products of the same FLOPs.", peers.machine_note(content)],
        lambda record, us: record["flop"] / us / 1e6, lambda record: record["flop"] / record["dense"]["us"] / 1e6,
        "dense cuBLAS", logarithmic=False))


if __name__ == "__main__":
    main()
