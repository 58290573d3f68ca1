"""A pretrained sentence encoder learns the labels and then labels many new sentences, from which a student learns (distil.py).

    python3 training/teach.py --train train.tsv --lexicon training/lexicon.tsv --encoder run/encoder --output run

New sentences (pool.py) are spans of the labelled ones, two spans joined, words exchanged for words of like meaning or for any word
of the vocabulary, everyday sentences (everyday.py), prose (prose.py) and every word of the vocabulary on its own. `--output` gets
taught.npz: ids [N, S], target [N] (probability of "positive"), vectors [V, C] and valence [V] of the words; vocabulary.txt.
"""

import argparse
import dataclasses
import pathlib
import time

import numpy as np
import torch

import data
import everyday
import prose
from encoder import Encoder, apply, fine_tune, like_length
from pool import JOINERS, Writers, know_words, new_sentences
from tokenizer import PAD_ID, PAD_TOKEN, UNKNOWN_ID, UNKNOWN_TOKEN, tokenize

BEGIN = time.time()


@dataclasses.dataclass
class TeachConfig:
    sequence_length: int = 56
    teachers: int = 1
    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 6e-5
    everyday_taught: int = 6000  # everyday sentences that the teachers learn from
    everyday_pool: int = 70000
    span_factor: int = 24  # augmented versions of each labelled sentence
    exchange_factor: int = 8  # versions with words exchanged for neighbours
    semantic_channels: int = 40
    tuned_channels: int = 16
    smoothing: float = 0.05
    hard_weight: float = 0.3  # of a label, against the teachers, in the target of a labelled sentence
    pattern_weight: float = 0.4  # of a pattern's probability, likewise


def log(*parts):
    print(f"[{time.time() - BEGIN:6.1f}]", *parts, flush=True)


def encoder_words(tokenizer_file):
    """Whole words of the encoder's own vocabulary: common English words."""
    from tokenizers import Tokenizer

    return {word for word in Tokenizer.from_file(str(tokenizer_file)).get_vocab() if word.isascii() and word.isalpha() and len(word) > 1}


@dataclasses.dataclass
class Texts:
    """What is there before any teacher: tokens are lists of words."""

    labelled: list
    labels: torch.Tensor
    chat: list
    chat_labels: torch.Tensor
    prose: list
    judged: dict  # name -> (tokens, labels)
    vocabulary: list
    lexicon: dict


def load_judged(path):
    """Lines `label<TAB>sentence` or `sentence<TAB>label` -> tokens, labels."""
    tokens, labels = [], []
    for line in path.read_text("utf-8").splitlines():
        first, second = line.rsplit("\t", 1) if line.endswith(("\t0", "\t1")) else reversed(line.split("\t", 1))
        tokens.append([data.ALIASES.get(token, token) for token in tokenize(first)])
        labels.append(second in ("1", "positive"))
    return tokens, torch.tensor(labels)


def load_texts(args, config):
    labelled, labels = data.load_tsv(args.train)
    judged = {path.stem: load_judged(path) for path in args.judged}
    made = {tuple(tokenize(text)): p for text, p in reversed(everyday.sentences(config.everyday_pool, args.seed))}
    chat = list(reversed(made.items()))
    everything = [tokens for each, _ in judged.values() for tokens in each]
    leaked = set(everyday.leaks([tokens for tokens, _ in chat], everything)) if everything else set()
    log(f"everyday: {len(chat)} sentences, {len(leaked)} too near to a judged one and left out")
    chat = [each for i, each in enumerate(chat) if i not in leaked]
    text = [tokenize(sentence) for sentence in prose.sentences(args.prose)]
    leaked = set(everyday.leaks(text, everything)) if everything else set()
    log(f"prose: {len(text)} sentences, {len(leaked)} too near to a judged one and left out")
    text = [tokens for i, tokens in enumerate(text) if i not in leaked]
    lexicon = data.load_lexicon(args.lexicon)
    known = {token for tokens, _ in chat for token in tokens} | encoder_words(args.encoder / "tokenizer.json") | set(JOINERS)
    known |= set(data.build_vocabulary(labelled, lexicon))
    vocabulary = [UNKNOWN_TOKEN, PAD_TOKEN, *sorted(known - {UNKNOWN_TOKEN, PAD_TOKEN})]
    labels = torch.tensor(labels, dtype=torch.float32)
    return Texts(labelled, labels, [tokens for tokens, _ in chat], torch.tensor([p for _, p in chat]), text, judged, vocabulary, lexicon)


def not_judged(ids, texts):
    """The rows that are no judged sentence, not even one of a single word; marks do not count."""
    judged = [tokens for each, _ in texts.judged.values() for tokens in each]
    if not judged:
        return ids
    is_word = torch.tensor([any(c.isalnum() for c in word) for word in texts.vocabulary], device=ids.device)
    factors = torch.randint(1, 2**61, (ids.shape[1],), generator=torch.Generator().manual_seed(0)).to(ids.device)

    def key(rows):
        return (data.compact(rows, is_word[rows]) * factors).sum(1)

    return ids[~torch.isin(key(ids), key(data.encode_all(judged, texts.vocabulary, ids.shape[1]).to(ids.device)))]


def principal(vectors, channels):
    """Principal components; the first has unit variance, the others the root of their share, so that few do not drown the rest."""
    centred = vectors - vectors.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    projected = centred @ axes.flip(1)[:, :channels]
    return projected / (projected.std(0) * projected.std(0)[0]).sqrt()


