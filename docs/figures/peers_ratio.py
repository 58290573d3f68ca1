#!/usr/bin/env python3
"""Draws the best peer's time over ours against tokens, a line a shape, a panel a format. Prints SVG, or nothing."""
import math

import peers
from peers import cases, verdict

WIDTH, HEIGHT, LEFT, GAP, STEP = 1000, 300, 60, 66, 0.1


def ratios(records, fmt):
    """Shape -> [(tokens, ratio)] where both were measured and right."""
    found = {}
    for entry in verdict.comparisons(records, fmt):
        if entry["ratio"] is not None:
            found.setdefault(entry["preset"], []).append((entry["tokens"], entry["ratio"]))
    return found


def panel_of(lines, shapes, title, top):
    values = [value for points in lines.values() for _, value in points]
    low = math.floor(min(*values, 1.0) / STEP - 1e-9) * STEP
    high = math.ceil(max(*values, 1.0) / STEP + 1e-9) * STEP
    panel = peers.Panel(LEFT, top, WIDTH - LEFT - 20, HEIGHT, {count for points in lines.values() for count, _ in points},
                        low, high, False)
    every = max(1, round((high - low) / STEP / 8))  # at most about eight lines
    ticks = [(number * STEP, f"{number * STEP:.1f}") for number in range(round(low / STEP), round(high / STEP) + 1)
             if (number - round(1 / STEP)) % every == 0]
    parts = panel.frame(title, ticks)
    equal = panel.y(1.0)
    parts.append(peers.line([(LEFT, equal), (WIDTH - 20, equal)], peers.LIMIT, 1.6, "6 4"))
    for shape, points in lines.items():
        parts += panel.series(points, peers.LINES[shapes.index(shape) % len(peers.LINES)], 2.2)
    return parts


def main():
    content = peers.results()
    records = peers.random_records(content)
    found = {fmt: ratios(records, fmt) for fmt in cases.FORMATS}
    found = {fmt: lines for fmt, lines in found.items() if lines}
    if not found:
        return
    shapes = peers.presets(records)
    parts = [peers.text(20, 28, "The best peer's time over ours, in each cell", 17, weight="bold")]
    more, y = peers.legend([(shape, peers.LINES[number % len(peers.LINES)], "") for number, shape in enumerate(shapes)],
                           20, 54, WIDTH - 40)
    parts += more
    for fmt, lines in found.items():
        ours = "16-bit weights" if fmt == "bf16" else "our fastest format"
        title = f"Peers of {cases.FORMAT_TITLES[fmt]} over Tessera ({ours}); above 1.0 Tessera is faster"
        parts += panel_of(lines, shapes, title, y + 26)
        y += HEIGHT + GAP
    for line in ("CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured.",
                 peers.machine_note(content)):
        parts.append(peers.text(20, y + 10, line, fill="#555"))
        y += 16
    print(peers.svg(WIDTH, y + 8, parts))


if __name__ == "__main__":
    main()
