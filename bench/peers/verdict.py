"""Who is faster where: ours against the best peer of the same format in each cell, by numbers and ranges of tokens.

Plain Python. A ratio is a peer's time over ours: above 1 we are faster. Means of ratios are geometric. A wrong result has
no time here: a peer's wins nothing, and where ours is wrong or missing the range says so instead of a mean without it.
"""
import math

import cases

# (name, first, last number of tokens, words)
RANGES = (("decode", 1, 32, "T up to 32"), ("middle", 64, 512, "T = 64 to 512"), ("prefill", 1024, 1 << 20, "T from 1,024"))
BEHIND, AHEAD = 0.97, 1.03  # a geometric mean between them is level: runs of one layer differ by as much
# Against the FP8 peers our fastest format counts, whichever it is: a comparison for information.
LAYER_NAMES = [layer for layers in cases.LAYERS.values() for layer in layers if layer not in cases.BOUNDS]


def good_times(record, layer):
    """The layer's times by mode, or {} where it was not measured or its result was wrong."""
    entry = record["layers"].get(layer, {})
    return {} if entry.get("problem") else entry.get("times", {})


def best_time(record, layer):
    """(us, mode) that a user gets at best: a graph with a cold cache, or as called where no graph can be made."""
    times = good_times(record, layer)
    for mode in ("chain", "graph_cold", "eager"):
        if mode in times:
            return times[mode]["us"], mode
    return None, None


def peers(fmt):
    return [layer for layer in LAYER_NAMES if layer in cases.FORMATS[fmt] and not cases.is_ours(layer)]


def our_best(record, fmt):
    """(us, layer): our layer of 16-bit weights against 16-bit peers, our fastest one against FP8 peers."""
    mine = [layer for layer in cases.LAYERS[cases.OURS] if fmt != "bf16" or cases.format_of(layer) == fmt]
    found = [(best_time(record, layer)[0], layer) for layer in mine if best_time(record, layer)[0] is not None]
    return min(found, default=(None, None))


def compared(record, fmt, names=None):
    """The record's cell against the fastest of `names` (default: all peers of the format); None where none was measured.

    {"preset", "tokens", "routing", "format", "peer", "peer_us", "peer_mode", "ours", "ours_us", "ratio"}; without a right
    time of ours "ours_us" and "ratio" are None.
    """
    times = {name: best_time(record, name) for name in names or peers(fmt)}
    times = {name: time for name, time in times.items() if time[0] is not None}
    if not times:
        return None
    peer = min(times, key=lambda name: times[name][0])
    ours_us, ours = our_best(record, fmt)
    return {"preset": record["preset"], "tokens": record["tokens"], "routing": record.get("routing", "random"), "format": fmt,
            "peer": peer, "peer_us": times[peer][0], "peer_mode": times[peer][1], "ours": ours, "ours_us": ours_us,
            "ratio": None if ours_us is None else times[peer][0] / ours_us}


def comparisons(records, fmt, names=None):
    return [found for found in (compared(record, fmt, names) for record in records) if found]


def geometric_mean(values):
    return math.exp(sum(math.log(value) for value in values) / len(values))


def collected(found):
    """Of comparisons: {"cells", "mean", "least", "most", "lost", "without_ours"}; no means where nothing was compared."""
    ratios = [entry["ratio"] for entry in found if entry["ratio"] is not None]
    means = {"mean": round(geometric_mean(ratios), 3), "least": round(min(ratios), 3),
             "most": round(max(ratios), 3)} if ratios else {}
    return {"cells": len(found), **means, "lost": sum(ratio < 1 for ratio in ratios),
            "without_ours": len(found) - len(ratios)}


def word(total):
    """"behind", "level" or "ahead"; "incomplete" where ours has no right time in some cell, "" where there are no cells."""
    if not total["cells"]:
        return ""
    if total["without_ours"]:
        return "incomplete"
    return "behind" if total["mean"] < BEHIND else "ahead" if total["mean"] > AHEAD else "level"


def in_range(found, name):
    _, first, last, _ = next(entry for entry in RANGES if entry[0] == name)
    return [entry for entry in found if first <= entry["tokens"] <= last]


def by_range(found):
    """Range -> its totals with a word."""
    totals = {name: collected(in_range(found, name)) for name, _, _, _ in RANGES}
    return {name: {**total, "word": word(total)} for name, total in totals.items()}


def by_tokens(found):
    counts = sorted({entry["tokens"] for entry in found})
    return {str(count): collected([entry for entry in found if entry["tokens"] == count]) for count in counts}


