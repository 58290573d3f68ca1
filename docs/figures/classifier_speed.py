#!/usr/bin/env python3
"""Draws the classifier's speed on GPUs beside PyTorch's and the school project's, from bench/results. Prints SVG.

Bars on a logarithmic scale; a dark line is what the machine allowed in the same run. Results that do not exist yet have no
bar.
"""
import json
import math
import pathlib

RESULTS = pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "results"
SEED_RATE = 40_000  # the best published result of the school project, four GPUs
OURS, PEER, SEED = "#4c78a8", "#f58518", "#999999"
WIDTH, LEFT, RIGHT, TOP, ROW = 900, 330, 130, 64, 30
LOWEST, HIGHEST = 1e4, 1e8


def load(name):
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def ours(results, name, words):
    case = results and results["cases"].get(name)
    return [(f"Tessera, {words}", case["sentences_per_second"], OURS, case.get("limit_sentences_per_second"))] if case else []


def peer(results, name, words):
    rate = results and results["ratios"].get(f"{name}_torch_sentences_per_second")
    return [(f"PyTorch, {words}", rate, PEER, None)] if rate else []


def old_peer(results, part, words):
    """PyTorch measured on a machine of its own, where no run has both."""
    if not results:
        return []
    rate = results[part].get("sustained_sentences_per_second", results[part]["sentences_per_second"])
    limit = results["limits"]["sentences_per_second"] if part == "embeddings" else None
    return [(f"PyTorch, {words}", rate, PEER, limit)]


def groups():
    """One GPU: the H200 where it was measured, before that the H100 with PyTorch's own run."""
    one, words, alone = load("classify_h200x1.json"), "1 H200", None
    if one is None:
        one, words, alone = load("classify_h100x1.json"), "1 H100", load("torch_classifier_h100.json")
    four = load("classify_h200x4.json")
    embeddings = [("School project, best published, 4 GPUs", SEED_RATE, SEED, None)]
    embeddings += peer(one, "embeddings_fp16", words) or old_peer(alone, "embeddings", words)
    embeddings += ours(one, "embeddings_fp16", words) + peer(four, "embeddings_fp16", "4 H200")
    embeddings += ours(four, "embeddings_fp16", "4 H200")
    ids = peer(one, "ids_fp16", words) or old_peer(alone, "ids", words)
    ids += ours(one, "ids_fp16", words) + peer(four, "ids_fp16", "4 H200") + ours(four, "ids_fp16", "4 H200")
    return [("From fp32 embeddings in host memory", embeddings), ("From token ids (not like for like with the above)", ids)]


def text(x, y, content, size=13, anchor="start", weight="normal", fill="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{fill}">{content}</text>')


def position(rate):
    share = (math.log10(min(max(rate, LOWEST), HIGHEST)) - math.log10(LOWEST)) / math.log10(HIGHEST / LOWEST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def axis(bottom):
    parts = []
    for exponent in range(round(math.log10(LOWEST)), round(math.log10(HIGHEST)) + 1):
        x = position(10**exponent)
        label = {4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M", 8: "100 M"}[exponent]
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 14}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd" stroke-width="1"/>')
        parts.append(text(x, TOP - 20, label, 12, "middle", fill="#555"))
    return parts


def bar(y, words, rate, color, limit):
    parts = [text(LEFT - 12, y + 16, words, anchor="end")]
    parts.append(f'<rect x="{LEFT}" y="{y}" width="{position(rate) - LEFT:.1f}" height="22" rx="3" fill="{color}"/>')
    end = position(rate)
    if limit:
        x = position(limit)
        end = max(end, x)
        parts.append(f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + 25}" stroke="#222" stroke-width="2"/>')
    return parts + [text(end + 8, y + 16, f"{rate:,.0f}", weight="bold")]


def main():
    y, body = TOP, []
    for title, bars in groups():
        if not bars:
            continue
        body.append(text(20, y + 14, title, 14, weight="bold"))
        y += ROW
        for words, rate, color, limit in bars:
            body += bar(y, words, rate, color, limit)
            y += ROW
        y += 10
    height = y + 24
    heading = [text(20, 26, "Full-size classifier, sentences a second", 16, weight="bold"),
               text(20, height - 12, "logarithmic scale; dark lines: what the machine's copies or memory allowed in the "
                    "same run", 12, fill="#555")]
    lines = "\n".join(axis(y - 8) + heading + body)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
          f'font-family="Helvetica, Arial, sans-serif">\n<rect width="100%" height="100%" fill="#fff"/>\n{lines}\n</svg>')


if __name__ == "__main__":
    main()
