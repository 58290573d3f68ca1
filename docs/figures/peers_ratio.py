"""The best peer's time over Tessera's against tokens, a line a shape, a panel a format."""
import charts
import peers
from peers import cases, verdict


def ratios(records, fmt):
    """Shape -> [[tokens, ratio]] where both were measured and right."""
    found = {}
    for entry in verdict.comparisons(records, fmt):
        if entry["ratio"] is not None:
            found.setdefault(entry["preset"], []).append([entry["tokens"], entry["ratio"]])
    return {shape: sorted(points) for shape, points in found.items()}


def content():
    found = peers.results()
    records = peers.random_records(found)
    formats = {fmt: ratios(records, fmt) for fmt in cases.FORMATS}
    formats = {fmt: lines for fmt, lines in formats.items() if lines}
    return {"shapes": peers.presets(records), "formats": formats, "machine": peers.machine_note(found)} if formats else None


def draw(content, theme):
    from matplotlib.lines import Line2D

    formats, shapes = content["formats"], content["shapes"]
    figure, axes = charts.plots(900, 130 + 270 * len(formats), len(formats))
    color = {shape: theme.palette[number % len(theme.palette)] for number, shape in enumerate(shapes)}
    for ax, (fmt, lines) in zip(axes, formats.items()):
        counts = {count for points in lines.values() for count, _ in points}
        ax.axhspan(verdict.BEHIND, verdict.AHEAD, color=theme.fainter, linewidth=0)
        ax.axhline(1, color=theme.ink, linewidth=1.2, linestyle="--")
        for shape, points in lines.items():
            ax.plot(*zip(*points), color=color[shape], linewidth=2, marker="o", markersize=3.5)
        charts.token_axis(ax, counts, theme)
        ours = "16-bit weights" if fmt == "bf16" else "its fastest format"
        ax.set_title(f"Peers of {cases.FORMAT_TITLES[fmt]} over Tessera ({ours}); above 1 Tessera is faster", loc="left")
        ax.set_ylabel("best peer's time over ours")
    axes[-1].set_xlabel("tokens")
    charts.style(figure, axes, theme)
    handles = [Line2D([], [], color=color[shape], linewidth=2, marker="o", markersize=3.5, label=shape) for shape in shapes]
    charts.page(figure, theme, "Tessera's MoE layer against the best other library in each cell", handles, 6,
                ["CUDA-graph replay with a cold L2 cache; as called where a library's layer cannot be captured. Gray: called level.",
                 content["machine"]])
    return figure
