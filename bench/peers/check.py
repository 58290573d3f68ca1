"""Is a layer's result right? Plain Python, so that the judgement can be tested where there is neither torch nor a GPU.

Some tokens' rows are compared element by element with an fp64 reference and its error bounds (torch_moe.exact_rows); every
row is compared through a few random +-1 projections, so that a wrong row between the sampled ones is found too. Arrays
travel between processes as base64 text of little-endian numbers.

A layer of format "fp8-block" quantises weights and activations itself and is judged against the same unquantised fp64 rows,
within what rounding to e4m3 explains (FP8_ERROR) and not more. Its errors are large beside those of 16 bits, but they are
noise: a row's error must be no larger than the noise, no element may stand out of it, and it must not point along the
contribution of one of the token's experts, as it does where a slot is dropped, weighted wrongly or given to another expert.
"""
import array
import base64
import math

ROW_LIMIT = 1e-2  # relative error of a row: ten roundings to bf16 make about 0.003
PROJECTION_LIMIT = 6e-2  # of the row's norm: six times ROW_LIMIT, as a projection of the error is about its norm, N(0, 1)
# A wrong row passes one projection by chance once in twenty times, within the limit for FP8 in three of eight: all eight once
# in 3,000 there. A row that was not written holds NaN and never passes.
NUM_PROBES = 8
# The bounds are made for two roundings of the intermediate; other people's layers round gate, up, their product and the
# weighted rows one by one.
OWN_SLACK, PEER_SLACK = 1.0, 2.5

FORMATS = ("bf16", "fp8-block")
# e4m3 keeps 3 bits behind the point: in [2^e, 2^(e+1)) rounding is off by at most 2^(e-4), evenly spread: variance 4^e / 768.
# Values spread evenly over a binade's logarithm have a mean square of 4^e 3 / (2 ln 2) = 2.16 4^e: relative RMS error 0.0245.
E4M3_ERROR = math.sqrt(2 * math.log(2) / 3 / 768)
# Of the gate's error silu lets through this part, relative to silu(gate): E[silu'(g)^2] E[g^2] / E[silu(g)^2] for normal g;
# 1.02 to 1.07 for deviations from 0.3 to 3 (the presets' are 0.9 to 1.7).
GATE_SHARE = 1.07
# A layer rounds, independently: weights and activations of the gate (2 E^2), of up (2 E^2), the intermediate and the down
# weights (2 E^2); the k experts' errors add up like their rows. Relative error of a row: 0.061. Experts of the presets' sizes
# with normal weights, quantised by this rule and multiplied in fp64, give 0.058 to 0.067.
FP8_ERROR = E4M3_ERROR * math.sqrt(2 * GATE_SHARE + 2 + 2)
# 1.3 times it. A neighbouring block's scale makes at least 0.10 (down), 0.13 (gate and up), 0.19 (activations).
FP8_ROW_LIMIT = 0.08
FP8_DEVIATIONS = 8.0  # an element's error is a sum of thousands of roundings: normal; 6e-16 of them are further off
FP8_PROJECTION_LIMIT = 6 * FP8_ROW_LIMIT  # as for bf16
# Of a slot's contribution: own noise of the slot is a direction by chance; in the same experiments 0.01 at most.
FP8_SLOT_LIMIT = 0.1


def to_text(kind, values):
    """Base64 text of numbers of an array type ("f", "d")."""
    return base64.b64encode(array.array(kind, values).tobytes()).decode()


def from_text(kind, text):
    values = array.array(kind)
    values.frombytes(base64.b64decode(text))
    return values


def rows_problem(rows, reference, slack):
    """(what is wrong with the sampled rows or "", largest error of what is allowed, largest relative error of a row).

    rows: [n * H] floats; reference: {"tokens": n ids, "exact", "allowed": [n * H]}.
    """
    exact, allowed, tokens = reference["exact"], reference["allowed"], reference["tokens"]
    if len(rows) != len(exact):
        return f"got {len(rows)} elements of the sampled rows, expected {len(exact)}", math.inf, math.inf
    width, worst, worst_row = len(exact) // len(tokens), 0.0, 0.0
    for number, token in enumerate(tokens):
        error_squares = exact_squares = 0.0
        for i in range(number * width, (number + 1) * width):
            error = abs(rows[i] - exact[i])
            limit = slack * allowed[i]
            if not error <= limit:  # also where the error is NaN
                return (f"token {token}, element {i - number * width}: got {rows[i]:.6g}, expected {exact[i]:.6g} "
                        f"within {limit:.3g}"), math.inf, math.inf
            worst = max(worst, error / limit if limit else 0.0)
            error_squares += error * error
            exact_squares += exact[i] * exact[i]
        relative = math.sqrt(error_squares / exact_squares) if exact_squares else float(error_squares > 0)
        if relative > ROW_LIMIT:
            return f"token {token}: relative error {relative:.3g}, at most {ROW_LIMIT}", worst, relative
        worst_row = max(worst_row, relative)
    return "", worst, worst_row


