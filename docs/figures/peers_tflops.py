#!/usr/bin/env python3
"""Draws TFLOP/s of whole MoE layers at prefill, a panel a shape, with the dense cuBLAS line. Prints SVG, or nothing."""
import peers
from peers import cases


def main():
    content = peers.results()
    records = peers.random_records(content, least=cases.LARGE_TOKENS)
    if not records:
        return
    print(peers.panels(
        records, "Whole MoE layers, TFLOP/s against tokens",
        ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured.",
         "Black, dashed: two dense cuBLAS products of the same FLOPs in bf16. Dotted: layers of FP8 weights.",
         peers.machine_note(content)],
        lambda record, us: record["flop"] / us / 1e6,
        [("dense cuBLAS, bf16", peers.LIMIT, lambda record: record["flop"] / record["dense"]["us"] / 1e6)],
        logarithmic=False))


if __name__ == "__main__":
    main()
