"""Sentences, vocabulary, word statistics and augmentation.

Everything a word is known by before training is a *fixed channel* of its embedding:
the naive-Bayes log-count ratio, the hand-written valence, and the word's role
(negation, intensifier, ...). Words that the training text never contains keep these.
"""

import torch

from tokenizer import PAD_ID, PAD_TOKEN, UNKNOWN_TOKEN, encode, tokenize

# Function words whose effect on their neighbours a small training set shows too rarely.
# The apostrophe is a token of its own, so "isn't" is known by its first piece.
ROLES = {
    "negation": (
        "not no never nor neither nothing none nobody nowhere cannot without hardly barely scarcely "
        "isn wasn aren weren don doesn didn couldn wouldn shouldn hasn haven hadn ain mustn needn"
    ),
    "intensifier": (
        "very so too really truly quite extremely incredibly absolutely completely totally utterly "
        "thoroughly highly deeply hugely immensely exceptionally remarkably particularly especially "
        "such most more much all far way entirely wholly downright genuinely supremely"
    ),
    "diminisher": (
        "somewhat slightly little bit rather fairly merely only just almost nearly less least mildly "
        "partly kind sort occasionally sometimes sporadically relatively half semi moderately"
    ),
    "contrast": (
        "but although though however yet despite while whereas nevertheless nonetheless still "
        "instead unless except if would could should might may supposed"
    ),
}
# log-count ratio, positive valence, negative valence, the roles, "is a word"
NUM_FIXED_CHANNELS = 4 + len(ROLES)

# The labelled sentences write round brackets as the bare words lrb and rrb: the hyphens of
# the Treebank's -LRB- were lost in them. Both spellings share one embedding row.
ALIASES = {"lrb": "(", "rrb": ")"}

# Tokens that people type and the labelled sentences lack: they end without a full stop.
EXTRA_TOKENS = (".", "!", "?", ",", "(", ")", "'")


def load_tsv(path):
    """Lines `sentence<TAB>label` -> (list of token lists, list of 0/1 labels)."""
    sentences, labels = [], []
    with open(path, encoding="utf-8") as file:
        for line in file:
            text, label = line.rstrip("\n").rsplit("\t", 1)
            sentences.append([ALIASES.get(token, token) for token in tokenize(text)])
            labels.append(int(label))
    return sentences, labels


def load_lexicon(path):
    """Lines `word<TAB>valence` -> {word: valence in [-1, 1]}."""
    with open(path, encoding="utf-8") as file:
        return {word: float(valence) for word, valence in (line.split("\t") for line in file)}


def build_vocabulary(sentences, lexicon):
    """Token list, position = id; alphabetical after the two special tokens."""
    words = {token for sentence in sentences for token in sentence}
    words.update(lexicon, EXTRA_TOKENS, *(role.split() for role in ROLES.values()))
    return [UNKNOWN_TOKEN, PAD_TOKEN, *sorted(words - {UNKNOWN_TOKEN, PAD_TOKEN})]


def encode_all(sentences, vocabulary, sequence_length):
    """int64 [num_sentences, sequence_length]."""
    token_ids = {token: i for i, token in enumerate(vocabulary)}
    return torch.tensor([encode(sentence, token_ids, sequence_length) for sentence in sentences])


def word_channels(vocabulary, lexicon):
    """fp32 [V, NUM_FIXED_CHANNELS - 1]: every fixed channel but the log-count ratio."""
    roles = [set(words.split()) for words in ROLES.values()]
    rows = []
    for word in vocabulary:
        valence = lexicon.get(word, 0.0)
        row = [max(valence, 0.0), max(-valence, 0.0), *(float(word in role) for role in roles)]
        rows.append(row + [0.0 if word == PAD_TOKEN else 1.0])
    return torch.tensor(rows)


def count_words(ids, weights, vocab_size):
    """Sum of sentence weights over the sentences that contain each word: fp32 [V]."""
    presence = torch.zeros(len(ids), vocab_size, device=ids.device)
    presence.scatter_(1, ids, 1.0)
    return weights @ presence


def log_count_ratio(positive, negative):
    """Naive-Bayes evidence of each word from its class counts [..., V], add-one smoothed.

    A word without evidence gets 0, special tokens included.
    """
    ratio = ((positive + 1) / (positive.sum(-1, keepdim=True) + 1)).log()
    ratio = ratio - ((negative + 1) / (negative.sum(-1, keepdim=True) + 1)).log()
    ratio = ratio * (positive + negative > 0)
    ratio[..., :PAD_ID + 1] = 0
    return ratio


