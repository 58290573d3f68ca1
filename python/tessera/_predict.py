"""Labels of many texts at once: arrays, or a table where the texts come as a column of pandas or Arrow."""

import importlib
import math
import numbers
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy

from ._native import wrong

EMPTY, UNSURE = "empty", "unsure"
# Texts between two calls of `progress`: about a tenth of a second on two cores.
_ROWS = 8192


class Predictions(NamedTuple):
    """What `Classifier.predict` says of n texts. A text without words is labelled "empty", with a score and probabilities of
    NaN; a score below min_probability makes the label "unsure"."""

    labels: numpy.ndarray  # [n] object: str
    scores: numpy.ndarray  # [n] float32, of the most probable class
    probabilities: numpy.ndarray  # [n, num_classes] float32
    tokens: numpy.ndarray  # [n] int64: words of the text, before it is cut to sequence_length
    unknown: numpy.ndarray  # [n] int64: of the words that are left, those that the model does not know
    truncated: numpy.ndarray  # [n] bool


def probabilities_of(logits):
    """Softmax [n, num_classes] float64."""
    numerators = numpy.exp(logits.astype(numpy.float64) - logits.max(axis=1, keepdims=True))
    return numerators / numerators.sum(axis=1, keepdims=True)


def _report(progress) -> Callable[[int, int], object] | None:
    if progress is None or progress is False:
        return None
    if callable(progress):
        return progress
    if progress is not True:
        raise TypeError(wrong("progress", type(progress).__name__, "True or a function of (done, total)"))
    start = time.monotonic()

    def show(done, total):
        rate = done / max(time.monotonic() - start, 1e-9)
        sys.stderr.write(f"\r{done:,} of {total:,} texts, {rate:,.0f}/s" + ("\n" if done == total else ""))
        sys.stderr.flush()

    return show


def _table_kind(texts):
    """"pandas" or "pyarrow" for a column of theirs; neither is imported for this."""
    for kind, names in (("pandas", ("Series", "Index")), ("pyarrow", ("Array", "ChunkedArray"))):
        module = sys.modules.get(kind)
        if module is not None and isinstance(texts, tuple(getattr(module, name) for name in names)):
            return kind
    return None


def _as_table(kind, texts, class_names, result):
    columns = {"label": result.labels, "score": result.scores}
    columns |= {f"probability_{name}": result.probabilities[:, i] for i, name in enumerate(class_names)}
    columns |= {"tokens": result.tokens, "unknown": result.unknown, "truncated": result.truncated}
    module = importlib.import_module(kind)
    if kind == "pandas":
        return module.DataFrame(columns, index=texts.index if isinstance(texts, module.Series) else texts)
    empty = result.labels == EMPTY
    arrays = {name: module.array(column, mask=empty if column.dtype == numpy.float32 else None,
                                 type=module.string() if column.dtype == object else None)
              for name, column in columns.items()}
    return module.table(arrays)


def predict(classifier, texts: Iterable[str], progress: Any, min_probability: float, texts_of) -> Any:
    """The work of Classifier.predict; `texts_of` makes a list of what was given."""
    if isinstance(min_probability, bool) or not isinstance(min_probability, numbers.Real):
        raise TypeError(wrong("min_probability", type(min_probability).__name__, "a number"))
    if not 0 <= min_probability <= 1:
        raise ValueError(wrong("min_probability", min_probability, "0 to 1"))
    report, kind = _report(progress), _table_kind(texts)
    given = texts_of(texts)
    names = numpy.array(classifier.class_names, object)
    parts = []
    for begin in range(0, max(len(given), 1), _ROWS):
        ids, tokens, unknown = classifier._encode(given[begin:begin + _ROWS], begin)
        values = probabilities_of(classifier.logits(ids)) if len(ids) else numpy.empty((0, len(names)))
        labels = names[values.argmax(axis=1)] if len(ids) else names[:0]
        scores = values.max(axis=1, initial=0).astype(numpy.float32)
        labels[scores.astype(numpy.float64) < min_probability] = UNSURE
        labels[tokens == 0] = EMPTY
        scores[tokens == 0] = values[tokens == 0] = math.nan
        parts.append(Predictions(labels, scores, values.astype(numpy.float32), tokens, unknown,
                                 tokens > classifier.sequence_length))
        if report is not None:
            report(min(begin + _ROWS, len(given)), len(given))
    result = Predictions(*(numpy.concatenate(columns) for columns in zip(*parts)))
    return result if kind is None else _as_table(kind, texts, classifier.class_names, result)
