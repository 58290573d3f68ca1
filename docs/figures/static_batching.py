#!/usr/bin/env python3
"""Draws the idea of static batching: ragged tasks, one prefix, flat tiles, CTAs. Prints SVG."""

TASKS = [("GEMM", 5, "#4c78a8"), ("empty", 0, "#bbbbbb"), ("reduction", 2, "#f58518"), ("GEMM", 3, "#54a24b"),
         ("empty", 0, "#bbbbbb"), ("element-wise", 1, "#e45756")]
NUM_CTAS = 4
TILE = 46
WIDTH, HEIGHT = 860, 470


def text(x, y, content, size=14, anchor="start", weight="normal", fill="#222"):
    return (f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{fill}">{content}</text>')


def box(x, y, width, height, fill, label="", dashed=False):
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    shape = (f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" '
             f'stroke="#333" stroke-width="1"{dash}/>')
    return shape + (text(x + width / 2, y + height / 2 + 5, label, 13, "middle", "bold", "#fff") if label else "")


def tasks_column():
    parts = [text(20, 32, "tasks of different size and kind", 15, weight="bold")]
    for row, (kind, tiles, color) in enumerate(TASKS):
        y = 48 + row * 34
        parts.append(text(20, y + 19, f"{row}", 14, weight="bold"))
        if tiles == 0:
            parts.append(box(44, y, 52, 26, "none", dashed=True) + text(106, y + 18, "empty: costs nothing", 12))
        for tile in range(tiles):
            parts.append(box(44 + tile * 36, y, 32, 26, color))
        if tiles:
            parts.append(text(52 + tiles * 36, y + 18, kind, 12))
    return parts


def plan_column():
    parts = [text(400, 32, "the whole plan: two short arrays", 15, weight="bold")]
    filled = [task for task, (_, tiles, _) in enumerate(TASKS) if tiles]
    total = 0
    parts += [text(400, 70, "task_order", 13), text(400, 116, "tile_end", 13)]
    for rank, task in enumerate(filled):
        total += TASKS[task][1]
        parts.append(box(490 + rank * 52, 52, 46, 28, TASKS[task][2], str(task)))
        parts.append(box(490 + rank * 52, 98, 46, 28, "#555", str(total)))
    parts.append(text(400, 162, "flat tile 8: one compare a lane, one ballot", 13))
    parts.append(text(400, 184, "tile_end &lt;= 8 ?", 13))
    total = 0
    for rank, task in enumerate(filled):
        total += TASKS[task][1]
        parts.append(box(520 + rank * 52, 168, 46, 24, "#2a7" if total <= 8 else "#999", "1" if total <= 8 else "0"))
    parts.append(text(400, 216, "popcount = 2: rank 2 is task 3, its tile is 8 - 7 = 1", 13))
    return parts


def flat_strip():
    parts = [text(20, 290, "one launch over flat tiles; CTA c takes tiles c, c + 4, c + 8, ... (any grid works)", 15,
                  weight="bold")]
    for cta in range(NUM_CTAS):
        y = 370 + cta * 22
        parts.append(f'<line x1="20" y1="{y}" x2="620" y2="{y}" stroke="#ddd" stroke-width="1"/>')
        parts.append(text(636, y + 5, f"CTA {cta}", 13))
    colors = [color for _, tiles, color in TASKS for _ in range(tiles)]
    for flat, color in enumerate(colors):
        x, y = 20 + flat * (TILE + 6), 370 + flat % NUM_CTAS * 22
        parts.append(box(x, 304, TILE, 34, color, str(flat)))
        parts.append(f'<line x1="{x + TILE / 2}" y1="338" x2="{x + TILE / 2}" y2="{y}" stroke="#999" stroke-width="1"/>')
        parts.append(f'<circle cx="{x + TILE / 2}" cy="{y}" r="6" fill="{color}"/>')
    return parts


def main():
    body = "\n".join(flat_strip() + tasks_column() + plan_column())
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
          f'font-family="Helvetica, Arial, sans-serif">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>')


if __name__ == "__main__":
    main()
