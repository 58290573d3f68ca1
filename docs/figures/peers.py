"""What the three pictures of the comparison with other libraries' layers share (peers_*.py). Draws nothing by itself.

They read bench/results/peers_h100.json, or the file that PEERS_RESULTS names; without it they print nothing, and
scripts/figures.py then has no picture.
"""
import json
import math
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAMES = {"tessera": "Tessera", "torch grouped_mm": "torch grouped_mm", "transformers grouped_mm": "Transformers grouped_mm",
         "transformers batched_mm": "Transformers batched_mm", "deepgemm": "DeepGEMM + Triton", "liger": "Liger Triton",
         "flashinfer": "FlashInfer", "sonicmoe": "SonicMoE", "vllm triton": "vLLM Triton"}
COLORS = {"tessera": "#1f5fa8", "torch grouped_mm": "#f58518", "transformers grouped_mm": "#e3b81c",
          "transformers batched_mm": "#9d755d", "deepgemm": "#54a24b", "liger": "#b279a2", "flashinfer": "#e45756",
          "sonicmoe": "#72b7b2", "vllm triton": "#8c8c8c"}
LIMIT = "#222222"


def results():
    """The file's content, or None."""
    path = pathlib.Path(os.environ.get("PEERS_RESULTS", ROOT / "bench" / "results" / "peers_h100.json"))
    return json.loads(path.read_text()) if path.exists() else None


def best_us(record, layer):
    """A graph with a cold cache, or as called where there is no graph; None where not measured or wrong."""
    entry = record["layers"].get(layer, {})
    times = {} if entry.get("problem") else entry.get("times", {})
    for mode in ("graph_cold", "eager"):
        if mode in times:
            return times[mode]["us"]
    return None


def layers(records):
    return [name for name in NAMES if any(best_us(record, name) is not None for record in records)]


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


def panels(records, title, notes, value, limit, limit_words, logarithmic):
    """A picture with a panel for each shape: a line for each layer, and one for the limit.

    value(record, us) is what is drawn of a layer's time, limit(record) the limit's value.
    """
    width, columns, cell_width, cell_height, gap_x, gap_y = 1000, 2, 420, 190, 70, 62
    names, parts = layers(records), [text(20, 28, title, 17, weight="bold")]
    entries = [(NAMES[name], COLORS[name], "") for name in names] + [(limit_words, LIMIT, "6 4")]
    more, below = legend(entries, 20, 54, width - 40)
    parts += more
    for number, preset in enumerate(presets(records)):
        mine = [record for record in records if record["preset"] == preset]
        values = {name: [(r["tokens"], value(r, best_us(r, name))) for r in mine if best_us(r, name) is not None]
                  for name in names}
        limits = [(record["tokens"], limit(record)) for record in mine]
        every = [v for points in [*values.values(), limits] for _, v in points]
        low, high, ticks = axis(min(every), max(every), logarithmic)
        panel = Panel(60 + number % columns * (cell_width + gap_x), below + 26 + number // columns * (cell_height + gap_y),
                      cell_width, cell_height, {count for count, _ in limits}, low, high, logarithmic)
        parts += panel.frame(preset, ticks) + panel.series(limits, LIMIT, 1.6, "6 4")
        for name in reversed(names):  # ours on top
            parts += panel.series(values[name], COLORS[name], 3.0 if name == "tessera" else 1.8)
    rows = -(-len(presets(records)) // columns)
    height = below + 26 + rows * (cell_height + gap_y)
    parts += [text(20, height + 14 * i, note, 12, fill="#555") for i, note in enumerate(notes)]
    return svg(width, height + 14 * len(notes) + 6, parts)


def axis(least, most, logarithmic):
    """(low, high, ticks) that hold the values."""
    if not logarithmic:
        high = 100 * math.ceil(most * 1.02 / 100)
        return 0, high, [(v, str(v)) for v in range(0, high + 1, 200)]
    low, high = 10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most) + 1e-9)
    ticks = [10**e for e in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    return low, high, [(v, f"{v:,.0f}") for v in ticks]


def machine_note(content):
    machine = content["meta"]["machine"]
    return f"{machine['gpu']}, {machine['power_limit']}, driver {machine['driver']}, torch {machine['torch']}; random routing"