def cross_fitted_ratios(ids, labels, inner_fold, num_inner_folds, vocab_size):
    """fp32 [num_inner_folds + 1, V]: row j leaves inner fold j out, the last row nothing.

    A sentence is trained with the row that leaves it out. Otherwise the channel would carry
    the sentence's own label: a word that occurs once would give it away.
    """
    labels = labels.float()
    counts = []
    for weights in (labels, 1 - labels):
        per_fold = torch.stack(
            [count_words(ids, weights * (inner_fold == j), vocab_size) for j in range(num_inner_folds)]
        )
        total = per_fold.sum(0, keepdim=True)
        counts.append(torch.cat([total - per_fold, total]))
    return log_count_ratio(*counts)


def cooccurrence_vectors(ids, vocab_size, num_channels, window=4):
    """fp32 [V, num_channels]: singular vectors of the positive pointwise mutual information.

    Needs no labels. Pairs at distance d <= window count 1/d; unit variance over seen words.
    """
    counts = torch.zeros(vocab_size * vocab_size, device=ids.device)
    for distance in range(1, window + 1):
        pair = ids[:, :-distance] * vocab_size + ids[:, distance:]
        pair = pair[(ids[:, :-distance] > PAD_ID) & (ids[:, distance:] > PAD_ID)]
        counts += torch.bincount(pair, minlength=vocab_size**2) / distance
    counts = counts.view(vocab_size, vocab_size)
    counts = counts + counts.T
    occurrences = counts.sum(1)
    # The 0.75 power keeps rare contexts from dominating.
    context = occurrences**0.75
    expected = occurrences[:, None] * (context / context.sum())[None, :]
    information = (counts / expected.clamp_min(1e-9)).clamp_min(1.0).log()
    torch.manual_seed(0)
    left, singular, _ = torch.svd_lowrank(information, q=num_channels + 8, niter=4)
    vectors = left[:, :num_channels] * singular[:num_channels].sqrt()
    seen = occurrences > 0
    return vectors / vectors[seen].std(0).clamp_min(1e-6)


def compact(ids, keep):
    """Removes the tokens whose `keep` is false and closes the gaps."""
    keep = keep & (ids != PAD_ID)
    order = torch.argsort((~keep).int(), dim=1, stable=True)
    return torch.where(keep, ids, PAD_ID).gather(1, order)


def random_span(ids, min_length, generator):
    """A random run of at least `min_length` tokens of each sentence, left-aligned."""
    lengths = (ids != PAD_ID).sum(1)
    draw = torch.rand(2, len(ids), generator=generator, device=ids.device)
    shortest = lengths.clamp_max(min_length)
    span = shortest + (draw[0] * (lengths - shortest + 1)).long()
    start = (draw[1] * (lengths - span + 1)).long()
    position = torch.arange(ids.shape[1], device=ids.device)
    inside = (position >= start[:, None]) & (position < (start + span)[:, None])
    return compact(ids, inside)


def augment(ids, joiners, polar_words, generator):
    """New sentences for the teachers to label: int64 like `ids` [n, S].

    Half are spans; half are a span, a joining word and a span of another sentence. Then
    words are dropped, and polar words are exchanged for others of the lexicon, so that the
    student sees words that the labelled text never contains.
    """
    n, sequence_length = ids.shape
    device = ids.device

    def rand(*shape):
        return torch.rand(*shape, generator=generator, device=device)

    other = ids[torch.randperm(n, generator=generator, device=device)]
    joiner = joiners[(rand(n) * len(joiners)).long()][:, None]
    pair = torch.cat([random_span(ids, 3, generator), joiner, random_span(other, 3, generator)], 1)
    pair = compact(pair, pair != PAD_ID)[:, :sequence_length]
    mixed = torch.where(rand(n, 1) < 0.5, random_span(ids, 2, generator), pair)
    drop_rate = 0.3 * rand(n, 1)
    mixed = compact(mixed, rand(n, sequence_length) >= drop_rate)
    if not len(polar_words):
        return mixed
    is_polar = torch.isin(mixed, polar_words) & (rand(n, sequence_length) < 0.3)
    replacement = polar_words[(rand(n, sequence_length) * len(polar_words)).long()]
    return torch.where(is_polar, replacement, mixed)


def append_full_stop(ids, full_stop_id, rate, generator):
    """Ends a share of the sentences with a full stop, as people do."""
    lengths = (ids != PAD_ID).sum(-1, keepdim=True)
    chosen = torch.rand(lengths.shape, generator=generator, device=ids.device) < rate
    chosen = chosen & (lengths < ids.shape[-1])
    last = lengths.clamp_max(ids.shape[-1] - 1)
    value = torch.where(chosen, full_stop_id, ids.gather(-1, last))
    return ids.scatter(-1, last, value)


def split_folds(num_sentences, num_folds, seed):
    """int64 [num_folds, num_sentences // num_folds]: held-out sentences of each fold."""
    generator = torch.Generator().manual_seed(seed)
    size = num_sentences // num_folds
    return torch.randperm(num_sentences, generator=generator)[: size * num_folds].view(num_folds, size)
