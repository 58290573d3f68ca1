"""Chains: many layers in one CUDA graph, as a step of decoding runs them, microseconds a layer. Plain Python.

The layers have several sets of weights, so that none comes back before other bytes have emptied the L2 cache: what a graph
of one layer gets by emptying it in between, a chain gets by itself, with the next layer's launch under way. Each layer has
fresh tokens and its own routing. They are not the layer before's outputs: those of random weights shrink from layer to layer
until nothing is left to check, and a stream keeps the order anyway.
"""
import concurrent.futures

import cases
import check
import report
from children import Failed

LAYERS = 20
SET_BYTES = 48 * 10**9  # 16-bit weights of all sets
SAMPLED = (0, 9, 19)  # whose results are checked: the first, one between, the last
LEAST_REUSE_BYTES = 256 << 20
RUNS = {"budget_us": 6e4, "least": 5, "most": 30}  # replays, each of LAYERS layers


def num_sets(preset):
    """As many as fit of those that divide LAYERS: each set then comes back after equally many layers, also from one replay to
    the next."""
    size = cases.weight_bytes(preset, cases.grid.PRESETS[preset][2])
    return max(sets for sets in range(1, LAYERS + 1) if LAYERS % sets == 0 and (sets * size <= SET_BYTES or sets == 1))


def usage(preset, experts, sets, fmt):
    """What a chain reads when replayed again and again. experts: for each layer those it uses.

    {"read_bytes": a layer, in the mean; "distinct_bytes": of all experts in use; "least_reuse_bytes": the fewest bytes of
    other layers between two uses of one expert}
    """
    size = cases.weight_bytes(preset, 1, fmt)
    keys = [[(place % sets, expert) for expert in used] for place, used in enumerate(experts)]
    last, least = {}, None
    for place in range(2 * len(keys)):
        for key in keys[place % len(keys)]:
            if key in last:
                between = {other for step in range(last[key] + 1, place) for other in keys[step % len(keys)]}
                least = len(between) if least is None else min(least, len(between))
        last.update(dict.fromkeys(keys[place % len(keys)], place))
    distinct = {key for used in keys for key in used}
    return {"read_bytes": round(sum(map(len, keys)) / len(keys) * size), "distinct_bytes": len(distinct) * size,
            "least_reuse_bytes": (least or 0) * size}