def fp8_rows_problem(rows, reference, slack):
    """As rows_problem, for a layer that rounds to e4m3. `slack` is not used: the noise of e4m3 hides what it is for."""
    del slack
    exact, tokens = reference["exact"], reference["tokens"]
    if len(rows) != len(exact):
        return f"got {len(rows)} elements of the sampled rows, expected {len(exact)}", math.inf, math.inf
    width, worst, worst_row = len(exact) // len(tokens), 0.0, 0.0
    for number, token in enumerate(tokens):
        begin, end = number * width, (number + 1) * width
        errors = [got - expected for got, expected in zip(rows[begin:end], exact[begin:end])]
        norm = math.sqrt(sum(value * value for value in exact[begin:end]))
        limit = FP8_DEVIATIONS * FP8_ERROR * norm / math.sqrt(width)
        for i, error in enumerate(errors):
            if not abs(error) <= limit:  # also where the error is NaN
                return (f"token {token}, element {i}: got {rows[begin + i]:.6g}, expected {exact[begin + i]:.6g} within "
                        f"{limit:.3g}"), math.inf, math.inf
            worst = max(worst, abs(error) / limit if limit else 0.0)
        relative = math.sqrt(sum(error * error for error in errors)) / norm if norm else 0.0
        if relative > FP8_ROW_LIMIT:
            return f"token {token}: relative error {relative:.3g}, at most {FP8_ROW_LIMIT}", worst, relative
        worst_row = max(worst_row, relative)
        problem = slots_problem(token, errors, norm, slots_of(reference, number, width))
        if problem:
            return problem, worst, worst_row
    return "", worst, worst_row


def slots_of(reference, number, width):
    """The weighted fp64 rows of a sampled token's slots."""
    slots = reference["slots"]
    top_k = len(slots) // len(reference["exact"])
    return [slots[begin:begin + width] for begin in range(number * top_k * width, (number + 1) * top_k * width, width)]


def slots_problem(token, errors, norm, slots):
    """A dropped slot, or one with another expert's row, has an error of -1 times its contribution, and noise beside it."""
    for k, slot in enumerate(slots):
        square = sum(value * value for value in slot)
        if not square:
            continue
        along = sum(error * value for error, value in zip(errors, slot)) / square
        limit = FP8_SLOT_LIMIT + 6 * FP8_ERROR * norm / math.sqrt(len(slot) * square)  # the others' noise, six deviations
        if not abs(along) <= limit:
            return f"token {token}, slot {k}: off by {along:.3g} of its expert's contribution, at most {limit:.3g}"
    return ""


