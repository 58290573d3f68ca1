#!/usr/bin/env python3
"""Draws Tessera's speed-up over each library's layer, at the most tokens of each shape. Prints SVG, or nothing."""
import peers

WIDTH, LEFT, RIGHT, ROW, GROUP_GAP = 1000, 330, 90, 24, 16
OURS = "tessera"


def largest(records):
    """The record of each shape with random routing and the most tokens."""
    found = {}
    for record in records:
        if record["routing"] == "random" and record["tokens"] >= found.get(record["preset"], record)["tokens"]:
            found[record["preset"]] = record
    return list(found.values())


def speedups(record, names):
    ours = peers.best_us(record, OURS)
    times = {name: peers.best_us(record, name) for name in names if name != OURS}
    return {name: us / ours for name, us in times.items() if us is not None} if ours else {}


def main():
    content = peers.results()
    records = [record for record in largest(content["cells"]) if peers.best_us(record, OURS)] if content else []
    if not records:
        return
    names = peers.layers(records)
    groups = [(record, speedups(record, names)) for record in records]
    most = max((value for _, found in groups for value in found.values()), default=1.0)
    scale, y = (WIDTH - LEFT - RIGHT) / most, 60
    parts = [peers.text(20, 28, "How many times as fast as each library's layer", 17, weight="bold")]
    for record, found in groups:
        parts.append(peers.text(20, y + 15, f"{record['preset']}, T = {record['tokens']}", 13, weight="bold"))
        y += ROW if found else 0
        for name, value in found.items():
            parts += [peers.text(LEFT - 10, y + 14, peers.NAMES[name], anchor="end"),
                      peers.bar(LEFT, y, value * scale, 18, peers.COLORS[name]),
                      peers.text(LEFT + value * scale + 8, y + 14, f"{value:.2f}", weight="bold")]
            y += ROW
        y += GROUP_GAP
    parts.append(peers.line([(LEFT + scale, 44), (LEFT + scale, y - GROUP_GAP)], peers.LIMIT, 1.4, "5 4"))
    parts.append(peers.text(LEFT + scale, 40, "equally fast", 11, "middle", fill="#555"))
    parts.append(peers.text(20, y + 10, peers.machine_note(content), fill="#555"))
    print(peers.svg(WIDTH, y + 24, parts))


if __name__ == "__main__":
    main()
