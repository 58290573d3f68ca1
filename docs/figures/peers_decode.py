#!/usr/bin/env python3
"""Draws the time of whole MoE layers at small batches over the weight-streaming floor. Prints SVG, or nothing."""
import peers
from peers import cases


def over_floor(record, us):
    """How many times as long as the 16-bit weights in use take to be read."""
    return us / peers.floor(record, "bf16")


def fp8_floor(record):
    floor = peers.floor(record, "fp8-block")
    return None if floor is None else over_floor(record, floor)


def main():
    content = peers.results()
    records = peers.random_records(content, most=cases.DECODE_TOKENS)
    if not records:
        return
    print(peers.panels(
        records, "Whole MoE layers at small batches: time over that of reading the 16-bit weights once",
        ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured.",
         "1 is the time in which the 16-bit weights of the experts in use come from memory; FP8 layers have half the bytes to read.",
         peers.machine_note(content)],
        over_floor, [("16-bit weights from memory", peers.LIMIT, lambda record: 1.0),
                     ("FP8 weights from memory", peers.FP8_LIMIT, fp8_floor)], logarithmic=True))


if __name__ == "__main__":
    main()
