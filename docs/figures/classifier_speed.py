"""The classifier's speed on GPUs beside PyTorch's and the school project's, from bench/results.

A dot each on a logarithmic scale, with its number; a tick is what the machine allowed in the same run. Results that do not exist
yet have no row.
"""
import charts

SEED_RATE = 40_000  # the best published result of the school project, four GPUs


def ours(results, name, words):
    case = results and results["cases"].get(name)
    return [[f"Tessera, {words}", case["sentences_per_second"], "ours", case.get("limit_sentences_per_second")]] if case else []


def peer(results, name, words):
    rate = results and results["ratios"].get(f"{name}_torch_sentences_per_second")
    return [[f"PyTorch, {words}", rate, "peer", None]] if rate else []


def old_peer(results, part, words):
    """PyTorch measured on a machine of its own, where no run has both."""
    if not results:
        return []
    rate = results[part].get("sustained_sentences_per_second", results[part]["sentences_per_second"])
    limit = results["limits"]["sentences_per_second"] if part == "embeddings" else None
    return [[f"PyTorch, {words}", rate, "peer", limit]]


def content():
    """One GPU: the H200 where it was measured, before that the H100 with PyTorch's own run."""
    one, words, alone = charts.load("classify_h200x1.json"), "1 H200", None
    if one is None:
        one, words, alone = charts.load("classify_h100x1.json"), "1 H100", charts.load("torch_classifier_h100.json")
    four = charts.load("classify_h200x4.json")
    embeddings = [["School project, best published, 4 GPUs", SEED_RATE, "school", None]]
    embeddings += peer(one, "embeddings_fp16", words) or old_peer(alone, "embeddings", words)
    embeddings += ours(one, "embeddings_fp16", words) + peer(four, "embeddings_fp16", "4 H200")
    embeddings += ours(four, "embeddings_fp16", "4 H200")
    ids = peer(one, "ids_fp16", words) or old_peer(alone, "ids", words)
    ids += ours(one, "ids_fp16", words) + peer(four, "ids_fp16", "4 H200") + ours(four, "ids_fp16", "4 H200")
    return [["From fp32 embeddings in host memory", embeddings],
            ["From token ids (less work: not like for like with the above)", ids]]


def draw(content, theme):
    from matplotlib import ticker

    content = [[words, rows] for words, rows in content if rows]
    figure, axes = charts.plots(760, 130 + 30 * sum(len(rows) for _, rows in content), len(content), sharex=True,
                                height_ratios=[len(rows) for _, rows in content])
    colors = {"ours": theme.palette[0], "peer": theme.palette[3], "school": theme.soft}
    for ax, (words, rows) in zip(axes, content):
        for y, (name, rate, kind, limit) in enumerate(rows):
            ax.plot([1e4, rate], [y, y], color=theme.grid, linewidth=1, zorder=1)
            ax.plot([rate], [y], "o", color=colors[kind], markersize=9, zorder=3)
            if limit:
                ax.plot([limit], [y], "|", color=theme.ink, markersize=18, markeredgewidth=2, zorder=2)
            ax.annotate(f"{rate:,.0f}", (max(rate, limit or 0), y), xytext=(10, -4), textcoords="offset points", color=theme.ink,
                        fontweight="bold")
        ax.set_yticks(range(len(rows)), [row[0] for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_title(words, loc="left")
        ax.set_xscale("log")
        ax.set_xlim(1e4, 3e8)
        ax.set_xticks([1e4, 1e5, 1e6, 1e7, 1e8], ["10 k", "100 k", "1 M", "10 M", "100 M"])
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.grid(axis="x", color=theme.grid, linewidth=0.8)
        ax.set_axisbelow(True)
    axes[-1].set_xlabel("sentences a second, logarithmic")
    charts.style(figure, axes, theme)
    for ax in axes:
        ax.tick_params(axis="y", colors=theme.ink, length=0)
    charts.page(figure, theme, "Tessera's text classifier at full size on GPUs: sentences a second",
                notes=["Upright ticks: what the machine's copies or memory allowed in the same run."])
    return figure
