"""Trains a classifier on anyone's labelled table, with any number of classes, in one command.

    python3 training/own.py --input labelled.csv --text-column text --label-column label --output model
    tessera classify --model model --input new.csv --keep all --output labels.csv

The table is CSV in UTF-8 with a header (.tsv: tabs between columns); a class is what the label column calls it. A tenth of the
rows is held out: the accuracy printed is theirs, and so is the temperature that makes probabilities mean what they say.
The model is the family of model.py, without what only film reviews have: the lexicon, and the evidence of two classes.
"""

import argparse
import csv
import json
import pathlib
import sys
import time

import torch
from torch.nn import functional

import data
from export import write_checkpoint
from model import ModelConfig, Noise, StackedClassifier
from tokenizer import tokenize
from train import TrainConfig, fit_temperature, router_loss

MIN_STEPS, BATCH_SIZE, LEARNING_RATE, SMOOTHING = 300, 64, 2e-3, 0.05
LONGEST, SHORTEST = 256, 8  # words of a sentence that count
SHARE_THAT_FITS = 0.95  # of the sentences, into the length that is chosen


def fail(message):
    raise SystemExit(f"own.py: error: {message}")


def read_table(path, text_column, label_column):
    """(texts, names of their classes); rows without a text or a label are counted and left out."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() in (".tsv", ".tab") else ",", strict=True)
        columns = reader.fieldnames or []
        for name in (text_column, label_column):
            if name not in columns:
                fail(f"{path}: got columns {', '.join(map(repr, columns))}, expected one called {name!r}")
        rows = [((row[text_column] or "").strip(), (row[label_column] or "").strip()) for row in reader]
    kept = [(text, label) for text, label in rows if text and label]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} rows have no text or no label and are left out", file=sys.stderr)
    counts = {name: sum(label == name for _, label in kept) for name in sorted({label for _, label in kept})}
    if len(counts) < 2:
        fail(f"{path}: got {len(counts)} classes in column {label_column!r}, expected at least 2")
    rare = [name for name, count in counts.items() if count < 2]
    if rare:
        fail(f"{path}: got one row of class {rare[0]!r}, expected at least 2 of each")
    return [text for text, _ in kept], [label for _, label in kept], list(counts)


def split(labels, share, generator):
    """(rows to train on, rows held out), of every class in proportion and at least one of each."""
    train, held_out = [], []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        count = max(1, round(len(members) * share))
        held_out.append(members[:count])
        train.append(members[count:])
    return torch.cat(train), torch.cat(held_out)


def chosen_length(sentences):
    lengths = sorted(map(len, sentences))
    return min(max(lengths[int(len(lengths) * SHARE_THAT_FITS)], SHORTEST), LONGEST)


def make_model(sentences, labels, num_classes, generator, device):
    """(model, ids, vocabulary): sentences of any length cut to the one that most have."""
    length = chosen_length(sentences)
    config = ModelConfig(sequence_length=length, filter_widths=(1, 2, 3, 4, 5, length), num_classes=num_classes,
                         shared_taps_from=min(12, length))
    vocabulary = data.build_vocabulary(sentences, {})
    ids = data.encode_all(sentences, vocabulary, length).to(device)
    counts = torch.bincount(ids.flatten(), minlength=len(vocabulary))
    known = (counts >= (2 if len(labels) > 2000 else 1))[None]
    channels = data.word_channels(vocabulary, {}).to(device)
    ratio = torch.zeros(1, len(vocabulary), device=device)
    return StackedClassifier(config, 1, channels, ratio, known, generator).to(device), ids, vocabulary


def fit(model, ids, labels, epochs, generator):
    steps = max(MIN_STEPS, epochs * len(ids) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    ratio = torch.zeros(1, BATCH_SIZE, ids.shape[1], device=ids.device)
    for _ in range(steps):
        row = torch.randint(len(ids), (BATCH_SIZE,), generator=generator, device=ids.device)
        logits, router = model(ids[row][None], ratio, Noise(), generator)
        loss = functional.cross_entropy(logits[0], labels[row], label_smoothing=SMOOTHING) + router_loss(router, TrainConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=pathlib.Path, required=True, help="CSV or TSV with a header")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="checkpoint folder")
    parser.add_argument("--epochs", type=int, default=10, help=f"over all rows; {MIN_STEPS} steps at least")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the rows that the accuracy is of")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if not 0 < args.held_out < 1:
        fail(f"--held-out: got {args.held_out}, expected a share between 0 and 1")
    begin = time.time()
    torch.manual_seed(args.seed)
    texts, names, classes = read_table(args.input, args.text_column, args.label_column)
    labels = torch.tensor([classes.index(name) for name in names])
    train, held_out = split(labels, args.held_out, torch.Generator().manual_seed(args.seed))
    generator = torch.Generator(args.device).manual_seed(args.seed)
    # What no row to train on says, the model does not know: as it will be with new texts.
    sentences = [tokenize(text) for text in texts]
    model, ids, vocabulary = make_model([sentences[i] for i in train.tolist()], train, len(classes), generator, args.device)
    labels = labels.to(args.device)
    fit(model, ids, labels[train.to(args.device)], args.epochs, generator)
    unseen = data.encode_all([sentences[i] for i in held_out.tolist()], vocabulary, model.config.sequence_length)
    logits = model.predict(unseen.to(args.device))[0][0]
    expected = labels[held_out.to(args.device)]
    temperature = fit_temperature(logits, expected)
    write_checkpoint(args.output, {"model_config": model.config.as_dict(), "vocabulary": list(vocabulary)},
                     model.export_tensors(), temperature, classes)
    print(json.dumps({"classes": classes, "rows": len(texts), "held_out": len(held_out),
                      "accuracy_percent": round(100 * (logits.argmax(-1) == expected).float().mean().item(), 2),
                      "largest_class_percent": round(100 * torch.bincount(expected).max().item() / len(expected), 2),
                      "words": len(vocabulary), "sequence_length": model.config.sequence_length,
                      "temperature": round(temperature, 2), "seconds": round(time.time() - begin, 1),
                      "checkpoint": str(args.output)}))


if __name__ == "__main__":
    main()
