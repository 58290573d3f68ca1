"""Sentences as people type them about films, made from the patterns of everyday.txt, each with the probability that it is praise.

    for text, probability in sentences(20000, seed=1): ...

The labelled file has critics' prose: hardly any negation of one word, no star ratings, no small talk. `leaks` finds made sentences
that are too near to some of a file which a model is judged on.
"""

import collections
import math
import pathlib
import random
import re

PATTERNS = pathlib.Path(__file__).resolve().parent / "everyday.txt"
SLOT = re.compile(r"\{(\w+)\}")
ENDINGS = [".", "!", "", "", "...", "!!", "."]
OPENINGS = ["honestly , ", "well , ", "so , ", "in short , ", "sorry , but ", "i think ", "in my opinion , ", "ok , ", "and ", "overall , ",
            "yes , ", "no joke , ", "really , ", "to be honest , ", "look , ", "all in all , ", "in the end , ", "wow , ", "ok so "]
JOINS = [" . ", " , ", " . and ", " ! ", " ; ", " and ", " - "]


def parse(path=PATTERNS):
    """-> {name: words}, [(probability, pattern)]; a line that starts with spaces goes on with the one before."""
    words, patterns, name = {}, [], None
    for line in path.read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if " | " in line:
            probability, pattern = line.split(" | ")
            patterns.append((float(probability), pattern))
        elif " = " in line:
            name, words[name] = line.split(" = ")
        else:
            words[name] += " " + line.strip()
    return {name: [word.strip() for word in each.split("/")] for name, each in words.items()}, patterns


def fill(pattern, words, random_):
    while "{" in pattern:
        pattern = SLOT.sub(lambda match: random_.choice(words[match[1]]), pattern)
    return pattern


def sentences(count, seed):
    """[(text, probability of praise)]; some are two or three of like value joined, as people go on about the same thing."""
    random_ = random.Random(seed)
    words, patterns = parse()
    # A pattern with slots can say many things: it is drawn more often than one without.
    weights = [1 + 2 * pattern.count("{") for _, pattern in patterns]

    def one():
        probability, pattern = random_.choices(patterns, weights)[0]
        return fill(pattern, words, random_), probability

    out = []
    while len(out) < count:
        text, probability = one()
        while random_.random() < 0.25:
            more, other = one()
            if abs(probability - other) < 0.2 or abs(other - 0.5) < 0.1:
                text = text + random_.choice(JOINS) + more
                probability = max(probability, other, key=lambda p: abs(p - 0.5))
        if random_.random() < 0.15:
            text = random_.choice(OPENINGS) + text
        out.append((text + random_.choice(ENDINGS), probability))
    return out


def runs(tokens, length):
    return {tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)}


def bare(tokens):
    return [token for token in tokens if any(c.isalnum() for c in token)]


def leaks(token_lists, judged, length=5, overlap=0.6):
    """Positions of `token_lists` too near to one of `judged`: a common run of `length` words, or most of the words the same."""
    judged = [bare(tokens) for tokens in judged]
    judged_runs = set().union(*(runs(tokens, length) for tokens in judged))
    sets = [set(tokens) for tokens in judged if tokens]
    frequency = collections.Counter(word for each in sets for word in each)

    def rarest(words):
        """Two sets that overlap so much have one of these in common: as many as may be missing, and one more."""
        ordered = sorted(words, key=lambda word: (frequency[word], word))
        return ordered[: len(words) - math.ceil(overlap * len(words)) + 1]

    by_word = collections.defaultdict(list)
    for each in sets:
        for word in rarest(each):
            by_word[word].append(each)
    found = []
    for position, tokens in enumerate(token_lists):
        tokens = bare(tokens)
        own = set(tokens)
        near = not judged_runs.isdisjoint(runs(tokens, length)) or any(
            len(own & each) >= overlap * len(own | each) for word in rarest(own) for each in by_word.get(word, ())
        )
        if near:
            found.append(position)
    return found
