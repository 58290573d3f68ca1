"""A pretrained sentence encoder learns the labels and then labels many new sentences, from which a student learns (distil.py).

    python3 training/teach.py --train train.tsv --lexicon training/lexicon.tsv --encoder all-mpnet-base-v2 --output run

New sentences are spans of the labelled ones, two spans joined, words exchanged for words of like meaning or for any word of the
vocabulary, everyday sentences (everyday.py) alone and joined with spans, and every word of the vocabulary on its own. `--output`
gets taught.npz: ids [N, S], target [N] (probability of "positive"), vectors [V, C] and valence [V] of the words; vocabulary.txt.
"""

import argparse
import dataclasses
import pathlib
import re
import time

import numpy as np
import torch

import data
import everyday
from encoder import Encoder, apply, fine_tune, like_length
from tokenizer import PAD_ID, PAD_TOKEN, UNKNOWN_TOKEN, tokenize

JOINERS = ("and", "but", ",", ".", "which", "while", "although", "yet", "with", "!")
BEGIN = time.time()


@dataclasses.dataclass
class TeachConfig:
    sequence_length: int = 56
    teachers: int = 2
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 6e-5
    everyday_taught: int = 6000  # everyday sentences that the teachers learn from
    everyday_pool: int = 70000
    span_factor: int = 16  # augmented versions of each labelled sentence
    exchange_factor: int = 8  # versions with words exchanged for neighbours
    semantic_channels: int = 40
    tuned_channels: int = 16
    smoothing: float = 0.05
    hard_weight: float = 0.3  # of a label, against the teachers, in the target of a labelled sentence
    pattern_weight: float = 0.4  # of a pattern's probability, likewise


def log(*parts):
    print(f"[{time.time() - BEGIN:6.1f}]", *parts, flush=True)


def written(tokens):
    """Tokens as a person would write them: the encoder has read real text."""
    text = " ".join(tokens)
    if "'" in text:
        text = re.sub(r" ' (s|t|re|ve|ll|d|m)\b", r"'\1", text)
    for mark in ".,!?)":
        text = text.replace(" " + mark, mark)
    return text.replace("( ", "(")


def encoder_words(encoder):
    """Whole words of the encoder's own vocabulary: common English words."""
    return {word for word in encoder.tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 1}


@dataclasses.dataclass
class Words:
    vocabulary: list
    vectors: torch.Tensor  # fp32 [V, C] of the encoder before it is tuned
    neighbours: torch.Tensor  # int64 [V, 8]
    exchangeable: torch.Tensor  # bool [V]: content words
    polar: torch.Tensor  # int64: words of the lexicon with a clear valence
    any: torch.Tensor  # int64: every content word
    joiners: torch.Tensor

    def text(self, ids):
        ids = ids.cpu()
        lengths = (ids != PAD_ID).sum(1).tolist()
        return [written([self.vocabulary[i] for i in row[:n]]) for row, n in zip(ids.tolist(), lengths)]


def know_words(encoder, vocabulary, lexicon, device):
    vectors = apply(encoder, like_length(encoder, vocabulary), encoder.embed).to(device)
    unit = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    neighbours = torch.cat([(part @ unit.T).topk(9, 1).indices[:, 1:] for part in unit.split(2048)])
    roles = {word for words in data.ROLES.values() for word in words.split()}
    function_words = set("a an the of to in on at by for from as is are was were be been it its he she they we i you this that these "
                         "those his her their my our your and or if who what when where how why has have had do does did s t".split())
    content = [word.isalpha() and word not in roles and word not in function_words for word in vocabulary]
    ids = {word: i for i, word in enumerate(vocabulary)}
    polar = torch.tensor([ids[word] for word, valence in lexicon.items() if abs(valence) >= 0.3], device=device)
    exchangeable = torch.tensor(content, device=device)
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
    for pool, chosen in ((words.any, draw < rate), (words.polar, (draw >= rate) & (draw < 2 * rate))):
        new = pool[torch.randint(len(pool), ids.shape, generator=generator, device=ids.device)]
        out = torch.where(chosen & torch.isin(ids, words.polar), new, out)
    return out


