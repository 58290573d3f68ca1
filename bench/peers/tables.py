"""The tables of a run, for documents (scripts/figures.py) and the page beside the JSON file. Plain Python."""
import statistics

import cases
import verdict
from verdict import LAYER_NAMES, best_time, compared, good_times

MODE_WORDS = {"graph_cold": "CUDA graph, cold L2", "graph_warm": "CUDA graph, back to back", "eager": "as called, cold L2",
              "chain": "chain"}


def tflops(record, us):
    return record["flop"] / us / 1e6


def floor(record, fmt):
    """Microseconds in which the weights in use come from memory; None where a file has none for this format."""
    return record.get("floors", {"bf16": record.get("floor_us")}).get(fmt)


def measured_layers(records, fmt=None):
    """In the order of cases.LAYERS; one whose results were all wrong is among them, so that tables show it."""
    return [name for name in LAYER_NAMES if (fmt is None or cases.format_of(name) == fmt)
            and any(record["layers"].get(name, {}).get("times") for record in records)]


def shown_layers(records, fmt):
    """The layers of a table of this format: ours stands beside the peers of every format."""
    peers = [name for name in measured_layers(records, fmt) if not cases.is_ours(name)]
    ours = [name for name in measured_layers(records) if cases.is_ours(name)]
    return [*(ours if peers or fmt == "bf16" else []), *peers]


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def marked(value, mode, digits=0):
    return number(value, digits) + (" *" if mode == "eager" else "")


def entry_text(record, layer, show):
    """The cell of a table: a figure, or why there is none."""
    entry, (us, mode) = record["layers"].get(layer, {}), best_time(record, layer)
    if us is not None:
        return marked(show(us), mode, 1 if show(us) < 100 else 0)
    return "WRONG" if entry.get("problem") else "failed" if entry.get("failed") else "-"


def best_peer_text(record, fmt):
    """The best peer's time over ours, and which it is."""
    found = compared(record, fmt)
    if found is None or found["ratio"] is None:
        return "-"
    return f"{found['ratio']:.2f} ({cases.TITLES[found['peer']]})"


def layer_table(records, fmt="bf16"):
    """TFLOP/s of whole layers from LARGE_TOKENS on."""
    names = shown_layers(records, fmt)
    rows = [[record["preset"], record["tokens"], record["routing"], number(tflops(record, record["dense"]["us"])),
             *(entry_text(record, name, lambda us, r=record: tflops(r, us)) for name in names), best_peer_text(record, fmt)]
            for record in records if names and record["tokens"] >= cases.LARGE_TOKENS]
    return {"columns": ["shape", "T", "routing", "dense cuBLAS", *(cases.TITLES[name] for name in names),
                        "best peer / ours"], "rows": rows}


def decode_table(records, fmt="bf16"):
    """Microseconds of whole layers up to DECODE_TOKENS, beside the time the weights in use take to be read."""
    names = shown_layers(records, fmt)
    rows = [[record["preset"], record["tokens"], number(floor(record, fmt), 1),
             *(entry_text(record, name, lambda us: us) for name in names), best_peer_text(record, fmt)]
            for record in records if names and record["tokens"] <= cases.DECODE_TOKENS]
    return {"columns": ["shape", "T", "floor, us", *(cases.TITLES[name] for name in names), "best peer / ours"],
            "rows": rows}


def chain_table(chain):
    """Microseconds a layer in a chain of layers, both formats, with the floors of both."""
    names = measured_layers(chain)
    rows = [[record["preset"], record["tokens"], record["sets"], number(floor(record, "bf16"), 1),
             number(floor(record, "fp8-block"), 1), *(entry_text(record, name, lambda us: us) for name in names),
             best_peer_text(record, "bf16"), best_peer_text(record, "fp8-block")] for record in chain]
    return {"columns": ["shape", "T", "sets of weights", "16-bit floor, us", "FP8 floor, us",
                        *(cases.TITLES[name] for name in names), "best 16-bit peer / ours", "best FP8 peer / ours"],
            "rows": rows}


def bounds_table(records):
    """TFLOP/s of what is no layer, beside ours."""
    names = [name for name in cases.BOUNDS if any(good_times(record, name) for record in records)]
    rows = [[record["preset"], record["tokens"], record["routing"], number(tflops(record, record["dense"]["us"])),
             *(entry_text(record, name, lambda us, r=record: tflops(r, us)) for name in [cases.OURS, *names])]
            for record in records if record["tokens"] >= cases.LARGE_TOKENS
            and any(good_times(record, name) for name in names)]
    return {"columns": ["shape", "T", "routing", "dense cuBLAS", *(cases.TITLES[n] for n in [cases.OURS, *names])],
            "rows": rows}


