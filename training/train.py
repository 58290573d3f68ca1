"""Trains the movie-review classifier.

    train.py fit ...        trains teachers on all of it, distils one student, saves the student
    train.py fit ...        trains teachers on all of it, distils one student, saves student.safetensors and student.json

Stage 1: several teachers per group of sentences, from the labels. Stage 2: the teachers of a
group label augmented sentences; a student of the same family learns from those and the labels.
All models of a stage are trained at once (see model.py). A *group* is the training part of one
fold; `fit` has a single group with every sentence. README.md has the commands.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import time

import torch
from safetensors.torch import save_file
from torch.nn import functional

import data
from model import ModelConfig, Noise, StackedClassifier

JOINERS = ("and", "but", ",", "or", "which", "while", "although", "yet", "with", "than")


@dataclasses.dataclass
class TrainConfig:
    teacher_epochs: int = 10
    student_epochs: int = 5
    batch_size: int = 64
    student_batch_size: int = 128
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    smoothing: float = 0.05
    router_sharpness: float = 0.02
    router_balance: float = 0.02
    average_decay: float = 0.995
    full_stop_rate: float = 0.3
    inner_folds: int = 10
    pool_factor: int = 8
    hard_weight: float = 0.3
    min_count: int = 2
    polar_threshold: float = 0.3


@dataclasses.dataclass
class Corpus:
    ids: torch.Tensor  # int64 [N, S]
    labels: torch.Tensor  # int64 [N]
    vocabulary: list
    lexicon: dict
    channels: torch.Tensor  # fp32 [V, fixed channels - 1]
    inner_fold: torch.Tensor  # int64 [N]

    def token_id(self, token):
        return self.vocabulary.index(token)


@dataclasses.dataclass
class Groups:
    train: torch.Tensor  # int64 [G, n] sentences of each group
    ratios: torch.Tensor  # fp32 [G, inner_folds + 1, V]
    known: torch.Tensor  # bool [G, V]
    vectors: torch.Tensor  # fp32 [G, V, cooccurrence channels]


def load_corpus(args, model_config, train_config):
    sentences, labels = data.load_tsv(args.train)
    lexicon = data.load_lexicon(args.lexicon) if args.lexicon else {}
    vocabulary = data.build_vocabulary(sentences, lexicon)
    ids = data.encode_all(sentences, vocabulary, model_config.sequence_length)
    folds = data.split_folds(len(ids), train_config.inner_folds, args.seed + 1)
    inner_fold = torch.zeros(len(ids), dtype=torch.long)
    for fold, members in enumerate(folds):
        inner_fold[members] = fold
    channels = data.word_channels(vocabulary, lexicon)
    tensors = (ids, torch.tensor(labels), channels, inner_fold)
    ids, labels, channels, inner_fold = (tensor.to(args.device) for tensor in tensors)
    return Corpus(ids, labels, vocabulary, lexicon, channels, inner_fold)


def make_groups(corpus, train_index, model_config, train_config):
    """Word statistics of each group, from its own sentences alone."""
    vocab_size = len(corpus.vocabulary)
    ratios, known, vectors = [], [], []
    for index in train_index:
        ids, labels = corpus.ids[index], corpus.labels[index]
        inner_fold = corpus.inner_fold[index]
        ratios.append(
            data.cross_fitted_ratios(ids, labels, inner_fold, train_config.inner_folds, vocab_size)
        )
        frequent = torch.bincount(ids.flatten(), minlength=vocab_size) >= train_config.min_count
        frequent[corpus.token_id(".")] = True
        known.append(frequent)
        if model_config.cooccurrence_channels:
            vectors.append(
                data.cooccurrence_vectors(ids, vocab_size, model_config.cooccurrence_channels)
            )
    stacked_vectors = torch.stack(vectors) if vectors else None
    return Groups(train_index, torch.stack(ratios), torch.stack(known), stacked_vectors)


def make_model(config, corpus, groups, seeds_per_group, generator):
    """seeds_per_group models of each group; model m belongs to group m // seeds_per_group."""
    num_models = len(groups.train) * seeds_per_group
    ratio = groups.ratios[:, -1].repeat_interleave(seeds_per_group, 0)
    known = groups.known.repeat_interleave(seeds_per_group, 0)
    model = StackedClassifier(config, num_models, corpus.channels, ratio, known, generator)
    if groups.vectors is not None:
        vectors = groups.vectors.repeat_interleave(seeds_per_group, 0) * config.learned_std
        model.learned.data[:, :, : vectors.shape[2]] = vectors
    return model.to(corpus.ids.device)