def join(first, second, words, generator):
    joiner = words.joiners[torch.randint(len(words.joiners), (len(first), 1), generator=generator, device=first.device)]
    both = torch.cat([first, joiner, second], 1)
    return data.compact(both, both != PAD_ID)[:, : first.shape[1]]


def new_sentences(labelled, chat, words, config, generator):
    """labelled [n, S], chat [m, S] (everyday sentences) -> ids [N, S] without targets."""
    def any_of(ids, count):
        return ids[torch.randint(len(ids), (count,), generator=generator, device=ids.device)]

    spans = data.augment(labelled.repeat(config.span_factor, 1), words.joiners, words.polar, generator)
    near = labelled.repeat(config.exchange_factor, 1)
    near = exchange(torch.cat([near, data.random_span(near, 4, generator)]), words, 0.3, generator)
    half = len(chat) // 2
    mixed = join(any_of(chat, half), data.random_span(any_of(labelled, half), 3, generator), words, generator)
    alone = torch.full((len(words.vocabulary), chat.shape[1]), PAD_ID, device=chat.device)
    alone[:, 0] = torch.arange(len(alone), device=chat.device)
    return torch.cat([
        spans, near, exchange_polar(any_of(chat, 2 * len(chat)), words, 0.35, generator),
        exchange(any_of(chat, half), words, 0.3, generator), mixed,
        join(data.random_span(any_of(labelled, half), 3, generator), any_of(chat, half), words, generator), alone,
    ])


def principal(vectors, channels):
    """Principal components; the first has unit variance, the others the root of their share, so that few do not drown the rest."""
    centred = vectors - vectors.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    projected = centred @ axes.flip(1)[:, :channels]
    return projected / (projected.std(0) * projected.std(0)[0]).sqrt()


def taught_encoders(args, config, texts, targets, words, generator):
    """-> tuned encoders, one a seed; the tuned one's view of the words goes into `views`."""
    encoders, views = [], []
    vocabulary = like_length(Encoder.pretrained(args.encoder), words.vocabulary)
    for seed in range(config.teachers):
        torch.manual_seed(args.seed + seed)
        encoder = Encoder.pretrained(args.encoder).to(args.device)
        order = torch.Generator().manual_seed(args.seed + seed)
        fine_tune(encoder, texts, targets, config.epochs, order, config.learning_rate, batch_size=config.batch_size, log=log)
        views.append(apply(encoder, vocabulary, lambda ids, tuned=encoder: torch.tanh(tuned.hidden(tuned.embed(ids)))))
        encoders.append(encoder)
    return encoders, torch.cat(views, 1).to(args.device)


def mean_logit(encoders, texts):
    batches = like_length(encoders[0], texts)
    return torch.stack([apply(encoder, batches, encoder) for encoder in encoders]).mean(0)


def load_chat(args, config):
    """Everyday sentences as tokens with their probabilities, none too near to a judged file."""
    made = {tuple(tokenize(text)): p for text, p in reversed(everyday.sentences(config.everyday_pool, args.seed))}
    chat = list(reversed(made.items()))
    judged = [tokenize(line.split("\t", 1)[1]) for path in args.judged for line in path.read_text("utf-8").splitlines()]
    leaked = set(everyday.leaks([tokens for tokens, _ in chat], judged)) if judged else set()
    log(f"everyday: {len(chat)} sentences, {len(leaked)} too near to a judged one")
    return [each for i, each in enumerate(chat) if i not in leaked]