def lost(found):
    """The cells in which the best peer was faster, or ours has no right time; worst first."""
    entries = [entry for entry in found if entry["ratio"] is None or entry["ratio"] < 1]
    return [{**entry, "verdict": "lost" if entry["ratio"] is not None else "no right time of ours",
             "ratio": None if entry["ratio"] is None else round(entry["ratio"], 3)}
            for entry in sorted(entries, key=lambda entry: entry["ratio"] or 0.0)]


def summary_of(records, fmt):
    found = comparisons(records, fmt)
    alone = {name: comparisons(records, fmt, [name]) for name in peers(fmt)}
    return {**collected(found), "word": word(collected(found)), "ranges": by_range(found), "tokens": by_tokens(found),
            "peers": {name: {**collected(mine), "ranges": by_range(mine), "tokens": by_tokens(mine)}
                      for name, mine in alone.items() if mine}}


def claim(ranges):
    """Words for running text: where we are ahead, level, behind, with the geometric means."""
    parts = []
    for name, _, _, words in RANGES:
        total = ranges[name]
        if total["word"]:
            mean = f" ({total['mean']:.2f})" if "mean" in total else ""
            parts.append(f"{total['word']} at {words}{mean}")
    return ", ".join(parts) or "not measured"


def _record(tokens, problem="", **times):
    """A made-up cell; times: layer name with _ for a space -> us."""
    layers = {name.replace("_", " "): {"times": {"graph_cold": {"us": us}}, "problem": ""} for name, us in times.items()}
    layers.get("tessera", {})["problem"] = problem
    return {"preset": "olmoe", "tokens": tokens, "routing": "random", "layers": layers}


def self_test():
    records = [_record(1, tessera=100.0, flashinfer=80.0, vllm_triton=90.0, deepgemm_fp8=50.0, deepgemm_GEMMs=1.0),
               _record(32, tessera=100.0, flashinfer=125.0, vllm_triton=200.0), _record(512, tessera=100.0, deepgemm=101.0),
               _record(4096, tessera=100.0, deepgemm=110.0, sglang_triton_fp8=60.0), _record(1024, tessera=9.0)]
    total = summary_of(records, "bf16")
    assert total["cells"] == 4 and total["lost"] == 1 and total["without_ours"] == 0, total
    decode = total["ranges"]["decode"]  # 0.8 and 1.25: the arithmetic mean would be 1.025, the geometric one is 1
    assert (decode["mean"], decode["least"], decode["most"], decode["word"]) == (1.0, 0.8, 1.25, "level"), decode
    assert total["ranges"]["middle"]["word"] == "level" and total["ranges"]["prefill"]["word"] == "ahead"
    assert total["peers"]["vllm triton"]["mean"] == round(math.sqrt(0.9 * 2.0), 3) and "liger" not in total["peers"]
    assert total["tokens"]["1"]["mean"] == 0.8 and total["tokens"]["4096"]["most"] == 1.1
    fp8 = summary_of(records, "fp8-block")  # a bound is no peer, of either format; ours is our fastest layer
    assert fp8["cells"] == 2 and fp8["ranges"]["decode"]["mean"] == 0.5 and fp8["word"] == "behind"
    assert "deepgemm GEMMs" not in total["peers"] and compared(records[4], "bf16") is None
    assert [(entry["tokens"], entry["peer"], entry["ratio"]) for entry in lost(comparisons(records, "bf16"))] == [
        (1, "flashinfer", 0.8)]
    for mean, expected in ((0.969, "behind"), (0.97, "level"), (1.03, "level"), (1.031, "ahead")):
        assert word({"cells": 1, "without_ours": 0, "mean": mean}) == expected
    assert claim(total["ranges"]) == ("level at T up to 32 (1.00), level at T = 64 to 512 (1.01), "
                                      "ahead at T from 1,024 (1.10)")
    wrong = [_record(1, "token 0: off", tessera=10.0, flashinfer=80.0), _record(2, tessera=50.0, flashinfer=80.0)]
    total = summary_of(wrong, "bf16")  # our wrong result wins nothing and is not left out in silence
    assert total["ranges"]["decode"]["word"] == "incomplete" and total["without_ours"] == 1
    assert lost(comparisons(wrong, "bf16"))[0]["verdict"] == "no right time of ours"
    off = _record(1, tessera=100.0, flashinfer=10.0, deepgemm=90.0)
    off["layers"]["flashinfer"]["problem"] = "planted"
    assert compared(off, "bf16")["peer"] == "deepgemm"
    assert claim(summary_of([], "bf16")["ranges"]) == "not measured"
