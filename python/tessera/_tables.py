"""`python -m tessera classify` of the package itself: Parquet by pyarrow, and texts and CSV without any command."""

import argparse
import csv
import importlib
import json
import os
import pathlib
import sys

from ._classifier import Classifier
from ._native import TesseraError, wrong

_PARQUET = (".parquet", ".pq")
_ROWS = 16384


def _extension(path):
    return pathlib.Path(path).suffix.lower()


def import_arrow(what):
    """pyarrow, or an ImportError that says what it is wanted for."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(wrong(what, "no pyarrow", "pip install 'tessera[arrow]', with which Parquet is read and "
                                "written")) from error


def is_for_package(arguments):
    """Whether these arguments name a Parquet file."""
    return any(_extension(argument.partition("=")[2] or argument) in _PARQUET for argument in arguments)


def _parser():
    parser = argparse.ArgumentParser(prog="python -m tessera classify", description=__doc__)
    parser.add_argument("-m", "--model", metavar="DIR", help="a checkpoint; else the model that came with the package")
    parser.add_argument("-i", "--input", metavar="FILE", help=".parquet, .csv, or a text each line")
    parser.add_argument("-o", "--output", metavar="FILE", help=".parquet, .csv or .jsonl; else text on standard output")
    parser.add_argument("--text", action="append", default=[], help="a sentence; can be given several times")
    parser.add_argument("--field", metavar="NAME", help="the text's column; else text, else sentence")
    parser.add_argument("--keep", metavar="NAME[,...]|all", help="columns that go on to the results")
    parser.add_argument("--probabilities", action="store_true", help="add the probability of every class")
    parser.add_argument("--token-counts", action="store_true", help="add words, unknown words, and whether a text was cut")
    parser.add_argument("--min-probability", type=float, default=0.0, metavar="NUMBER", help="below it a label is unsure")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("-q", "--quiet", action="store_true", help="no counts at the end")
    return parser


def _batches(options):
    """(names of the columns, iterator of {name: list} of at most _ROWS rows) of the input."""
    if options.text:
        return ["text"], iter([{"text": options.text}])
    extension = _extension(options.input)
    if extension in _PARQUET:
        _, parquet = import_arrow("--input")
        file = parquet.ParquetFile(options.input)
        return file.schema_arrow.names, (batch.to_pydict() for batch in file.iter_batches(_ROWS))
    if extension not in (".csv", ".txt", ""):
        raise ValueError(wrong("--input", repr(extension), ".parquet, .csv or .txt; other files need the `tessera` command"))
    with open(options.input, encoding="utf-8-sig", newline="") as file:
        if extension != ".csv":
            return ["text"], iter([{"text": [line.rstrip("\r\n") for line in file]}])
        rows = list(csv.DictReader(file, strict=True))
    names = list(rows[0]) if rows else []
    return names, iter([{name: [row[name] for row in rows] for name in names}])


def _column(names, options):
    for name in [options.field] if options.field else ["text", "sentence"]:
        if name in names:
            return name
    raise ValueError(wrong(options.input or "--text", f"columns {', '.join(map(repr, names))}",
                           f"a column {options.field!r}" if options.field else "a column 'text' or 'sentence'"))


def _kept(names, options):
    if not options.keep:
        return []
    kept = list(names) if options.keep == "all" else options.keep.split(",")
    for name in kept:
        if name not in names:
            raise ValueError(wrong("--keep", repr(name), f"one of {', '.join(map(repr, names))}"))
    return kept


def _result(model, options, batch, column, kept, first):
    """The columns of the output for one batch of the input."""
    try:
        found = model.predict(batch[column], min_probability=options.min_probability)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{options.input}: rows {first} and on: {error}") from None
    scores = [None if score != score else score for score in found.scores.tolist()]
    out = {"index": list(range(first, first + len(scores))), "label": found.labels.tolist(), "probability": scores}
    if options.probabilities:
        for i, name in enumerate(model.class_names):
            out[f"probability_{name}"] = [None if p != p else p for p in found.probabilities[:, i].tolist()]
    if options.token_counts:
        out |= {"tokens": found.tokens.tolist(), "unknown": found.unknown.tolist(), "truncated": found.truncated.tolist()}
    own = set(out)
    for name in kept:
        out[f"input_{name}" if name in own else name] = batch[name]
    return out


class _ParquetOutput:
    def __init__(self, path):
        self.arrow, self.parquet = import_arrow("--output")
        self.path, self.writer = path, None

    def write(self, columns):
        types = {name: self.arrow.string() if name == "label" else self.arrow.float64()
                 for name in columns if name == "label" or name.startswith("probability")}
        table = self.arrow.table({name: self.arrow.array(values, types.get(name)) for name, values in columns.items()})
        if self.writer is None:
            self.writer = self.parquet.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table.cast(self.writer.schema))

    def close(self):
        if self.writer is not None:
            self.writer.close()


class _TextOutput:
    def __init__(self, path, extension):
        self.file = open(path, "w", encoding="utf-8", newline="") if path else sys.stdout
        self.extension, self.is_empty = extension, True

    def write(self, columns):
        rows = zip(*columns.values())
        if self.extension == ".jsonl":
            self.file.writelines(json.dumps(dict(zip(columns, row)), ensure_ascii=False, default=str) + "\n" for row in rows)
        elif self.extension == ".csv":
            writer = csv.writer(self.file, lineterminator="\n")
            if self.is_empty:
                writer.writerow(columns)
            writer.writerows(rows)
        else:
            self.file.writelines("\t".join("" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
                                           for value in row[1:]) + "\n" for row in rows)
        self.is_empty = False

    def close(self):
        if self.file is not sys.stdout:
            self.file.close()


def _open_output(path):
    """The output under its temporary name, as the command writes it too."""
    extension = _extension(path) if path else ""
    if extension not in (*_PARQUET, ".csv", ".jsonl", ".txt", ""):
        raise ValueError(wrong("--output", repr(extension), ".parquet, .csv, .jsonl or .txt"))
    if path and not extension:
        extension = ".txt"
    partial = f"{path}.partial" if path else None
    return _ParquetOutput(partial) if extension in _PARQUET else _TextOutput(partial, extension)


def _run(options):
    if bool(options.text) == bool(options.input):
        raise ValueError(wrong("classify", "both --text and --input" if options.text else "neither --text nor --input",
                               "one of them"))
    if options.input and options.output and os.path.exists(options.output) and os.path.samefile(options.input,
                                                                                               options.output):
        raise ValueError(wrong("--output", "the input file", "another file"))
    names, batches = _batches(options)
    column, kept = _column(names, options), _kept(names, options)
    model = Classifier(options.model, device=options.device)
    output, counts, done = _open_output(options.output), {}, 0
    try:
        for batch in batches:
            columns = _result(model, options, batch, column, kept, done)
            for label, score in zip(columns["label"], columns["probability"]):
                count, total = counts.get(label, (0, 0.0))
                counts[label] = count + 1, total + (score or 0.0)
            done += len(columns["label"])
            output.write(columns)
    finally:
        output.close()
    if options.output:
        os.replace(f"{options.output}.partial", options.output)
    if not options.quiet:
        for label, (count, total) in sorted(counts.items()):
            mean = "" if label == "empty" else f", mean probability {total / count:.3f}"
            sys.stderr.write(f"tessera: {label}: {count}, {100 * count / done:.1f} %{mean}\n")


def classify(arguments):
    """The exit code of `python -m tessera classify` with these arguments."""
    try:
        _run(_parser().parse_args(arguments))
    except (ValueError, TypeError, ImportError, OSError, TesseraError) as error:
        sys.stderr.write(f"tessera: error: {error}\n")
        return 2
    return 0
