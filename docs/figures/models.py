"""Whole models: output with Tessera's experts over that with the fastest other experts, a dot a measurement.

From bench/results/vllm_h200.json and models_h200.json; a panel each.
"""
import charts

LEVEL = 0.03  # as in the reports
COLORS = {"bf16": "#1f5fa8", "fp8": "#e45756"}


def of_vllm(found):
    """[[what, format, ratio, the other]]"""
    words = {"64": "64 requests, 512 tokens in", "32": "32 requests, 128 tokens in", "8": "8 requests, 128 tokens in",
             "1": "1 request, 128 tokens in"}
    return [[words[key], fmt, found["summary"][fmt][key]["ratio"], "vLLM's own"]
            for key in words for fmt in COLORS if key in found["summary"].get(fmt, {})]


def of_transformers(found):
    table = found["speed_table"]
    names = table["columns"][3:-1]
    rows = []
    for model, fmt, what, *rates, ratio in table["rows"]:
        others = {name: float(cell.split()[0].replace(",", "")) for name, cell in zip(names, rates) if cell != "-" and name != "tessera"}
        if ratio != "-":
            rows.append([f"{model.split(',')[0]}, {what}", fmt, float(ratio), max(others, key=others.get)])
    return rows


def content():
    engine, models = charts.load("vllm_h200.json"), charts.load("models_h200.json")
    if engine is None or models is None or "summary" not in models:
        return None
    side = engine["rows"][0]["sides"]["tessera"]
    return {"gpu": models["gpu"], "panels": {
        f"vLLM {side['vllm']}, Qwen3-30B-A3B of {engine['rows'][0]['layers']} layers, with the plug-in over without": of_vllm(engine),
        f"Transformers {models['transformers']}, Tessera over the fastest other implementation": of_transformers(models)}}


def draw(content, theme):
    from matplotlib.lines import Line2D

    panels = {title: rows for title, rows in content["panels"].items() if rows}
    counts = [len(rows) for rows in panels.values()]
    figure, axes = charts.plots(900, 150 + 22 * sum(counts) + 40 * len(counts), len(counts), gridspec_kw={"height_ratios": counts})
    for ax, (title, rows) in zip(axes, panels.items()):
        places = range(len(rows), 0, -1)
        ax.axvspan(1 - LEVEL, 1 + LEVEL, color=theme.fainter, linewidth=0)
        ax.axvline(1, color=theme.ink, linewidth=1.2)
        for place, (_, fmt, ratio, other) in zip(places, rows):
            ax.plot([1, ratio], [place, place], color=COLORS[fmt], linewidth=1.6)
            ax.plot([ratio], [place], color=COLORS[fmt], marker="o", markersize=6)
            ax.annotate(f"{ratio:.2f}  {other}", (max(ratio, 1), place), xytext=(8, -3), textcoords="offset points", color=theme.soft)
        ax.set_yticks(list(places), [row[0] for row in rows])
        ax.set_xlim(min(0.9, *(row[2] for row in rows)) - 0.02, max(1.2, *(row[2] for row in rows)) * 1.15)
        ax.set_ylim(0.4, len(rows) + 0.6)
        ax.grid(axis="x", color=theme.grid, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.set_title(title, loc="left")
    axes[-1].set_xlabel("times as many tokens a second")
    charts.style(figure, axes, theme)
    handles = [Line2D([], [], color=COLORS[fmt], marker="o", linewidth=1.6, label=f"{fmt} weights")
               for fmt in COLORS if any(row[1] == fmt for rows in panels.values() for row in rows)]
    charts.page(figure, theme, f"Whole models, random weights at true sizes, one {content['gpu']}", handles, 2,
                ["Right of 1 Tessera is faster; gray: called level. Beside a dot: its ratio, and what it is compared with."])
    return figure
