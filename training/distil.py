"""The student: a classifier that learns the teachers' probabilities of the sentences that teach.py made.

    python3 training/distil.py --taught run --train train.tsv --lexicon training/lexicon.tsv --output run

A word's row begins as principal components of the encoder's view of it (learned on), with the teachers' logit of the word alone in
the channel of the log-count ratio. `--output` gets student.json and student.safetensors, which export.py reads.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

import data
import train
from model import ModelConfig, Noise, StackedClassifier
from tokenizer import tokenize


@dataclasses.dataclass
class Taught:
    ids: torch.Tensor  # int64 [N, S]: labelled, everyday and new sentences, in this order
    target: torch.Tensor  # fp32 [N]
    num_labelled: int
    vocabulary: list
    vectors: torch.Tensor  # fp32 [V, C]
    valence: torch.Tensor  # fp32 [V]
    held: torch.Tensor  # int64: rows of the labelled file that were left out

    @classmethod
    def load(cls, folder, device):
        stored = np.load(folder / "taught.npz")
        vocabulary = (folder / "vocabulary.txt").read_text("utf-8").splitlines()
        floats = {name: torch.from_numpy(stored[name].astype(np.float32)).to(device) for name in ("target", "vectors", "valence")}
        ids = torch.from_numpy(stored["ids"].astype(np.int32)).to(device).long()
        return cls(ids, num_labelled=int(stored["labelled"][0]), vocabulary=vocabulary,
                   held=torch.from_numpy(stored["held"]), **floats)


def student_settings():
    model = ModelConfig(learned_channels=56, num_filters=48, learned_std=0.3, ratio_scale=0.25)
    noise = Noise(unknown=0.02, forget=0.0, embedding=0.1, feature=0.2, head=0.1)
    config = train.TrainConfig(student_epochs=5, student_batch_size=1024, learning_rate=2e-3, average_decay=0.999, full_stop_rate=0.15)
    return model, config, noise


def make_student(taught, lexicon, model_config, num_models, generator):
    device = taught.ids.device
    channels = data.word_channels(taught.vocabulary, lexicon).to(device)
    vocab_size = len(taught.vocabulary)
    known = torch.ones(num_models, vocab_size, dtype=torch.bool, device=device)
    student = StackedClassifier(model_config, num_models, channels, taught.valence.expand(num_models, -1), known, generator)
    with torch.no_grad():
        given = min(model_config.learned_channels, taught.vectors.shape[1])
        student.learned[:, :, :given] = taught.vectors[:, :given] * model_config.learned_std
        student.learned[:, :, given:] *= 0.1
    return student.to(device)


def train_student(taught, lexicon, model_config, config, noise, num_models, generator, labelled_repeats=4):
    """-> StackedClassifier of `num_models` students that differ in their random numbers."""
    device = taught.ids.device
    student = make_student(taught, lexicon, model_config, num_models, generator)
    labelled = torch.arange(taught.num_labelled, device=device).repeat(labelled_repeats - 1)
    index = torch.cat([labelled, torch.arange(len(taught.ids), device=device)]).expand(num_models, -1)
    targets = taught.target[index]
    # One group, one fold: every sentence sees the same valence.
    groups = train.Groups(index[:1], taught.valence[None, None], student.known[:1], None)
    fold = torch.zeros(len(taught.ids), dtype=torch.long, device=device)
    train.train(student, taught.ids, fold, index, targets, groups, taught.vocabulary.index("."), noise, config,
                config.student_epochs, config.student_batch_size, generator)
    return student


def choose(student, taught, args):
    """-> the student with the least negative log-likelihood on what no teacher and no student has learned from, and its temperature:
    the held-out tenth of the labelled sentences and everyday sentences of other patterns, each counting a half."""
    sentences, labels = data.load_tsv(args.train)
    everyday = [line.split("\t", 1) for line in args.everyday.read_text("utf-8").splitlines()]
    sets = {"held out": ([sentences[i] for i in taught.held], [labels[i] for i in taught.held]),
            "everyday": ([tokenize(text) for _, text in everyday], [int(label) for label, _ in everyday])}
    losses, temperatures = 0, {}
    for name, (tokens, label) in sets.items():
        ids = data.encode_all(tokens, taught.vocabulary, taught.ids.shape[1]).to(taught.ids.device)
        label = torch.tensor(label, device=ids.device)
        logits = student.predict(ids)[0]
        loss = torch.stack([functional.cross_entropy(each, label) for each in logits])
        right = [round(train.accuracy(each.argmax(-1), label), 2) for each in logits]
        print(f"{name}: accuracy {right}, loss {[round(x, 4) for x in loss.tolist()]}", flush=True)
        losses = losses + loss
        temperatures[name] = [train.fit_temperature(each, label) for each in logits]
    best = losses.argmin().item()
    return best, temperatures["held out"][best]


def description(taught, model_config, config):
    return {"model_config": model_config.as_dict(), "train_config": dataclasses.asdict(config), "vocabulary": list(taught.vocabulary)}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--taught", required=True, type=pathlib.Path, help="output folder of teach.py")
    parser.add_argument("--lexicon", required=True, help="lines `word<TAB>valence`")
    parser.add_argument("--train", required=True, help="as for teach.py --hold-out: its held-out tenth chooses the student")
    parser.add_argument("--everyday", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent / "everyday_held_out.tsv",
                        help="lines `label<TAB>sentence` that choose the student as well")
    parser.add_argument("--students", type=int, default=3, help="trained side by side; one is kept")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("run"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="fields of ModelConfig, TrainConfig and Noise")
    return parser.parse_args()


def main():
    args = parse_arguments()
    model_config, config, noise = student_settings()
    train.apply_settings(args.set, model_config, config, noise)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator(args.device).manual_seed(args.seed)
    begin = time.time()
    taught = Taught.load(args.taught, args.device)
    student = train_student(taught, data.load_lexicon(args.lexicon), model_config, config, noise, args.students, generator)
    best, temperature = choose(student, taught, args)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "student.json").write_text(json.dumps(description(taught, model_config, config)), "utf-8")
    save_file(student.export_tensors(best), args.output / "student.safetensors")
    print(f"student {best} of {args.students}, of {len(taught.ids)} sentences: {time.time() - begin:.0f} s on {args.device}; temperature {temperature:.2f}")


if __name__ == "__main__":
    main()
