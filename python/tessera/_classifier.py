"""The text classifier: options read, texts and arrays checked, one run at a time."""

import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy

from . import _native
from ._moe import choice, integer, real
from ._native import CPU, check, lib, use_cuda, wrong

_INPUTS = ("ids", "embeddings")
_BAD_SENTENCE = {1: "an id outside the vocabulary", 2: "numbers that are not finite"}


class Prediction(NamedTuple):
    label: str
    score: float
    probabilities: tuple[float, ...]


def _read_device(device):
    """The number of a device from "auto", "cpu", "cuda" or "cuda:1"."""
    if not isinstance(device, str):
        raise TypeError(wrong("device", type(device).__name__, "a str: auto, cpu, cuda, cuda:1"))
    if device == "auto":
        return next((index for index in range(_native.num_devices()) if lib.tessera_device_check(index) == 0), CPU)
    if device == "cpu":
        return CPU
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise ValueError(wrong("device", repr(device), "auto, cpu, cuda, cuda:1"))
    use_cuda()
    return int(index or 0)


class Classifier:
    """A text classifier from a checkpoint directory. The type stubs say all of it."""

    def __init__(self, path, *, device="auto", precision="default", input="ids", form="auto", expert_threshold=0.0,
                 micro_batch=0, num_threads=0):
        try:
            self._path = os.fsencode(path)
        except TypeError:
            raise TypeError(wrong("path", type(path).__name__, "a str or os.PathLike: a directory")) from None
        if not isinstance(form, str):
            raise TypeError(wrong("form", type(form).__name__, "a str"))
        if real("expert_threshold", expert_threshold) < 0:
            raise ValueError(wrong("expert_threshold", expert_threshold, "at least 0"))
        self._takes_embeddings = choice("input", input, _INPUTS) == 1
        self._options = _native.new(
            _native.ClassifierOptions, precision=choice("precision", precision, _native.PRECISIONS),
            takes_embeddings=int(self._takes_embeddings), num_threads=integer("num_threads", num_threads, 0, 1024),
            micro_batch=integer("micro_batch", micro_batch, 0, 2**62), form=form.encode(),
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
            lib.tessera_classifier_destroy)

    def _pointer(self):
        if not self._handle.pointer:
            self._load()
        return self._handle.pointer

    def __call__(self, texts):
        """One prediction for one text, a list for a sequence of them."""
        if self._takes_embeddings:
            raise ValueError(wrong("texts", "text", "input='ids': this classifier was loaded for embeddings"))
        single = isinstance(texts, str)
        numbers = self.logits(self.tokenize([texts] if single else texts)).astype(numpy.float64)
        numbers = numpy.exp(numbers - numbers.max(axis=1, keepdims=True))
        numbers /= numbers.sum(axis=1, keepdims=True)
        predictions = [Prediction(self.class_names[row.argmax()], float(row.max()), tuple(row.tolist()))
                       for row in numbers]
        return predictions[0] if single else predictions

    def tokenize(self, texts):
        """Token ids [len(texts), sequence_length] int32."""
        if isinstance(texts, (str, bytes)) or not isinstance(texts, (Sequence, numpy.ndarray)):
            raise TypeError(wrong("texts", type(texts).__name__, "a sequence of str"))
        encoded = []
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(wrong(f"texts[{number}]", type(text).__name__, "a str"))
            try:
                encoded.append(text.encode())
            except UnicodeEncodeError as error:
                raise ValueError(wrong(f"texts[{number}]", f"half of a character at {error.start}", "text")) from None
        count = len(encoded)
        ids = numpy.empty((count, self.sequence_length), numpy.int32)
        check(lib.tessera_classifier_tokenize(
            self._pointer(), (ctypes.c_char_p * count)(*encoded), (ctypes.c_size_t * count)(*map(len, encoded)), count,
            ids.ctypes.data))
        return ids

    def logits(self, inputs):
        """Logits [n, num_classes] float32 of ids [n, sequence_length] int32, or of embeddings [n, embedding_size,
        sequence_length] float32 for input="embeddings"."""
        name = _INPUTS[self._takes_embeddings]
        shape = (self.embedding_size, self.sequence_length) if self._takes_embeddings else (self.sequence_length,)
        dtype = numpy.dtype(numpy.float32 if self._takes_embeddings else numpy.int32)
        if not isinstance(inputs, numpy.ndarray) or isinstance(inputs, numpy.ma.MaskedArray):
            raise TypeError(wrong(name, type(inputs).__name__, "a NumPy array"))
        if inputs.dtype != dtype:
            raise TypeError(wrong(name, inputs.dtype, dtype))
        if inputs.shape[1:] != shape or inputs.ndim != len(shape) + 1:
            raise ValueError(wrong(name, f"shape {list(inputs.shape)}", f"[n, {', '.join(map(str, shape))}]"))
        if not inputs.flags.c_contiguous or not inputs.flags.aligned:
            raise BufferError(wrong(name, f"strides {list(inputs.strides)} bytes", "a contiguous, aligned array"))
        count = inputs.shape[0]
        logits, status = numpy.empty((count, self.num_classes), numpy.float32), numpy.zeros(count, numpy.uint8)
        outputs = _native.new(_native.ClassifierOutputs, logits=logits.ctypes.data, status=status.ctypes.data)
        address = inputs.ctypes.data if count else None
        pointer = self._pointer()
        with self._handle.lock:
            check(lib.tessera_classifier_run(pointer, count, None if self._takes_embeddings else address,
                                             address if self._takes_embeddings else None, ctypes.byref(outputs)))
        if status.any():
            first = int(status.nonzero()[0][0])
            raise ValueError(wrong(f"{name}[{first}]", _BAD_SENTENCE.get(int(status[first]), "a bad sentence"),
                                   f"ids in 0..{self.vocab_size - 1} and finite numbers"))
        return logits