def teach(args, config):
    device = torch.device(args.device)
    generator = torch.Generator(device).manual_seed(args.seed)
    sentences, labels = data.load_tsv(args.train)
    chat = load_chat(args, config)
    lexicon = data.load_lexicon(args.lexicon)
    untuned = Encoder.pretrained(args.encoder).to(device)
    known = {token for tokens, _ in chat for token in tokens} | encoder_words(untuned)
    known |= set(data.build_vocabulary(sentences, lexicon)) | set(JOINERS)
    vocabulary = [UNKNOWN_TOKEN, PAD_TOKEN, *sorted(known - {UNKNOWN_TOKEN, PAD_TOKEN})]
    words = know_words(untuned, vocabulary, lexicon, device)
    del untuned
    log(f"{len(vocabulary)} words; nearest to film: {[vocabulary[i] for i in words.neighbours[vocabulary.index('film')][:5]]}")
    held = data.split_folds(len(sentences), 10, args.seed)[0] if args.hold_out else torch.tensor([], dtype=torch.long)
    kept = torch.ones(len(sentences), dtype=torch.bool)
    kept[held] = False
    ids = data.encode_all(sentences, vocabulary, config.sequence_length).to(device)
    labels = torch.tensor(labels, dtype=torch.float32)
    fit_ids, fit_labels = ids[kept.to(device)], labels[kept]
    chat_ids = data.encode_all([tokens for tokens, _ in chat], vocabulary, config.sequence_length).to(device)
    chat_labels = torch.tensor([p for _, p in chat])
    # A third with a full stop, as people type.
    stopped = data.append_full_stop(fit_ids, vocabulary.index("."), 0.33, generator)
    texts = words.text(stopped) + words.text(chat_ids[: config.everyday_taught])
    targets = torch.cat([fit_labels * (1 - 2 * config.smoothing) + config.smoothing, chat_labels[: config.everyday_taught]])
    encoders, views = taught_encoders(args, config, texts, targets, words, generator)
    for name, path, first in args.reports:
        report(name, path, first, encoders)
    if len(held):
        right = (mean_logit(encoders, words.text(ids[held.to(device)])) > 0) == labels[held].bool()
        log(f"teachers: held out {100 * right.float().mean():.2f} %")
    pool = new_sentences(fit_ids, chat_ids, words, config, generator)
    log(f"{len(pool)} new sentences")
    pool_target = mean_logit(encoders, words.text(pool)).sigmoid()
    log("labelled")
    fit_target = config.hard_weight * fit_labels + (1 - config.hard_weight) * mean_logit(encoders, words.text(fit_ids)).sigmoid()
    chat_target = mean_logit(encoders, words.text(chat_ids)).sigmoid()
    chat_target = config.pattern_weight * chat_labels + (1 - config.pattern_weight) * chat_target
    valence = mean_logit(encoders, vocabulary)
    valence[: PAD_ID + 1] = 0
    vectors = torch.cat([principal(words.vectors, config.semantic_channels), principal(views, config.tuned_channels)], 1)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    result = {"ids": torch.cat([fit_ids, chat_ids, pool]).cpu().numpy().astype(np.uint16),
              "target": torch.cat([fit_target, chat_target, pool_target]).numpy().astype(np.float16),
              "labelled": np.array([len(fit_ids), len(chat_ids)]), "held": held.numpy(),
              "vectors": vectors.cpu().numpy().astype(np.float16), "valence": valence.numpy().astype(np.float16)}
    return result


def report(name, path, label_first, encoders):
    lines = [line.split("\t", 1) if label_first else line.rsplit("\t", 1)[::-1] for line in path.read_text("utf-8").splitlines()]
    label = torch.tensor([label in ("1", "positive") for label, _ in lines])
    batches = like_length(encoders[0], [written(tokenize(text)) for _, text in lines])
    logits = torch.stack([apply(encoder, batches, encoder) for encoder in encoders])
    each = [round(100 * ((one > 0) == label).float().mean().item(), 2) for one in logits]
    log(f"teachers: {name} {100 * ((logits.mean(0) > 0) == label).float().mean():.2f} %, each {each}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="lines `sentence<TAB>label`")
    parser.add_argument("--lexicon", required=True, help="lines `word<TAB>valence`")
    parser.add_argument("--encoder", required=True, type=pathlib.Path, help="folder of the pretrained encoder")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("run"))
    parser.add_argument("--judged", nargs="*", type=pathlib.Path, default=[], metavar="TSV",
                        help="lines `label<TAB>sentence`; made sentences near to one are left out")
    parser.add_argument("--hold-out", action="store_true", help="leave a tenth of the labelled sentences out, to choose settings by")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of TeachConfig")
    args = parser.parse_args()
    args.reports = [(path.stem, path, True) for path in args.judged]
    return args


def main():
    from train import apply_settings

    args, config = parse_arguments(), TeachConfig()
    apply_settings(args.set, config)
    torch.set_float32_matmul_precision("high")
    np.savez_compressed(args.output / "taught.npz", **teach(args, config))
    log("done")


if __name__ == "__main__":
    main()
