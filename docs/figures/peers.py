"""What the pictures of the comparison with other libraries' layers share (peers_*.py). Draws nothing by itself.

They read bench/results/peers_h200.json, before there is one bench/results/peers_h100.json, or the file that PEERS_RESULTS names;
without any their content is None.
"""
import json
import math
import os
import pathlib
import sys

import charts

sys.path.insert(0, str(charts.FOLDER.parent.parent / "bench" / "peers"))

import cases  # noqa: E402  after the path to it
import verdict  # noqa: E402

OURS = cases.OURS
COLORS = {"tessera": "#1f5fa8", "tessera fp8": "#7fb2ea", "flashinfer": "#e45756", "flashinfer det": "#f2a5a5",
          "flashinfer untuned": "#c0392b", "flashinfer det untuned": "#e8c4c4", "sglang triton": "#54a24b",
          "sglang triton fp8": "#a1d99b", "vllm triton": "#8c8c8c", "vllm triton fp8": "#c7c7c7", "deepgemm": "#b279a2",
          "deepgemm fp8": "#e0b8d6", "torch grouped_mm": "#f58518", "transformers grouped_mm": "#e3b81c",
          "transformers batched_mm": "#9d755d", "liger": "#72b7b2", "sonicmoe": "#17becf", "flashinfer cutlass": "#d67195"}
LIMIT, FP8_LIMIT = "#222222", "#999999"


def results():
    """The file's content, or None."""
    named = os.environ.get("PEERS_RESULTS")
    for path in [pathlib.Path(named)] if named else [charts.RESULTS / "peers_h200.json", charts.RESULTS / "peers_h100.json"]:
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


def presets(records):
    return list(dict.fromkeys(record["preset"] for record in records))


def machine_note(content):
    machine = content["meta"]["machine"]
    return f"{machine['gpu']}, {machine['power_limit']}, driver {machine['driver']}, torch {machine['torch']}; random routing"


def panels(records, value, limits):
    """Content of a picture with a panel for each shape: {"shapes": {shape: {layer or limit: [[tokens, value]]}}, "limits"}.

    value(record, us) is what is drawn of a layer's time; limits: {words: function of the record, or None where there is none}.
    """
    shapes = {}
    for preset in presets(records):
        mine = sorted((r for r in records if r["preset"] == preset), key=lambda r: r["tokens"])
        lines = {name: [[r["tokens"], value(r, best_us(r, name))] for r in mine if best_us(r, name) is not None] for name in COLORS}
        lines.update({words: [[r["tokens"], limit(r)] for r in mine if limit(r) is not None] for words, limit in limits.items()})
        shapes[preset] = {name: points for name, points in lines.items() if points}
    return {"shapes": shapes, "limits": list(limits)}


def draw_panels(content, theme, words, notes, unit, logarithmic):
    from matplotlib import ticker
    from matplotlib.lines import Line2D

    shapes = content["shapes"]
    rows = math.ceil(len(shapes) / 2)
    figure, axes = charts.plots(900, 170 + 200 * rows, rows, 2)
    shown = {}
    for ax, (shape, lines) in zip(axes, shapes.items()):
        counts = {count for points in lines.values() for count, _ in points}
        for name, points in sorted(lines.items(), key=lambda item: item[0] == OURS):  # ours on top
            if name in content["limits"]:
                how = {"color": theme.of([LIMIT, FP8_LIMIT][content["limits"].index(name)]), "linestyle": "--", "linewidth": 1.4}
            else:
                how = {"color": theme.palette[0] if name == OURS else COLORS[name], "linewidth": 2.6 if name == OURS else 1.4,
                       "linestyle": ":" if is_fp8(name) else "-", "marker": "o", "markersize": 2.5}
            ax.plot(*zip(*points), **how)
            shown[name] = Line2D([], [], label=cases.TITLES.get(name, name), **how)
        charts.token_axis(ax, counts, theme)
        if logarithmic:
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        else:
            ax.set_ylim(0)
        ax.set_title(shape, loc="left")
        ax.set_ylabel(unit)
    for ax in axes[len(shapes):]:
        ax.set_visible(False)
    charts.style(figure, axes, theme)
    handles = [shown[name] for name in [*COLORS, *content["limits"]] if name in shown]
    charts.page(figure, theme, words, handles, 4, [*notes, content["machine"]])
    return figure
