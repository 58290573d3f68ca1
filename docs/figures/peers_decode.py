#!/usr/bin/env python3
"""Draws microseconds of whole MoE layers at small batches beside the weight-streaming floor. Prints SVG, or nothing."""
import peers

MOST_TOKENS = 128


def main():
    content = peers.results()
    records = [record for record in content["cells"] if record["routing"] == "random"
               and record["tokens"] <= MOST_TOKENS] if content else []
    if not records:
        return
    print(peers.panels(
        records, "Whole MoE layers at small batches, microseconds (logarithmic)",
        ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured.",
         "Dashed: the time in which the weights of the experts in use come from memory.", peers.machine_note(content)],
        lambda record, us: us, lambda record: record["floor_us"], "weights from memory", logarithmic=True))


if __name__ == "__main__":
    main()
