"""How many times as fast as PyTorch's grouped_mm layer Tessera's is, over the number of tokens.

From bench/results/torch_moe_h100.json: one line a model, the median over its routings; the gray area holds every cell.
"""
import statistics

import charts

SHOWN = {"qwen3-30b": "Qwen3-30B-A3B", "mixtral-8x7b": "Mixtral 8x7B", "deepseek-v3-shard32": "DeepSeek-V3, 32 experts",
         "gpt-oss-120b": "gpt-oss-120b", "olmoe": "OLMoE"}


def content():
    data = charts.load("torch_moe_h100.json")
    if data is None:
        return None
    records = [record for record in data["records"] if not record["problem"]]
    tokens = sorted({record["tokens"] for record in records})

    def speedups(count, preset=None):
        return [r["speedup"] for r in records if r["tokens"] == count and preset in (None, r["preset"])]

    return {"gpu": data["meta"]["gpu"], "tokens": tokens, "cells": len(records),
            "least": [min(speedups(count)) for count in tokens], "most": [max(speedups(count)) for count in tokens],
            "models": {name: [[count, statistics.median(speedups(count, preset))] for count in tokens if speedups(count, preset)]
                       for preset, name in SHOWN.items()}}


def draw(content, theme):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, (ax,) = charts.plots(760, 360)
    ax.fill_between(content["tokens"], content["least"], content["most"], color=theme.fainter, linewidth=0)
    handles = []
    for color, (name, points) in zip(theme.palette, content["models"].items()):
        ax.plot(*zip(*points), color=color, linewidth=2, marker="o", markersize=3)
        handles.append(Line2D([], [], color=color, linewidth=2, marker="o", markersize=3, label=f"{name}, median of its routings"))
    ax.axhline(1, color=theme.ink, linewidth=1.2)
    ax.annotate("PyTorch grouped_mm", (content["tokens"][0], 1), xytext=(2, -12), textcoords="offset points", color=theme.soft)
    handles.append(Patch(facecolor=theme.fainter, label=f"from the least to the greatest of all {content['cells']} cells"))
    charts.token_axis(ax, content["tokens"], theme)
    ax.set_ylim(0)
    ax.set_xlabel("tokens")
    ax.set_ylabel("times as fast")
    charts.style(figure, [ax], theme)
    charts.page(figure, theme, f"Tessera's MoE layer against PyTorch's grouped_mm layer, bf16, one {content['gpu']}", handles, 2)
    return figure