def modes_table(records):
    """How many times as fast as each peer we are: median, least and most over the cells, for each mode."""
    rows = []
    for name in measured_layers(records):
        for mode in cases.MODES if not cases.is_ours(name) else ():
            ratios = [good_times(r, name)[mode]["us"] / good_times(r, cases.OURS)[mode]["us"] for r in records
                      if mode in good_times(r, name) and mode in good_times(r, cases.OURS)]
            if ratios:
                rows.append([cases.TITLES[name], MODE_WORDS[mode], len(ratios), f"{statistics.median(ratios):.2f}",
                             f"{min(ratios):.2f}", f"{max(ratios):.2f}"])
    return {"columns": ["peer", "mode", "cells", "median speed-up", "least", "most"], "rows": rows}


def total_text(total):
    """Columns of a total of comparisons."""
    figures = [f"{total[key]:.2f}" if key in total else "-" for key in ("mean", "least", "most")]
    return [total["cells"], *figures, total["lost"]]


def ranges_table(summaries):
    """Where we are ahead, level, behind. summaries: format -> verdict.summary_of."""
    rows = [[words, cases.FORMAT_TITLES[fmt], *total_text(summary["ranges"][name]), summary["ranges"][name]["word"] or "-"]
            for fmt, summary in summaries.items() for name, _, _, words in verdict.RANGES]
    return {"columns": ["tokens", "against the best peer with", "cells", "geometric mean", "least", "most",
                        "cells lost", "so Tessera is"], "rows": rows}


def tokens_table(summaries):
    rows = [[count, cases.FORMAT_TITLES[fmt], *total_text(total)] for fmt, summary in summaries.items()
            for count, total in summary["tokens"].items()]
    return {"columns": ["T", "against the best peer with", "cells", "geometric mean", "least", "most", "cells lost"],
            "rows": rows}


def peers_table(summaries):
    """Each peer alone: geometric means by range, extremes over all cells."""
    rows = []
    for fmt, summary in summaries.items():
        for name, total in summary["peers"].items():
            means = [f"{total['ranges'][part]['mean']:.2f}" if "mean" in total["ranges"][part] else "-"
                     for part, _, _, _ in verdict.RANGES]
            rows.append([cases.TITLES[name], cases.FORMAT_TITLES[fmt], *means, *total_text(total)])
    return {"columns": ["peer", "its format", *(words for _, _, _, words in verdict.RANGES), "cells", "all", "least", "most",
                        "cells it is faster in"], "rows": rows}


def verdict_table(lost):
    rows = [[entry["preset"], entry["tokens"], entry["routing"], cases.FORMAT_TITLES[entry["format"]],
             cases.TITLES[entry["peer"]] + (" *" if entry["peer_mode"] == "eager" else ""), number(entry["peer_us"], 1),
             number(entry["ours_us"], 1), "-" if entry["ratio"] is None else f"{entry['ratio']:.3f}"] for entry in lost]
    return {"columns": ["shape", "T", "routing", "format", "best peer", "peer, us", "ours, us", "peer / ours"], "rows": rows}


def plain(text):
    return text.replace("|", "/").replace("\n", " ")


def versions_table(meta):
    rows = [[library, ", ".join(f"{name} {version}" for name, version in found.items())]
            for library, found in meta["versions"].items()]
    return {"columns": ["library", "versions"], "rows": rows}


def absent_table(absent):
    return {"columns": ["library", "why it was not measured"],
            "rows": [[entry["library"], plain(entry["reason"] + ("; " + entry["note"] if entry["note"] else ""))]
                     for entry in absent]}


def trouble_table(records):
    """Every wrong result, failure and left-out measurement, with its reason; equal ones of a layer counted."""
    found = {}
    for record in records:
        for name, entry in record["layers"].items():
            for kind in ("problem", "failed", "skip"):
                if entry.get(kind):
                    key = (name, {"problem": "wrong", "failed": "failed", "skip": "left out"}[kind], entry[kind])
                    found.setdefault(key, []).append(f"{record['preset']} {record['tokens']} "
                                                     f"{record.get('routing', 'chain')}")
    rows = [[cases.TITLES[name], kind, plain(reason),
             places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"]
            for (name, kind, reason), places in found.items()]
    return {"columns": ["layer", "what", "reason", "where"], "rows": rows}
