"""New sentences without labels: spans, joined spans, exchanged words. All of token ids, on the device of the generator.

    words = know_words(encoder, vocabulary, lexicon, device)
    ids = new_sentences(labelled, chat, text, words, config, generator)
"""

import dataclasses
import multiprocessing
import os
import re

import numpy as np
import torch

import data
from encoder import LONGEST, apply, like_length
from tokenizer import PAD_ID

JOINERS = ("and", "but", ",", ".", "which", "while", "although", "yet", "with", "!")
FUNCTION_WORDS = set("a an the of to in on at by for from as is are was were be been it its he she they we i you this that these those "
                     "his her their my our your and or if who what when where how why has have had do does did s t".split())


def written(tokens):
    """Tokens as a person would write them: the encoder has read real text."""
    text = " ".join(tokens)
    if "'" in text:
        text = re.sub(r" ' (s|t|re|ve|ll|d|m)\b", r"'\1", text)
    for mark in ".,!?)":
        text = text.replace(" " + mark, mark)
    return text.replace("( ", "(")


class Writers:
    """Processes that turn rows of token ids into rows of the encoder's word pieces. Made before CUDA is first used: they fork."""

    def __init__(self, vocabulary, tokenizer_file, processes=None):
        context = multiprocessing.get_context("fork")
        self.pool = context.Pool(processes or os.cpu_count(), self.begin, (vocabulary, str(tokenizer_file)))

    @staticmethod
    def begin(vocabulary, tokenizer_file):
        from tokenizers import Tokenizer

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        global _vocabulary, _tokenizer
        _vocabulary, _tokenizer = vocabulary, Tokenizer.from_file(tokenizer_file)
        _tokenizer.no_padding()
        _tokenizer.enable_truncation(LONGEST)

    @staticmethod
    def pieces(ids):
        texts = [written([_vocabulary[i] for i in row if i != PAD_ID]) for row in ids.tolist()]
        rows = [encoding.ids for encoding in _tokenizer.encode_batch(texts)]
        return np.array([piece for row in rows for piece in row], dtype=np.uint16), np.array([len(row) for row in rows])

    def start(self, ids):
        """Begins the work on ids [n, S]; `rows` of what it returns waits for it."""
        array = ids.cpu().numpy().astype(np.uint16)
        return self.pool.map_async(self.pieces, np.array_split(array, max(1, len(array) // 4000)))

    @staticmethod
    def rows(started):
        return [row for flat, lengths in started.get() for row in np.split(flat, lengths.cumsum()[:-1])]


@dataclasses.dataclass
class Words:
    vocabulary: list
    vectors: torch.Tensor  # fp32 [V, C] of the encoder before it is tuned
    neighbours: torch.Tensor  # int64 [V, 8]
    exchangeable: torch.Tensor  # bool [V]: content words
    polar: torch.Tensor  # int64: words of the lexicon with a clear valence
    any: torch.Tensor  # int64: every content word
    joiners: torch.Tensor


def know_words(encoder, vocabulary, lexicon, device):
    vectors = apply(encoder, like_length(encoder.encode(vocabulary)), encoder.embed).to(device)
    unit = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    neighbours = torch.cat([(part @ unit.T).topk(9, 1).indices[:, 1:] for part in unit.split(2048)])
    left = FUNCTION_WORDS | {word for words in data.ROLES.values() for word in words.split()}
    exchangeable = torch.tensor([word.isalpha() and word not in left for word in vocabulary], device=device)
    ids = {word: i for i, word in enumerate(vocabulary)}
    polar = torch.tensor([ids[word] for word, valence in lexicon.items() if abs(valence) >= 0.3], device=device)
    joiners = torch.tensor([ids[word] for word in JOINERS], device=device)
    return Words(vocabulary, vectors, neighbours, exchangeable, polar, exchangeable.nonzero()[:, 0], joiners)


def exchange(ids, words, rate, generator):
    """Some content words become one of their eight nearest neighbours."""
    draw = torch.rand(ids.shape, generator=generator, device=ids.device)
    pick = torch.randint(8, ids.shape, generator=generator, device=ids.device)
    return torch.where((draw < rate) & words.exchangeable[ids], words.neighbours[ids, pick], ids)


def exchange_polar(ids, words, rate, generator):
    """Some polar words become any word at all, or any polar word."""
    draw = torch.rand(ids.shape, generator=generator, device=ids.device)
    out = ids
    for among, chosen in ((words.any, draw < rate), (words.polar, (draw >= rate) & (draw < 2 * rate))):
        new = among[torch.randint(len(among), ids.shape, generator=generator, device=ids.device)]
        out = torch.where(chosen & torch.isin(ids, words.polar), new, out)
    return out


def any_of(ids, count, generator):
    return ids[torch.randint(len(ids), (count,), generator=generator, device=ids.device)]


def join(first, second, words, generator):
    joiner = any_of(words.joiners, len(first), generator)[:, None]
    both = torch.cat([first, joiner, second], 1)
    return data.compact(both, both != PAD_ID)[:, : first.shape[1]]


def new_sentences(labelled, chat, text, words, config, generator):
    """labelled [n, S], chat [m, S] (everyday sentences), text [p, S] (prose) -> ids [N, S]."""
    near = labelled.repeat(config.exchange_factor, 1)
    near = exchange(torch.cat([near, data.random_span(near, 4, generator)]), words, 0.3, generator)
    half = len(chat) // 2

    def spans(count):
        return data.random_span(any_of(labelled, count, generator), 3, generator)

    def some(ids, count=half):
        return any_of(ids, count, generator)

    alone = torch.full((len(words.vocabulary), chat.shape[1]), PAD_ID, device=chat.device)
    alone[:, 0] = torch.arange(len(alone), device=chat.device)
    parts = [data.augment(labelled.repeat(config.span_factor, 1), words.joiners, words.polar, generator), near,
             exchange_polar(some(chat, 2 * len(chat)), words, 0.35, generator), exchange(some(chat), words, 0.3, generator),
             join(some(chat), spans(half), words, generator), join(spans(half), some(chat), words, generator), alone]
    if len(text):
        parts += [text, exchange(text, words, 0.3, generator), exchange(text, words, 0.5, generator),
                  join(some(text), some(chat), words, generator), join(some(chat), some(text), words, generator),
                  join(some(text), spans(half), words, generator)]
    return torch.cat(parts)