class ChainRunner:
    """Measures a preset's chains, one process at a time: the sets of two would not fit beside each other."""

    def __init__(self, judge, contestants, seconds=(60, 300), most_failures=2):
        self.judge, self.contestants, self.most_failures = judge, contestants, most_failures
        self.answer_seconds, self.load_seconds = seconds
        self.judging = concurrent.futures.ThreadPoolExecutor(1)  # the next chain is measured meanwhile

    def references(self, preset, tokens, sets):
        """{place: {tokens: reference}}, {set: checksum of its weights}."""
        found, checksums = {}, {}
        for place in SAMPLED:
            answer = self.judge.ask({"do": "chain_reference", "preset": preset, "tokens": tokens, "place": place,
                                     "set": place % sets}, self.load_seconds)
            checksums[place % sets] = answer["checksum"]
            found[place] = {count: {**check.decoded_reference(reference), "checksum": reference["checksum"]}
                            for count, reference in answer["references"].items()}
        return found, checksums

    def load(self, one, preset, sets, checksums):
        """Makes sure that a live process holds the sets; a reason why it cannot, or ""."""
        one.ensure()
        if one.preset == ("chain", preset):
            return ""
        answer = one.ask({"do": "chain_load", "preset": preset, "sets": sets}, self.load_seconds)
        if "skip" in answer:
            return answer["skip"]
        for number, checksum in checksums.items():
            if answer["checksums"][number] != checksum:
                raise Failed(f"{one.library}: other weights than the judge's in set {number}: "
                             f"{answer['checksums'][number]}, expected {checksum}")
        one.preset = "chain", preset
        return ""

    def entry(self, layer, answer, references):
        """What is kept of a layer's answer."""
        if "skip" in answer:
            return {"skip": answer["skip"]}
        slack, problem, checks = check.OWN_SLACK if cases.is_ours(layer) else check.PEER_SLACK, "", {}
        for place in SAMPLED:
            reference, got = references[place], answer["checksums"][str(place)]
            if got != reference["checksum"]:
                return {"failed": f"layer {place}: other inputs than the judge's: checksum {got}, expected "
                                  f"{reference['checksum']}"}
            found = check.judged(answer["outputs"][str(place)], reference, slack, cases.format_of(layer))
            problem = problem or (f"layer {place}: {found['problem']}" if found["problem"] else "")
            checks[str(place)] = {key: found[key] for key in ("of_bound", "row_error") if key in found}
        note = {"note": answer["note"]} if "note" in answer else {}
        return {"times": {"chain": report.summarized([answer["times"]])}, "check": checks, "problem": problem, **note}

    def measure_layer(self, one, layer, record, sets, found, failures):
        """The layer's entry, or the future of one that is still judged."""
        references, checksums = found
        if record["usage"][cases.format_of(layer)]["least_reuse_bytes"] < LEAST_REUSE_BYTES:
            return {"skip": f"a set of weights would come back after less than {LEAST_REUSE_BYTES >> 20} MiB of others"}
        if len(failures) >= self.most_failures:
            return {"failed": f"not tried again on this shape: {failures[-1]}"}
        try:
            reason = self.load(one, record["preset"], sets, checksums)
            answer = {"skip": reason} if reason else one.ask(
                {"do": "chain", "cell": [record["preset"], record["tokens"], "random"], "layer": layer, "layers": LAYERS,
                 "sampled": SAMPLED, **RUNS}, self.load_seconds)
            return self.judging.submit(self.entry, layer, answer,
                                       {place: references[place][str(record["tokens"])] for place in SAMPLED})
        except Failed as error:
            failures.append(str(error))
            return {"failed": str(error)}

    def measure_library(self, one, records, sets, found):
        failures = {}
        for record in records:
            for layer in cases.chain_layers(one.library):
                record["layers"][layer] = self.measure_layer(one, layer, record, sets, found,
                                                             failures.setdefault(layer, []))
        try:
            if one.child:
                one.ask({"do": "unload"}, self.answer_seconds)
        except Failed:
            pass  # what it measured stands; it is started again for the next preset
        one.preset = None

    def measure(self, preset, tokens, rate):
        """A record for each number of tokens."""
        sets = num_sets(preset)
        routing = self.judge.ask({"do": "chain_routing", "preset": preset, "tokens": tokens, "layers": LAYERS},
                                 self.answer_seconds)["experts"]
        found = self.references(preset, tokens, sets)
        records = []
        for count in tokens:
            used = {fmt: usage(preset, routing[str(count)], sets, fmt) for fmt in cases.FORMATS}
            records.append({"preset": preset, "tokens": count, "layers_in_chain": LAYERS, "sets": sets, "usage": used,
                            "floors": {fmt: round(one["read_bytes"] / rate * 1e6, 2) for fmt, one in used.items()},
                            "layers": {}})
        for one in self.contestants:
            self.measure_library(one, records, sets, found)
        for record in records:
            record["layers"] = {layer: entry if isinstance(entry, dict) else entry.result()
                                for layer, entry in record["layers"].items()}
        return records


def self_test():
    for preset in cases.PRESETS:
        sets, size = num_sets(preset), cases.weight_bytes(preset, cases.grid.PRESETS[preset][2])
        assert LAYERS % sets == 0 and sets * size <= SET_BYTES and sets >= 4, (preset, sets)
        one_token = [list(range(cases.grid.PRESETS[preset][3]))] * LAYERS  # the same experts in every layer: the worst case
        for fmt in cases.FORMATS:
            used = usage(preset, one_token, sets, fmt)
            assert used["least_reuse_bytes"] >= LEAST_REUSE_BYTES, (preset, fmt, used)
            assert used["read_bytes"] == cases.weight_bytes(preset, len(one_token[0]), fmt)
    assert num_sets("qwen3-30b") == 20 and num_sets("mixtral-8x7b") == 10 and num_sets("gpt-oss-120b") == 5
    size = cases.weight_bytes("olmoe", 1)
    shared = usage("olmoe", [[0, 1], [0], [2, 3], [0]], 2, "bf16")  # sets 0 1 0 1: expert 0 of set 1 after two others
    assert shared == {"read_bytes": round(1.5 * size), "distinct_bytes": 5 * size, "least_reuse_bytes": 2 * size}, shared
    assert usage("olmoe", [[0], [0]], 1, "bf16")["least_reuse_bytes"] == 0  # every layer reads what the one before read
    assert SAMPLED[-1] == LAYERS - 1
