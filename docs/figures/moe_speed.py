#!/usr/bin/env python3
"""Draws how many times as fast as PyTorch's grouped_mm layer ours is, over the number of tokens. Prints SVG.

From bench/results/torch_moe_h100.json: one line a model, the median over its routings; the grey area holds every cell.
"""
import json
import math
import pathlib
import statistics

RESULTS = pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "results" / "torch_moe_h100.json"
SHOWN = {"qwen3-30b": ("Qwen3-30B-A3B", "#4c78a8"), "mixtral-8x7b": ("Mixtral 8x7B", "#f58518"),
         "deepseek-v3-shard32": ("DeepSeek-V3, 32 experts", "#54a24b"), "gpt-oss-120b": ("gpt-oss-120b", "#b279a2"),
         "olmoe": ("OLMoE", "#e45756")}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 380, 60, 210, 50, 50


def text(x, y, content, size=13, anchor="start", weight="normal", fill="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{fill}">{content}</text>')


def main():
    data = json.loads(RESULTS.read_text())
    records = [record for record in data["records"] if not record["problem"]]
    tokens = sorted({record["tokens"] for record in records})
    highest = math.ceil(max(record["speedup"] for record in records) * 2) / 2

    def place(count, speedup):
        share = math.log2(count) / math.log2(tokens[-1])
        return (LEFT + share * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - speedup / highest * (HEIGHT - TOP - BOTTOM))

    def points(pairs):
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*pair) for pair in pairs))

    def speedups(count, preset=None):
        return [r["speedup"] for r in records if r["tokens"] == count and preset in (None, r["preset"])]

    body = [text(LEFT, 24, f"Whole MoE layer on one {data['meta']['gpu']}, bf16: times as fast as PyTorch's grouped_mm layer", 14,
                 weight="bold")]
    band = [(n, max(speedups(n))) for n in tokens] + [(n, min(speedups(n))) for n in reversed(tokens)]
    body.append(f'<polygon points="{points(band)}" fill="#eee"/>')
    for level in range(int(highest) + 1):
        (x0, y), (x1, _) = place(1, level), place(tokens[-1], level)
        color, width = ("#222", 1.5) if level == 1 else ("#ddd", 1)
        body.append(f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}" stroke="{color}" stroke-width="{width}"/>')
        body.append(text(x0 - 8, y + 4, f"{level}x", 12, "end", fill="#555"))
    for count in tokens[::3]:
        x, y = place(count, 0)
        body.append(text(x, y + 18, f"{count:,}", 12, "middle", fill="#555"))
    body.append(text(*place(math.sqrt(tokens[-1]), -0.55), "tokens", 12, "middle", fill="#555"))
    labels = []
    for preset, (name, color) in SHOWN.items():
        line = [(n, statistics.median(speedups(n, preset))) for n in tokens if speedups(n, preset)]
        body.append(f'<polyline points="{points(line)}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        labels.append([place(*line[-1])[1] + 4, name, color])
    labels.sort()
    for above, label in zip(labels, labels[1:]):  # lines that end close together keep their names apart
        label[0] = max(label[0], above[0] + 17)
    body += [text(WIDTH - RIGHT + 10, y, name, 13, fill=color, weight="bold") for y, name, color in labels]
    body.append(text(LEFT + 8, place(1, 1)[1] - 6, "PyTorch", 12, fill="#222"))
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
          'font-family="Helvetica, Arial, sans-serif"><rect width="100%" height="100%" fill="white"/>')
    print("\n".join(body))
    print("</svg>")


if __name__ == "__main__":
    main()
