"""The text classifier: options read, texts and arrays checked, one run at a time."""

import ctypes
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy

from . import _native
from ._arrays import kind_of
from ._moe import choice, integer, real
from ._native import CPU, check, lib, use_cuda, wrong
from ._predict import EMPTY, predict, probabilities_of

_INPUTS = ("ids", "embeddings")
_MAX_DEVICE = 2**31 - 1  # what the C interface's int32 holds
# One call of the library lasts about this long: between calls Python looks for Ctrl-C.
_CALL_SECONDS = 0.1
_FIRST_ROWS = 256
_BAD_SENTENCE = {1: "an id outside the vocabulary", 2: "numbers that are not finite"}


class Prediction(NamedTuple):
    label: str  # "empty" for a text without words
    score: float  # probability of the label; NaN for an empty text
    probabilities: tuple[float, ...]  # of every class, in the model's order


def _read_device(device):
    """The number of a device from "auto", "cpu", "cuda" or "cuda:1"."""
    if not isinstance(device, str):
        raise TypeError(wrong("device", type(device).__name__, "a str: auto, cpu, cuda, cuda:1"))
    if device == "auto":
        return next((index for index in range(_native.num_devices()) if lib.tessera_device_check(index) == 0), CPU)
    if device == "cpu":
        return CPU
    given = re.fullmatch("cuda(?::([0-9]{1,10}))?", device)
    if given is None or int(given[1] or 0) > _MAX_DEVICE:
        raise ValueError(wrong("device", repr(device), "auto, cpu, cuda, cuda:1"))
    use_cuda()
    return int(given[1] or 0)


def _c_string(name, text):
    """The bytes of a text that C will read up to its first NUL."""
    encoded = os.fsencode(text)
    if b"\0" in encoded:
        raise ValueError(wrong(name, f"{text!r}, which holds a NUL byte", "a text without"))
    return encoded


def shipped_model():
    """The directory of the movie-reviews model that comes with the package: beside this file, where the installer put it
    for an editable install, or in the checkout."""
    package = sys.modules.get(__package__)
    folders = [pathlib.Path(__file__).parent, *map(pathlib.Path, getattr(package, "__path__", ()))]
    for models in (*(folder / "models" for folder in folders), pathlib.Path(__file__).resolve().parents[2] / "models"):
        if (models / "movie-reviews" / "model.safetensors").is_file():
            return models / "movie-reviews"
    raise ValueError(wrong("path", "none, and no model was installed with the package", "a directory"))


def _text_list(texts):
    """The texts of a list, a tuple, an array, a Series, a generator."""
    if isinstance(texts, numpy.ndarray) and texts.ndim != 1:
        raise ValueError(wrong("texts", f"an array of shape {list(texts.shape)}", "one dimension"))
    # A mapping's keys or a set's order would be a guess at what is meant.
    if isinstance(texts, (str, bytes, Mapping, set, frozenset)) or not isinstance(texts, Iterable):
        raise TypeError(wrong("texts", kind_of(texts), "a sequence of str"))
    # Elements of an Arrow array are scalars with the text inside.
    return [text.as_py() if not isinstance(text, str) and hasattr(text, "as_py") else text for text in texts]


