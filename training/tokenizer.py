"""Text to tokens and token ids: the Python twin of the C++ tokenizer.

    tokens = tokenize("It wasn't bad.", "reviews")   # it wasn ' t bad .
    ids = encode(tokens, token_ids, sequence_length=56)

Both implementations must agree token for token; `test_tokenizer.py` is the table
of cases that defines the behaviour. Only the standard library is used.
"""

import re

UNKNOWN_ID = 0
PAD_ID = 1
UNKNOWN_TOKEN = "<unk>"
PAD_TOKEN = "<pad>"


def _folding_table():
    """Code point -> ASCII replacement, for the typography that people and editors type."""
    table = {}
    groups = {
        "'": (0x2018, 0x2019, 0x201A, 0x2032, 0x02BC),
        '"': (0x201C, 0x201D, 0x201E, 0x2033, 0x00AB, 0x00BB),
        "-": (*range(0x2010, 0x2016), 0x2212),
        "...": (0x2026,),
        " ": (0x00A0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000),
        "": (0x200B, 0xFEFF, 0x00AD),
    }
    for replacement, code_points in groups.items():
        table.update(dict.fromkeys(code_points, replacement))
    return table


FOLDING = _folding_table()

# Words that the Penn Treebank writes in two pieces.
TREEBANK_PAIRS = frozenset(
    {("gon", "na"), ("wan", "na"), ("got", "ta"), ("gim", "me"), ("lem", "me"), ("can", "not")}
)
TREEBANK_BRACKETS = {"-lrb-": "(", "-rrb-": ")"}

# torchtext's basic_english, in its order. A dot inside a number is split too.
BASIC_ENGLISH_RULES = (
    ("'", " '  "),
    ('"', ""),
    (".", " . "),
    ("<br />", " "),
    (",", " , "),
    ("(", " ( "),
    (")", " ) "),
    ("!", " ! "),
    ("?", " ? "),
    (";", " "),
    (":", " "),
)


def lower(text):
    """Lower-case code point by code point.

    Where the lower-case form is longer than one code point (only U+0130) the character
    stays, and no rule looks at its neighbours (a capital sigma always gives U+03C3), so
    that a table of code points is a complete implementation.
    """
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def fold_typography(text):
    return text.translate(FOLDING)


def undo_treebank(text):
    """Lower-case Penn Treebank text back to how people write it; other text is unchanged.

    's 're 've 'll 'd 'm stay apart: basic_english splits at every apostrophe anyway.
    """
    text = text.replace("``", '"').replace("''", '"').replace("`", "'")
    words = []
    for word in text.split():
        word = TREEBANK_BRACKETS.get(word, word)
        glued = words and (word == "n't" or (words[-1], word) in TREEBANK_PAIRS)
        if glued:
            words[-1] += word
        else:
            words.append(word)
    return " ".join(words)


def normalize_reviews(text):
    """The "reviews" normalisation: typography, case, Treebank, hyphens, in this order."""
    text = undo_treebank(lower(fold_typography(text)))
    # The labelled sentences have no hyphens (`bug eyed monsters`) while people type them.
    return text.replace("-", " ")


def basic_english(text):
    """torchtext's basic_english tokenizer."""
    text = lower(text)
    for old, new in BASIC_ENGLISH_RULES:
        text = text.replace(old, new)
    return text.split()


def tokenize(text, text_normalization="reviews"):
    if text_normalization == "reviews":
        return basic_english(normalize_reviews(text))
    if text_normalization == "none":
        return basic_english(text)
    raise ValueError(f"unknown text_normalization {text_normalization!r}")


def encode(tokens, token_ids, sequence_length):
    """Ids of the first `sequence_length` tokens, padded at the end with PAD_ID."""
    ids = [token_ids.get(token, UNKNOWN_ID) for token in tokens[:sequence_length]]
    return ids + [PAD_ID] * (sequence_length - len(ids))
