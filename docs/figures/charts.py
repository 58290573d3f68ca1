"""What the pictures share: a light and a dark theme, plots over numbers of tokens, and how a picture says what it was drawn from.

A script of this folder that draws has two functions: `content()`, what it shows, from bench/results, or None while there are no
results; and `draw(content, theme)`, a figure of matplotlib. Only drawing needs matplotlib. scripts/figures.py writes NAME.svg and
NAME-dark.svg, each with a line that holds the hash of the content and of the scripts: so the tests find an old picture on a
machine without matplotlib, and whatever version of it drew.
"""
import dataclasses
import hashlib
import io
import json
import pathlib
import re

FOLDER = pathlib.Path(__file__).resolve().parent
RESULTS = FOLDER.parent.parent / "bench" / "results"


@dataclasses.dataclass(frozen=True)
class Theme:
    suffix: str  # of the file's name
    paper: str
    ink: str
    soft: str  # ticks, notes
    grid: str
    palette: tuple  # for lines without a color of their own
    fainter: str  # gray that stays in the background

    def of(self, color):
        """A color's form that can be read on this paper."""
        return {"#222222": self.ink, "#999999": self.soft}.get(color, color)


LIGHT = Theme("", "#ffffff", "#1f2328", "#59636e", "#d8dee4",
              ("#1f5fa8", "#d1242f", "#2f8f46", "#d9730d", "#8250df", "#1b8f96", "#8a5a3b", "#a58a00", "#6e7781", "#bf3989"), "#e7eaee")
DARK = Theme("-dark", "#0d1117", "#e6edf3", "#9198a1", "#30363d",
             ("#6cb0ff", "#ff8a80", "#7ee08f", "#ffb066", "#cbb0ff", "#6fd6dd", "#d3a98b", "#e8cf4a", "#a7b0ba", "#ff9bd2"), "#21262d")
THEMES = (LIGHT, DARK)


def load(name):
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def plots(width, height, rows=1, columns=1, **how):
    """(figure, axes as a flat list), sizes in pixels of the page."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, measured in matplotlib's own font, which Verdana is as wide as; nothing random in the file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tessera", "font.size": 9, "font.family": "DejaVu Sans"})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width / 72, height / 72), squeeze=False, layout="constrained", **how)
    return figure, list(axes.flat)


def style(figure, axes, theme):
    """The theme's colors on everything that has none of its own."""
    figure.set_facecolor(theme.paper)
    for ax in axes:
        ax.set_facecolor(theme.paper)
        ax.tick_params(colors=theme.soft, length=3)
        ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=10, fontweight="bold", color=theme.ink)
        ax.xaxis.label.set_color(theme.soft)
        ax.yaxis.label.set_color(theme.soft)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.grid)


def page(figure, theme, title, handles=(), columns=4, notes=()):
    """Title, legend and notes above and below the plots, which get the room between."""
    height = figure.get_figheight() * 72
    rows = -(-len(handles) // columns)
    above, below = 26 + 16 * rows + 6 * (rows > 0), 13 * len(notes) + 6
    figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - (above + below) / height))
    figure.text(0.01, 1 - 6 / height, title, color=theme.ink, fontsize=13, fontweight="bold", ha="left", va="top")
    if handles:
        figure.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(0.0, 1 - 24 / height), ncols=columns, frameon=False,
                      labelcolor=theme.ink, fontsize=9)
    for i, note in enumerate(notes):
        figure.text(0.01, (below - 13 * i - 4) / height, note, color=theme.soft, fontsize=9, ha="left", va="top")


def token_axis(ax, counts, theme):
    from matplotlib import ticker

    counts = sorted(counts)
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts if len(counts) <= 8 else counts[::2] if len(counts) % 2 else counts[::2] + counts[-1:])
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda n, _: f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.grid(axis="y", color=theme.grid, linewidth=0.8)
    ax.set_axisbelow(True)


def stamp(scripts, content):
    """The line that a picture carries."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for script in scripts:
        digest.update((FOLDER / script).read_bytes())
    return f"<!-- drawn from {digest.hexdigest()[:32]} -->"


def stamp_of(text):
    found = re.search(r"<!-- drawn from [0-9a-f]+ -->", text)
    return found and found[0]


def svg(figure, line):
    """The figure's SVG with the stamp's line; what depends on the day or on random numbers is left out."""
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor=figure.get_facecolor())
    plt.close(figure)
    text = re.sub(r"<\?xml.*?\?>\s*|<!DOCTYPE.*?>\s*|<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.S)
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    text = "\n".join(part.rstrip() for part in text.splitlines())
    return f"{line}\n{text}\n"
