"""What the pictures of the comparison with other libraries' layers share (peers_*.py). Draws nothing by itself.

They read bench/results/peers_h200.json, before there is one bench/results/peers_h100.json, or the file that PEERS_RESULTS
names; without any they print nothing, and scripts/figures.py then has no picture.
"""
import json
import math
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench" / "peers"))

import cases  # noqa: E402  after the path to it
import verdict  # noqa: E402

OURS = cases.OURS
COLORS = {"tessera": "#1f5fa8", "flashinfer": "#e45756", "flashinfer det": "#f2a5a5", "flashinfer untuned": "#c0392b",
          "flashinfer det untuned": "#e8c4c4", "sglang triton": "#54a24b", "sglang triton fp8": "#a1d99b",
          "vllm triton": "#8c8c8c", "vllm triton fp8": "#c7c7c7", "deepgemm": "#b279a2", "deepgemm fp8": "#e0b8d6",
          "torch grouped_mm": "#f58518", "transformers grouped_mm": "#e3b81c", "transformers batched_mm": "#9d755d",
          "liger": "#72b7b2", "sonicmoe": "#17becf", "flashinfer cutlass": "#d67195"}
LINES = ("#1f5fa8", "#e45756", "#54a24b", "#f58518", "#b279a2", "#72b7b2", "#9d755d", "#e3b81c", "#8c8c8c", "#17becf")
LIMIT, FP8_LIMIT = "#222222", "#999999"


def results():
    """The file's content, or None."""
    folder = ROOT / "bench" / "results"
    named = os.environ.get("PEERS_RESULTS")
    for path in [pathlib.Path(named)] if named else [folder / "peers_h200.json", folder / "peers_h100.json"]:
        if path.exists():
            return json.loads(path.read_text())
    return None


def random_records(content, least=1, most=1 << 20):
    """The cells with random routing and so many tokens."""
    return [record for record in content["cells"] if record["routing"] == "random"
            and least <= record["tokens"] <= most] if content else []


def best_us(record, layer):
    """A graph with a cold cache, or as called where there is no graph; None where not measured or wrong."""
    return verdict.best_time(record, layer)[0]


def floor(record, fmt):
    """Microseconds in which the weights in use come from memory, or None."""
    return record.get("floors", {"bf16": record.get("floor_us")}).get(fmt)


def is_fp8(layer):
    return cases.format_of(layer) == "fp8-block"


def layers(records):
    return [name for name in COLORS if any(best_us(record, name) is not None for record in records)]


def presets(records):
    return list(dict.fromkeys(record["preset"] for record in records))


def text(x, y, content, size=12, anchor="start", weight="normal", fill="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{fill}">{content}</text>')


def line(points, color, width=2.0, dash=""):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dashes}/>'


def dots(points, color):
    return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in points]


def bar(x, y, width, height, color):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" rx="2" fill="{color}"/>'


def legend(entries, x, y, width):
    """Colored words, as many a line as fit. entries: [(words, color, dash)]. Returns (parts, y below)."""
    parts, left = [], x
    for words, color, dash in entries:
        need = 34 + 7.2 * len(words)
        if left + need > x + width:
            left, y = x, y + 20
        parts += [line([(left, y - 4), (left + 22, y - 4)], color, 3, dash), text(left + 28, y, words)]
        left += need
    return parts, y + 20


