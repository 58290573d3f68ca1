"""Writes a trained student as a checkpoint folder that the C++ loader reads.

    python3 training/export.py --student run --output models/movie-reviews \\
        --temperature 0.9 [--evaluate dev.tsv]

fp16 safetensors, config.json and vocab.txt. `--evaluate` reads the folder back and runs
it with the plain forward pass below, from fp16 weights and raw text, as the library does.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from data import ALIASES
from tokenizer import encode, tokenize

FP16_MAX = 65504


def write_checkpoint(folder, student, tensors, temperature, class_names=("negative", "positive")):
    config, vocabulary = student["model_config"], student["vocabulary"]
    # Dividing the logits by the temperature calibrates the probabilities; labels stay.
    for name in ("output.weight", "output.bias"):
        tensors[name] = tensors[name] / temperature
    rows = {token: i for i, token in enumerate(vocabulary)}
    aliases = [alias for alias in ALIASES if alias not in rows]
    vocabulary += aliases
    alias_rows = tensors["embedding.weight"][[rows[ALIASES[alias]] for alias in aliases]]
    tensors["embedding.weight"] = torch.cat([tensors["embedding.weight"], alias_rows])
    for name, tensor in tensors.items():
        if not tensor.isfinite().all() or tensor.abs().max() > FP16_MAX:
            raise SystemExit(f"{name} does not fit fp16")
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8")
    description = {
        "format": "tessera-classifier",
        "version": 1,
        "vocab_size": len(vocabulary),
        "embedding_size": half["embedding.weight"].shape[1],
        "sequence_length": config["sequence_length"],
        "filter_widths": list(config["filter_widths"]),
        "num_filters": config["num_filters"],
        "num_experts": config["num_experts"],
        "expert_size": config["expert_size"],
        "head_sizes": list(config["head_sizes"]),
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "tokenizer": "basic_english",
        "text_normalization": "reviews",
        "unknown_id": 0,
        "pad_id": 1,
    }
    text = json.dumps(description, indent=2) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def forward(config, weights, ids):
    """ids [n, S] -> logits [n, 2], router weights [n, E]; the definition, unoptimised."""
    x = weights["embedding.weight"][ids].transpose(1, 2)
    features = []
    for i in range(len(config["filter_widths"])):
        y = functional.conv1d(x, weights[f"conv.{i}.weight"], weights[f"conv.{i}.bias"])
        features.append(y.relu().amax(-1))
    h = torch.cat(features, 1)

    def linear(name, inputs):
        return functional.linear(inputs, weights[f"{name}.weight"], weights[f"{name}.bias"])

    router = linear("router", h).softmax(-1)
    experts = [linear(f"experts.{e}", h) for e in range(config["num_experts"])]
    h = sum(router[:, e : e + 1] * expert for e, expert in enumerate(experts))
    for i in range(len(config["head_sizes"])):
        h = linear(f"head.{i}", h).relu()
    return linear("output", h), router


def evaluate(folder, path):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    vocabulary = (folder / "vocab.txt").read_text("utf-8").splitlines()
    token_ids = {token: i for i, token in enumerate(vocabulary)}
    weights = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    lines = pathlib.Path(path).read_text("utf-8").splitlines()
    texts, labels = zip(*(line.rsplit("\t", 1) for line in lines))
    tokens = [tokenize(text, config["text_normalization"]) for text in texts]
    length = config["sequence_length"]
    ids = torch.tensor([encode(sentence, token_ids, length) for sentence in tokens])
    logits, router = forward(config, weights, ids)
    labels = torch.tensor([int(label) for label in labels])
    probability, prediction = logits.softmax(-1).max(-1)
    correct = (prediction == labels).float()
    print(json.dumps({
        "sentences": len(labels),
        "accuracy": round(100 * correct.mean().item(), 2),
        "truncated": sum(len(sentence) > length for sentence in tokens),
        "unknown_token_share": round((ids == 0).float().sum().item() / (ids != 1).sum().item(), 4),
        "mean_probability": round(probability.mean().item(), 3),
        "negative_log_likelihood": round(functional.cross_entropy(logits, labels).item(), 3),
        "router_mean": [round(x, 3) for x in router.mean(0).tolist()],
        "router_max": round(router.amax(1).mean().item(), 3),
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=pathlib.Path, required=True, help="output folder of `train.py fit`")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="checkpoint folder")
    parser.add_argument("--temperature", type=float, default=1.0, help="from `train.py evaluate`")
    parser.add_argument("--evaluate", help="lines `sentence<TAB>label`")
    args = parser.parse_args()
    student = json.loads((args.student / "student.json").read_text("utf-8"))
    tensors = load_file(args.student / "student.safetensors")
    write_checkpoint(args.output, student, tensors, args.temperature)
    if args.evaluate:
        evaluate(args.output, args.evaluate)


if __name__ == "__main__":
    main()