def router_loss(router, config):
    """Low when each sentence has a clear expert and all experts are used alike.

    router [M, B, E]; summed over the models.
    """
    mean = router.mean(1)
    entropy_of_mean = -(mean * (mean + 1e-9).log()).sum(-1)
    mean_entropy = -(router * (router + 1e-9).log()).sum(-1).mean(1)
    return (config.router_sharpness * mean_entropy - config.router_balance * entropy_of_mean).sum()


def train(model, rows, row_fold, index, targets, groups, full_stop_id, noise, config, epochs,
          batch_size, generator):
    """Trains all models; leaves the exponentially averaged weights in `model`.

    rows [R, S] sentences, row_fold [R]; index [M, n] rows of each model, targets [M, n] the
    probability of class 1.
    """
    device = rows.device
    num_models, n = index.shape
    group = torch.arange(num_models, device=device) // (num_models // len(groups.train))
    model_idx = torch.arange(num_models, device=device)[:, None]
    steps = epochs * (n // batch_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01),
    )
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    for step in range(steps):
        offset = step % (n // batch_size) * batch_size
        if offset == 0:
            draw = torch.rand(num_models, n, generator=generator, device=device)
            order = draw.argsort(1)
        chosen = order[:, offset : offset + batch_size]
        row = index[model_idx, chosen]
        ids = data.append_full_stop(rows[row], full_stop_id, config.full_stop_rate, generator)
        ratio = groups.ratios[group[:, None, None], row_fold[row].unsqueeze(-1), ids]
        logits, router = model(ids, ratio, noise, generator)
        log_p = functional.log_softmax(logits, -1)
        target = targets[model_idx, chosen]
        loss = -(target * log_p[..., 1] + (1 - target) * log_p[..., 0]).mean(1).sum()
        loss = loss + router_loss(router, config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        # A short memory at first, so that the random start is forgotten.
        decay = min(config.average_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)


def train_teachers(corpus, groups, args, model_config, config, generator):
    teachers = make_model(model_config, corpus, groups, args.teachers, generator)
    index = groups.train.repeat_interleave(args.teachers, 0)
    labels = corpus.labels[index].float()
    targets = labels * (1 - 2 * config.smoothing) + config.smoothing
    train(teachers, corpus.ids, corpus.inner_fold, index, targets, groups, corpus.token_id("."),
          args.noise, config, config.teacher_epochs, config.batch_size, generator)
    return teachers


def ensemble_probability(model, ids, num_groups):
    """ids [G, n, S] -> mean probability of class 1 over the models of each group [G, n]."""
    per_model = ids.repeat_interleave(model.num_models // num_groups, 0)
    logits, _ = model.predict(per_model)
    return logits.softmax(-1)[..., 1].unflatten(0, (num_groups, -1)).mean(1)


def augmented_pool(corpus, groups, config, generator):
    """-> ids [G, P, S] of new sentences, source sentence of each [G, P]."""
    polar = [corpus.token_id(word) for word, valence in corpus.lexicon.items()
             if abs(valence) >= config.polar_threshold]
    polar = torch.tensor(polar, dtype=torch.long, device=corpus.ids.device)
    joiners = torch.tensor([corpus.token_id(word) for word in JOINERS], device=corpus.ids.device)
    source = groups.train.repeat(1, config.pool_factor)
    pool = [data.augment(corpus.ids[index], joiners, polar, generator) for index in source]
    return torch.stack(pool), source


def distil(teachers, corpus, groups, args, model_config, config, generator):
    num_groups, n = groups.train.shape
    pool, source = augmented_pool(corpus, groups, config, generator)
    pool_target = ensemble_probability(teachers, pool, num_groups)
    originals = ensemble_probability(teachers, corpus.ids[groups.train], num_groups)
    labels = corpus.labels[groups.train].float()
    original_target = config.hard_weight * labels + (1 - config.hard_weight) * originals
    rows = torch.cat([corpus.ids, pool.flatten(0, 1)])
    row_fold = torch.cat([corpus.inner_fold, corpus.inner_fold[source.flatten()]])
    pool_index = torch.arange(pool.shape[0] * pool.shape[1], device=rows.device)
    pool_index = pool_index.view(num_groups, -1) + len(corpus.ids)
    # As many original sentences as augmented ones: half of every batch.
    repeats = pool.shape[1] // n
    index = torch.cat([groups.train.repeat(1, repeats), pool_index], 1)
    targets = torch.cat([original_target.repeat(1, repeats), pool_target], 1)
    students = make_model(model_config, corpus, groups, args.students, generator)
    train(students, rows, row_fold, index.repeat_interleave(args.students, 0),
          targets.repeat_interleave(args.students, 0), groups, corpus.token_id("."), args.noise,
          config, config.student_epochs, config.student_batch_size, generator)
    return students


def fit_temperature(logits, labels):
    """The divisor of the logits with the least negative log-likelihood."""
    candidates = torch.linspace(0.3, 4.0, 371, device=logits.device)
    losses = [functional.cross_entropy(logits / t, labels) for t in candidates]
    return candidates[torch.stack(losses).argmin()].item()


def accuracy(prediction, labels):
    return (prediction == labels).float().mean().item() * 100


def report(name, model, corpus, held_out, full_stop_id):
    """Accuracy over held-out sentences [G, h]: of single models, of each group's ensemble."""
    num_groups = len(held_out)
    seeds = model.num_models // num_groups
    ids, labels = corpus.ids[held_out], corpus.labels[held_out]
    logits, router = model.predict(ids.repeat_interleave(seeds, 0))
    repeated = labels.repeat_interleave(seeds, 0)
    stopped = data.append_full_stop(ids, full_stop_id, 1.0, None).repeat_interleave(seeds, 0)
    stopped_logits, _ = model.predict(stopped)
    ensemble = logits.softmax(-1).unflatten(0, (num_groups, seeds)).mean(1)
    temperature = fit_temperature(logits.flatten(0, 1), repeated.flatten())
    result = {
        "single": accuracy(logits.argmax(-1), repeated),
        "full_stop": accuracy(stopped_logits.argmax(-1), repeated),
        "ensemble": accuracy(ensemble.argmax(-1), labels),
        "nll": functional.cross_entropy((logits / temperature).flatten(0, 1), repeated.flatten()).item(),
        "temperature": temperature,
        "router_mean": [round(x, 3) for x in router[0].mean(0).tolist()],
        "router_max": router.amax(-1).mean().item(),
    }
    shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}
    print(f"{name}: {json.dumps(shown)}", flush=True)


def evaluate(args, model_config, config, generator):
    corpus = load_corpus(args, model_config, config)
    held_out = data.split_folds(len(corpus.ids), args.folds, args.seed).to(args.device)
    train_index = torch.stack(
        [torch.cat([fold for j, fold in enumerate(held_out) if j != i]) for i in range(args.folds)]
    )
    groups = make_groups(corpus, train_index, model_config, config)
    teachers = train_teachers(corpus, groups, args, model_config, config, generator)
    report("teachers", teachers, corpus, held_out, corpus.token_id("."))
    if args.students:
        students = distil(teachers, corpus, groups, args, model_config, config, generator)
        report("students", students, corpus, held_out, corpus.token_id("."))


def fit(args, model_config, config, generator):
    corpus = load_corpus(args, model_config, config)
    everything = torch.arange(len(corpus.ids), device=args.device)[None]
    groups = make_groups(corpus, everything, model_config, config)
    teachers = train_teachers(corpus, groups, args, model_config, config, generator)
    student = distil(teachers, corpus, groups, args, model_config, config, generator)
    description = {
        "model_config": model_config.as_dict(),
        "train_config": dataclasses.asdict(config),
        "vocabulary": list(corpus.vocabulary),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "student.json").write_text(json.dumps(description), "utf-8")
    save_file(student.export_tensors(), args.output / "student.safetensors")


def apply_settings(settings, *configs):
    """`name=value` pairs onto whichever configuration has that field; values are JSON."""
    for setting in settings:
        name, value = setting.split("=", 1)
        owners = [config for config in configs if hasattr(config, name)]
        if not owners:
            raise SystemExit(f"--set {name}: no such setting")
        value = json.loads(value)
        setattr(owners[0], name, tuple(value) if isinstance(value, list) else value)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("evaluate", "fit"))
    parser.add_argument("--train", required=True, help="lines `sentence<TAB>label`")
    parser.add_argument("--lexicon", help="lines `word<TAB>valence`")
    parser.add_argument("--output", type=pathlib.Path, default="run", help="folder for the student")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--teachers", type=int, default=16, help="per group")
    parser.add_argument("--students", type=int, default=1, help="per group")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE",
                        help="fields of ModelConfig, TrainConfig and Noise")
    return parser.parse_args()


def main():
    args = parse_arguments()
    model_config, config, args.noise = ModelConfig(), TrainConfig(), Noise()
    apply_settings(args.set, model_config, config, args.noise)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator(args.device).manual_seed(args.seed)
    begin = time.time()
    command = evaluate if args.command == "evaluate" else fit
    command(args, model_config, config, generator)
    print(f"{args.command} {' '.join(args.set)}: {time.time() - begin:.0f} s on {args.device}")


if __name__ == "__main__":
    main()