class Panel:
    """A small plot with a logarithmic axis of tokens; y is linear from 0, or logarithmic."""

    def __init__(self, left, top, width, height, tokens, low, high, logarithmic):
        self.left, self.top, self.width, self.height = left, top, width, height
        self.tokens, self.low, self.high, self.logarithmic = sorted(tokens), low, high, logarithmic

    def x(self, count):
        first, last = math.log2(self.tokens[0]), math.log2(self.tokens[-1])
        share = (math.log2(count) - first) / (last - first) if last > first else 0.5
        return self.left + 12 + share * (self.width - 24)

    def y(self, value):
        if self.logarithmic:
            share = (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.top + self.height * (1 - min(max(share, 0), 1))

    def frame(self, title, ticks):
        """Title, grid lines at `ticks` [(value, words)] and the numbers of tokens."""
        right, bottom = self.left + self.width, self.top + self.height
        parts = [text(self.left, self.top - 9, title, 13, weight="bold")]
        for value, words in ticks:
            y = self.y(value)
            parts += [line([(self.left, y), (right, y)], "#dddddd", 1), text(self.left - 6, y + 4, words, 10, "end", fill="#555")]
        shown = self.tokens if len(self.tokens) <= 7 else self.tokens[::2] + self.tokens[-1:]
        for count in dict.fromkeys(shown):
            words = f"{count // 1024}k" if count >= 1024 else str(count)
            parts.append(text(self.x(count), bottom + 14, words, 10, "middle", fill="#555"))
        return parts

    def series(self, points, color, width=2.0, dash=""):
        """points: [(tokens, value)], in any order."""
        places = [(self.x(count), self.y(value)) for count, value in sorted(points)]
        return ([line(places, color, width, dash)] if len(places) > 1 else []) + dots(places, color)


def svg(width, height, parts):
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
            f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif">\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>')


def panels(records, title, notes, value, limits, logarithmic):
    """A picture with a panel for each shape: a line for each layer, dashed for FP8 weights, and one for each limit.

    value(record, us) is what is drawn of a layer's time; limits: [(words, color, function of the record, or None where there
    is none)].
    """
    width, columns, cell_width, cell_height, gap_x, gap_y = 1000, 2, 420, 190, 70, 62
    names, parts = layers(records), [text(20, 28, title, 17, weight="bold")]
    limits = [limit for limit in limits if any(limit[2](record) is not None for record in records)]
    dash = {name: "2 3" if is_fp8(name) else "" for name in names}
    entries = [(cases.TITLES[name], COLORS[name], dash[name]) for name in names]
    more, below = legend(entries + [(words, color, "6 4") for words, color, _ in limits], 20, 54, width - 40)
    parts += more
    for number, preset in enumerate(presets(records)):
        mine = [record for record in records if record["preset"] == preset]
        values = {name: [(r["tokens"], value(r, best_us(r, name))) for r in mine if best_us(r, name) is not None]
                  for name in names}
        lines = [(color, [(r["tokens"], limit(r)) for r in mine if limit(r) is not None]) for _, color, limit in limits]
        every = [v for points in [*values.values(), *(points for _, points in lines)] for _, v in points]
        low, high, ticks = axis(min(every), max(every), logarithmic)
        panel = Panel(60 + number % columns * (cell_width + gap_x), below + 26 + number // columns * (cell_height + gap_y),
                      cell_width, cell_height, {record["tokens"] for record in mine}, low, high, logarithmic)
        parts += panel.frame(preset, ticks)
        for color, points in lines:
            parts += panel.series(points, color, 1.6, "6 4")
        for name in reversed(names):  # ours on top
            parts += panel.series(values[name], COLORS[name], 3.0 if name == OURS else 1.8, dash[name])
    rows = -(-len(presets(records)) // columns)
    height = below + 26 + rows * (cell_height + gap_y)
    parts += [text(20, height + 14 * i, note, 12, fill="#555") for i, note in enumerate(notes)]
    return svg(width, height + 14 * len(notes) + 6, parts)


def axis(least, most, logarithmic):
    """(low, high, ticks) that hold the values."""
    if not logarithmic:
        high = 100 * math.ceil(most * 1.02 / 100)
        return 0, high, [(v, str(v)) for v in range(0, high + 1, 200)]
    first, last = math.floor(math.log2(least)), math.ceil(math.log2(most) + 1e-9)
    return 2.0**first, 2.0**last, [(2.0**e, f"{2.0**e:g}") for e in range(first, last + 1)]


def machine_note(content):
    machine = content["meta"]["machine"]
    return f"{machine['gpu']}, {machine['power_limit']}, driver {machine['driver']}, torch {machine['torch']}; random routing"
