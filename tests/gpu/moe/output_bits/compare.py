#!/usr/bin/env python3
"""Compares outputs of output_bits.

    compare.py BEFORE AFTER                  equal bits: every case of both, or exit status 1
    compare.py --time BEFORE... -- AFTER...  medians over the runs of each build, and their ratio
"""
import statistics
import sys


def read(path, word):
    """The lines `word NAME<tab>VALUE` of a file, in order; for bits, also that the file is whole."""
    values, announced = {}, None
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == word:
                name, _, value = rest.partition("\t")
                values[name] = value
            elif kind == "cases":
                announced = int(rest)
    if word == "case" and announced != len(values):
        sys.exit(f"compare: {path}: {len(values)} cases, {announced} announced: the run did not end")
    if not values:
        sys.exit(f"compare: {path}: no line of kind '{word}'")
    return values


def compare_bits(before, after):
    """Complaints, one a case that is not the same in both."""
    complaints = [f"{name}: only in one file" for name in sorted(before.keys() ^ after.keys())]
    return complaints + [f"{name}: {before[name]} before, {after[name]} after"
                         for name in before if name in after and before[name] != after[name]]


def compare_times(before, after):
    for name in before[0]:
        old = statistics.median(float(run[name]) for run in before)
        new = statistics.median(float(run[name]) for run in after)
        yield f"{name:24} {old:10.2f} us before {new:10.2f} us after   ratio {new / old:.4f}"


def main(arguments):
    if arguments[:1] == ["--time"] and "--" in arguments:
        middle = arguments.index("--")
        before = [read(path, "time") for path in arguments[1:middle]]
        after = [read(path, "time") for path in arguments[middle + 1:]]
        print("\n".join(compare_times(before, after)))
        return 0
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    before, after = (read(path, "case") for path in arguments)
    complaints = compare_bits(before, after)
    print("\n".join(complaints) if complaints else f"equal bits: {len(before)} cases, {len(set(before.values()))} different")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