def projections_problem(got, expected, norms, limit=PROJECTION_LIMIT):
    """What is wrong with any row, or "". got, expected: [T * NUM_PROBES] sums of a row's elements with random signs."""
    if len(got) != len(expected):
        return f"got {len(got)} projections, expected {len(expected)}"
    for i, (mine, theirs) in enumerate(zip(got, expected)):
        if not abs(mine - theirs) <= limit * norms[i // NUM_PROBES]:
            return (f"token {i // NUM_PROBES}: a projection of its row is {mine:.6g}, expected {theirs:.6g} within "
                    f"{limit * norms[i // NUM_PROBES]:.3g}")
    return ""


def decoded_reference(reply):
    """The judge's answer with its arrays as numbers."""
    slots = {"slots": from_text("f", reply["slots"])} if "slots" in reply else {}
    return {"tokens": reply["tokens"], "exact": from_text("d", reply["exact"]), **slots,
            "allowed": from_text("d", reply["allowed"]), "projections": from_text("f", reply["projections"]),
            "norms": from_text("f", reply["norms"])}


def judged(output, reference, slack, fmt="bf16"):
    """{"problem": text, empty when right; "of_bound"; "row_error"} of an output {"rows", "projections": base64 text}.

    reference: decoded_reference(...); "slots" [n * k * H], the weighted fp64 rows of the sampled tokens' slots, is needed for
    "fp8-block" alone. slack: factor of the bf16 bounds.
    """
    if fmt not in FORMATS:
        raise ValueError(f"got format {fmt!r}, expected one of {', '.join(FORMATS)}")
    judge_rows, limit = (fp8_rows_problem, FP8_PROJECTION_LIMIT) if fmt == "fp8-block" else (rows_problem, PROJECTION_LIMIT)
    rows, projections = from_text("f", output["rows"]), from_text("f", output["projections"])
    problem, of_bound, row_error = judge_rows(rows, reference, slack)
    problem = problem or projections_problem(projections, reference["projections"], reference["norms"], limit)
    finite = {"of_bound": round(of_bound, 4), "row_error": round(row_error, 6)} if math.isfinite(of_bound) else {}
    return {"problem": problem, **finite}


def _example():
    """A reference of 3 sampled tokens of 5, 8 elements a row, and an output within its bounds."""
    width, tokens, sampled = 8, 5, [0, 2, 4]
    rows = [[math.sin(3.0 * t + i) + 2.0 for i in range(width)] for t in range(tokens)]
    signs = [[(-1) ** ((i * (p + 3) + i * i * p) % 3) for i in range(width)] for p in range(NUM_PROBES)]

    def project(matrix):
        return [sum(s * v for s, v in zip(sign, row)) for row in matrix for sign in signs]
    reference = {"tokens": sampled, "exact": [v for t in sampled for v in rows[t]],
                 "allowed": [0.01] * (width * len(sampled)), "projections": project(rows),
                 "norms": [math.sqrt(sum(v * v for v in row)) for row in rows]}

    def output(matrix):
        return {"rows": to_text("f", [v for t in sampled for v in matrix[t]]),
                "projections": to_text("f", project(matrix))}
    return reference, [[v * 1.001 for v in row] for row in rows], output


def self_test():
    """Accepts a result within its bounds; finds each planted error: the checker is no checker if it cannot fail."""
    reference, good, output = _example()
    assert judged(output(good), reference, OWN_SLACK)["problem"] == ""
    assert 0 < judged(output(good), reference, OWN_SLACK)["of_bound"] < 1

    def planted(change, expected):
        rows = [list(row) for row in good]
        change(rows)
        found = judged(output(rows), reference, OWN_SLACK)
        assert expected in found["problem"], (expected, found)
    planted(lambda rows: rows[2].__setitem__(3, rows[2][3] + 0.05), "token 2, element 3")
    planted(lambda rows: rows[4].__setitem__(0, math.nan), "token 4, element 0")
    planted(lambda rows: [row.__setitem__(slice(None), [0.0] * 8) for row in rows], "token 0")  # a zeroed output
    planted(lambda rows: rows[3].__setitem__(slice(None), [0.0] * 8), "token 3: a projection")  # between the sampled
    planted(lambda rows: rows[1].__setitem__(slice(None), [v * 1.5 for v in rows[1]]), "token 1: a projection")
    planted(lambda rows: rows[1].__setitem__(2, math.nan), "token 1: a projection")
    planted(lambda rows: rows.__setitem__(slice(None), [rows[4], *rows[1:4], rows[0]]), "token 0")  # two rows swapped
    loose = {**reference, "allowed": [1.0] * len(reference["allowed"])}
    off = output([[v * 1.02 for v in row] for row in good])
    assert "relative error" in judged(off, loose, OWN_SLACK)["problem"]
    short = {**output(good), "rows": to_text("f", [1.0])}
    assert "expected 24" in judged(short, reference, OWN_SLACK)["problem"]
    assert from_text("d", to_text("d", [0.1, -2.5e300])).tolist() == [0.1, -2.5e300]
    coded = {"tokens": reference["tokens"], **{key: to_text("d", reference[key]) for key in ("exact", "allowed")},
             **{key: to_text("f", reference[key]) for key in ("projections", "norms")}}
    assert judged(output(good), decoded_reference(coded), OWN_SLACK)["problem"] == ""