def _slices(count):
    """Ranges of rows that together are `count`, each as long as about _CALL_SECONDS allow."""
    begin, rows = 0, _FIRST_ROWS
    while begin < count:
        end, started = min(begin + rows, count), time.monotonic()
        yield begin, end
        seconds = time.monotonic() - started
        begin = end
        if 2 * seconds < _CALL_SECONDS:
            rows *= 2
        elif seconds > 2 * _CALL_SECONDS:
            rows = max(rows // 2, 1)


class Classifier:
    """A text classifier from a checkpoint directory (config.json, vocab.txt, model.safetensors). path None: the model that
    comes with the package, for English review sentences.

    device: "auto" (a usable GPU, else the CPU), "cpu", "cuda", "cuda:1". precision: "default" (fp16 on a GPU, fp32 on
    the CPU), "fp32", "bf16", "fp16" (GPU), "fp64" (CPU, the oracle). form: "auto", "direct", "dft", "distinct" or
    "vocab". A copied or pickled one is what it was made of: the checkpoint is loaded again where that arrives. Where the system
    allows fewer threads than asked for, there are fewer.
    """

    class_names: tuple[str, ...]
    vocab_size: int
    sequence_length: int
    embedding_size: int
    num_classes: int
    num_experts: int
    description: str

    def __init__(
        self,
        path: Any = None,
        *,
        device: str = "auto",
        precision: str = "default",
        input: Literal["ids", "embeddings"] = "ids",
        form: str = "auto",
        expert_threshold: float = 0.0,
        micro_batch: int = 0,
        num_threads: int = 0,
    ) -> None:
        path = shipped_model() if path is None else path
        try:
            self._path = _c_string("path", path)
        except TypeError:
            raise TypeError(wrong("path", type(path).__name__, "a str or os.PathLike: a directory")) from None
        if not self._path:
            raise ValueError(wrong("path", "''", "a directory"))
        if not isinstance(form, str):
            raise TypeError(wrong("form", type(form).__name__, "a str"))
        self._arguments = {"path": path, "device": device, "precision": precision, "input": input, "form": form,
                           "expert_threshold": expert_threshold, "micro_batch": micro_batch, "num_threads": num_threads}
        if real("expert_threshold", expert_threshold) < 0:
            raise ValueError(wrong("expert_threshold", expert_threshold, "at least 0"))
        self._takes_embeddings = choice("input", input, _INPUTS) == 1
        self._options = _native.new(
            _native.ClassifierOptions, precision=choice("precision", precision, _native.PRECISIONS),
            takes_embeddings=int(self._takes_embeddings),
            num_threads=integer("num_threads", num_threads, 0, _native.LIMITS.max_threads),
            micro_batch=integer("micro_batch", micro_batch, 0, 2**62), form=_c_string("form", form),
            expert_threshold=float(expert_threshold), device=_read_device(device))
        self._load()
        info = _native.new(_native.ClassifierInfo)
        check(lib.tessera_classifier_get_info(self._handle.pointer, ctypes.byref(info)))
        self.vocab_size, self.sequence_length = info.vocab_size, info.sequence_length
        self.embedding_size, self.num_classes = info.embedding_size, info.num_classes
        self.num_experts = info.num_experts
        self.class_names = tuple(lib.tessera_classifier_class_name(self._handle.pointer, i).decode()
                                 for i in range(self.num_classes))
        self.description = lib.tessera_classifier_description(self._handle.pointer).decode()

    def _load(self):
        """Also again in a forked child: what the parent loaded has its threads, or its GPU."""
        if self._options.device != CPU:
            use_cuda()
        self._handle = _native.Handle(
            lambda reference: lib.tessera_classifier_load(self._path, ctypes.byref(self._options), reference),
            lib.tessera_classifier_destroy, is_slow=True)

    def __repr__(self):
        device = "cpu" if self._options.device == CPU else f"cuda:{self._options.device}"
        return (f"tessera.Classifier({os.fsdecode(self._path)!r}, classes={list(self.class_names)}, "
                f"vocab_size={self.vocab_size}, sequence_length={self.sequence_length}, num_experts={self.num_experts}, "
                f"precision={self._arguments['precision']}, input={self._arguments['input']}, device={device})")

    def __reduce__(self):
        """Pickled and copied as what it was made of: the copy loads the checkpoint again, where it is unpickled."""
        return _make, (type(self), self._arguments)

    def _pointer(self):
        if not self._handle.pointer:
            self._load()
        return self._handle.pointer

    def __call__(self, texts: str | Iterable[str]) -> Prediction | list[Prediction]:
        """One prediction for one text, a list for several: a list, an array, a pandas or Arrow column, a generator. Ctrl-C
        ends a call within a tenth of a second or one slice of 256 texts."""
        if self._takes_embeddings:
            raise ValueError(wrong("texts", "text", "input='ids': this classifier was loaded for embeddings"))
        single = isinstance(texts, str)
        ids, tokens, _ = self._encode([texts] if single else _text_list(texts))
        numbers = probabilities_of(self.logits(ids))
        predictions = [Prediction(self.class_names[row.argmax()] if words else EMPTY,
                                  float(row.max()) if words else math.nan, tuple(row.tolist()))
                       for row, words in zip(numbers, tokens.tolist())]
        return predictions[0] if single else predictions

    def predict(self, texts: Iterable[str], *, progress: Any = None, min_probability: float = 0.0) -> Any:
        """`Predictions` of any iterable of str, as arrays; for a pandas Series or Index a DataFrame with its index, for an
        Arrow column a Table, with the columns label, score, probability_<class>, tokens, unknown, truncated. progress: True
        shows a line on standard error; a function is called with (done, total)."""
        if self._takes_embeddings:
            raise ValueError(wrong("texts", "text", "input='ids': this classifier was loaded for embeddings"))
        return predict(self, texts, progress, min_probability, _text_list)

    def tokenize(self, texts: Iterable[str]) -> numpy.ndarray:
        """Token ids [number of texts, sequence_length] int32. A text with a NUL byte raises ValueError."""
        return self._encode(_text_list(texts))[0]

    def _encode(self, texts, first=0):
        """(ids [n, sequence_length] int32, words [n] int64, unknown words [n] int64); `first` is the number of texts[0] in
        messages."""
        encoded = []
        for number, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise TypeError(wrong(f"texts[{number}]", type(text).__name__, "a str"))
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError as error:
                raise ValueError(wrong(f"texts[{number}]", f"half of a character at {error.start}", "text")) from None
        count = len(encoded)
        ids = numpy.empty((count, self.sequence_length), numpy.int32)
        words, unknown = numpy.empty(count, numpy.int64), numpy.empty(count, numpy.int64)
        for begin, end in _slices(count):
            part = encoded[begin:end]
            rows = end - begin
            try:
                check(lib.tessera_classifier_tokenize_counted(
                    self._pointer(), (ctypes.c_char_p * rows)(*part), (ctypes.c_size_t * rows)(*map(len, part)), rows,
                    ids[begin:end].ctypes.data, words[begin:end].ctypes.data, unknown[begin:end].ctypes.data))
            except ValueError as error:  # the library counts from the slice's first text
                raise ValueError(re.sub(r"^texts\[(\d+)\]", lambda at: f"texts[{first + begin + int(at[1])}]",
                                        str(error))) from None
        return ids, words, unknown

    def logits(self, inputs: numpy.ndarray) -> numpy.ndarray:
        """Logits [n, num_classes] float32 of ids [n, sequence_length] int32, or of embeddings [n, embedding_size,
        sequence_length] float32 for input="embeddings". A sentence with an id outside the vocabulary, or whose numbers
        are not finite, raises ValueError naming the first."""
        name = _INPUTS[self._takes_embeddings]
        shape = (self.embedding_size, self.sequence_length) if self._takes_embeddings else (self.sequence_length,)
        dtype = numpy.dtype(numpy.float32 if self._takes_embeddings else numpy.int32)
        if not isinstance(inputs, numpy.ndarray) or isinstance(inputs, numpy.ma.MaskedArray):
            raise TypeError(wrong(name, kind_of(inputs), "a NumPy array"))
        if inputs.dtype != dtype:
            raise TypeError(wrong(name, inputs.dtype, dtype))
        if inputs.shape[1:] != shape or inputs.ndim != len(shape) + 1:
            raise ValueError(wrong(name, f"shape {list(inputs.shape)}", f"[n, {', '.join(map(str, shape))}]"))
        if not inputs.flags.c_contiguous or not inputs.flags.aligned:
            raise BufferError(wrong(name, f"strides {list(inputs.strides)} bytes", "a contiguous, aligned array"))
        count = inputs.shape[0]
        logits, status = numpy.empty((count, self.num_classes), numpy.float32), numpy.zeros(count, numpy.uint8)
        pointer = self._pointer()
        with self._handle.lock:
            for begin, end in _slices(count):
                outputs = _native.new(_native.ClassifierOutputs, logits=logits[begin:end].ctypes.data,
                                      status=status[begin:end].ctypes.data)
                address = inputs[begin:end].ctypes.data
                check(lib.tessera_classifier_run(pointer, end - begin, None if self._takes_embeddings else address,
                                                 address if self._takes_embeddings else None, ctypes.byref(outputs)))
        if status.any():
            first = int(status.nonzero()[0][0])
            raise ValueError(wrong(f"{name}[{first}]", _BAD_SENTENCE.get(int(status[first]), "a bad sentence"),
                                   f"ids in 0..{self.vocab_size - 1} and finite numbers"))
        return logits


def _make(kind, arguments):
    """What a pickled Classifier becomes."""
    return kind(**arguments)