def tuned_encoders(args, config, rows, targets):
    encoders = []
    for seed in range(args.seed, args.seed + config.teachers):
        torch.manual_seed(seed)
        encoder = Encoder.pretrained(args.encoder).to(args.device)
        order = torch.Generator().manual_seed(seed)
        fine_tune(encoder, rows, targets, config.epochs, order, config.learning_rate, batch_size=config.batch_size, log=log)
        encoders.append(encoder)
    return encoders


def mean_logit(encoders, rows):
    batches = like_length(rows)
    return torch.stack([apply(encoder, batches, encoder) for encoder in encoders]).mean(0)


def teach(args, config):
    texts = load_texts(args, config)
    vocabulary = texts.vocabulary
    writers = Writers(vocabulary, args.encoder / "tokenizer.json")
    device = torch.device(args.device)
    generator = torch.Generator(device).manual_seed(args.seed)

    def encoded(tokens):
        return data.encode_all(tokens, vocabulary, config.sequence_length).to(device)

    def pieces(ids):
        return writers.rows(writers.start(ids))

    words = know_words(Encoder.pretrained(args.encoder).to(device), vocabulary, texts.lexicon, device)
    log(f"{len(vocabulary)} words; nearest to film: {[vocabulary[i] for i in words.neighbours[vocabulary.index('film')][:5]]}")
    held = data.split_folds(len(texts.labelled), 10, args.seed)[0] if args.hold_out else torch.tensor([], dtype=torch.long)
    kept = torch.ones(len(texts.labelled), dtype=torch.bool)
    kept[held] = False
    ids, chat, text = encoded(texts.labelled), encoded(texts.chat), encoded(texts.prose) if texts.prose else encoded([[]])[:0]
    fit, labels = ids[kept.to(device)], texts.labels[kept]
    text = text[(text == UNKNOWN_ID).sum(1) <= 0.1 * (text != PAD_ID).sum(1)]
    pool = not_judged(new_sentences(fit, chat, text, words, config, generator), texts)
    log(f"{len(pool)} new sentences, {len(text)} of prose")
    started = writers.start(pool)
    # A third with a full stop, as people type.
    stopped = data.append_full_stop(fit, vocabulary.index("."), 0.33, generator)
    taught = chat[: config.everyday_taught]
    targets = torch.cat([labels * (1 - 2 * config.smoothing) + config.smoothing, texts.chat_labels[: len(taught)]])
    encoders = tuned_encoders(args, config, pieces(torch.cat([stopped, taught])), targets)
    for name, (tokens, label) in texts.judged.items():
        logits = mean_logit(encoders, pieces(encoded(tokens)))
        log(f"teachers: {name} {100 * ((logits > 0) == label).float().mean():.2f} %")
    if len(held):
        logits = mean_logit(encoders, pieces(ids[held.to(device)]))
        log(f"teachers: held out {100 * ((logits > 0) == texts.labels[held].bool()).float().mean():.2f} %")
    pool_target = mean_logit(encoders, writers.rows(started)).sigmoid()
    log("labelled")
    fit_target = config.hard_weight * labels + (1 - config.hard_weight) * mean_logit(encoders, pieces(fit)).sigmoid()
    chat_target = mean_logit(encoders, pieces(chat)).sigmoid()
    chat_target = config.pattern_weight * texts.chat_labels + (1 - config.pattern_weight) * chat_target
    alone = like_length(encoders[0].encode(vocabulary))
    valence = torch.stack([apply(encoder, alone, encoder) for encoder in encoders]).mean(0)
    valence[: PAD_ID + 1] = 0
    views = [apply(each, alone, lambda ids, each=each: torch.tanh(each.hidden(each.embed(ids)))) for each in encoders]
    views = torch.cat(views, 1).to(device)
    vectors = torch.cat([principal(words.vectors, config.semantic_channels), principal(views, config.tuned_channels)], 1)
    return vocabulary, {
        "ids": torch.cat([fit, chat, pool]).cpu().numpy().astype(np.uint16),
        "target": torch.cat([fit_target, chat_target, pool_target]).numpy().astype(np.float16),
        "labelled": np.array([len(fit), len(chat)]), "held": held.numpy(),
        "vectors": vectors.cpu().numpy().astype(np.float16), "valence": valence.numpy().astype(np.float16)}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="lines `sentence<TAB>label`")
    parser.add_argument("--lexicon", required=True, help="lines `word<TAB>valence`")
    parser.add_argument("--encoder", required=True, type=pathlib.Path, help="folder of the pretrained encoder (unpack_encoder.py)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("run"))
    parser.add_argument("--prose", nargs="*", type=pathlib.Path, default=[], metavar="FOLDER",
                        help="/usr/share/wordnet and /usr/share/games/fortunes")
    parser.add_argument("--judged", nargs="*", type=pathlib.Path, default=[], metavar="TSV",
                        help="labelled files to report on; made sentences near to one of theirs are left out")
    parser.add_argument("--hold-out", action="store_true", help="leave a tenth of the labelled sentences out, to choose by")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of TeachConfig")
    return parser.parse_args()


def main():
    from train import apply_settings

    args, config = parse_arguments(), TeachConfig()
    apply_settings(args.set, config)
    torch.set_float32_matmul_precision("high")
    vocabulary, result = teach(args, config)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    np.savez(args.output / "taught.npz", **result)
    log("done")


if __name__ == "__main__":
    main()
