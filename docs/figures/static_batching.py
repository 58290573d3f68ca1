"""The idea of static batching: ragged tasks, one prefix, flat tiles, CTAs of `launch`."""
import charts

TASKS = (("GEMM", 5), ("empty", 0), ("reduction", 2), ("GEMM", 3), ("empty", 0), ("element-wise", 1))
NUM_CTAS = 4
LOOKED_UP = 8  # the flat tile that the picture decodes


def content():
    return {"tasks": TASKS, "ctas": NUM_CTAS, "looked_up": LOOKED_UP}


class Page:
    """Boxes and words in pixels from the upper left corner."""

    def __init__(self, width, height, theme):
        self.figure, (self.ax,) = charts.plots(width, height)
        self.theme = theme
        self.ax.set_xlim(0, width)
        self.ax.set_ylim(height, 0)
        charts.style(self.figure, [self.ax], theme)
        self.ax.set_axis_off()

    def text(self, x, y, words, size=9, **how):
        self.ax.text(x, y, words, **{"fontsize": size, "color": self.theme.ink, "va": "center", **how})

    def box(self, x, y, width, height, color, label="", **how):
        from matplotlib.patches import FancyBboxPatch

        self.ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=4",
                                         **{"facecolor": color, "edgecolor": self.theme.soft, "linewidth": 0.8, **how}))
        if label:
            self.text(x + width / 2, y + height / 2, label, ha="center", fontweight="bold", color=self.theme.paper)


def tasks_column(page, tasks, colors):
    page.text(20, 24, "tasks of different size and kind", 11, fontweight="bold")
    for row, (kind, tiles) in enumerate(tasks):
        y = 44 + row * 34
        page.text(20, y + 13, f"{row}", 10, fontweight="bold")
        if tiles == 0:
            page.box(44, y, 52, 26, "none", linestyle="--")
        for tile in range(tiles):
            page.box(44 + tile * 36, y, 32, 26, colors[row])
        page.text(106 if tiles == 0 else 52 + tiles * 36, y + 13, kind if tiles else "empty: costs nothing")


def plan_column(page, tasks, colors, looked_up):
    page.text(400, 24, "the whole plan: two short arrays", 11, fontweight="bold")
    page.text(400, 62, "task_order")
    page.text(400, 108, "tile_end")
    page.text(400, 154, f"flat tile {looked_up}: one compare a lane, one ballot")
    page.text(400, 182, f"tile_end <= {looked_up} ?")
    filled, total, rank_of = [task for task, (_, tiles) in enumerate(tasks) if tiles], 0, None
    for rank, task in enumerate(filled):
        first, total = total, total + tasks[task][1]
        page.box(490 + rank * 52, 48, 46, 28, colors[task], str(task))
        page.box(490 + rank * 52, 94, 46, 28, page.theme.soft, str(total))
        before = total <= looked_up
        page.box(520 + rank * 52, 170, 46, 24, page.theme.palette[2] if before else page.theme.soft, str(int(before)))
        if first <= looked_up < total:
            rank_of = (rank, task, first)
    rank, task, first = rank_of
    page.text(400, 216, f"popcount = {rank}: rank {rank} is task {task}, its tile is {looked_up} - {first} = {looked_up - first}")


def flat_strip(page, tasks, colors, ctas):
    page.text(20, 276, f"one `launch` over flat tiles; CTA c takes tiles c, c + {ctas}, c + {2 * ctas}, ... (any grid works)", 11,
              fontweight="bold")
    for cta in range(ctas):
        y = 362 + cta * 22
        page.ax.plot([20, 620], [y, y], color=page.theme.grid, linewidth=1, zorder=0)
        page.text(636, y, f"CTA {cta}")
    for flat, color in enumerate(color for (_, tiles), color in zip(tasks, colors) for _ in range(tiles)):
        x, y = 20 + flat * 52, 362 + flat % ctas * 22
        page.ax.plot([x + 23, x + 23], [330, y], color=page.theme.soft, linewidth=1, zorder=0)
        page.box(x, 296, 46, 34, color, str(flat))
        page.ax.plot([x + 23], [y], "o", color=color, markersize=9)


def draw(content, theme):
    page = Page(840, 440, theme)
    tasks = content["tasks"]
    colors = [theme.palette[(0, 0, 3, 2, 0, 1)[row]] for row in range(len(tasks))]
    tasks_column(page, tasks, colors)
    plan_column(page, tasks, colors, content["looked_up"])
    flat_strip(page, tasks, colors, content["ctas"])
    return page.figure
