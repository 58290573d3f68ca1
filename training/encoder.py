"""The teacher: a pretrained sentence encoder, all-mpnet-base-v2, fine-tuned on labelled sentences.

    encoder = Encoder.pretrained(folder)          # folder: config.json, tokenizer.json, model.safetensors
    fine_tune(encoder, encoder.encode(texts), probabilities, epochs=3, generator=generator)
    logits = apply(encoder, like_length(encoder.encode(texts)), encoder)      # of "positive", one a text

Transformer layers with a learned bias for the distance of two tokens (MPNet), the mean of the last layer's tokens, two linear layers
on top. Only training needs it: the checkpoint that comes out is the student's alone.
"""

import json
import math
import pathlib

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

PAD = 1
LONGEST = 96  # word pieces that are read; a sentence of the training file has 25 on average
# Position 0 and 1 belong to padding.
FIRST_POSITION = 2


class Layer(nn.Module):
    def __init__(self, size, inner, heads, epsilon):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mixed = (nn.Linear(size, size) for _ in range(4))
        self.attention_norm = nn.LayerNorm(size, epsilon)
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norm = nn.LayerNorm(size, epsilon)

    def forward(self, x, bias, dropout):
        """x [B, S, C]; bias [B, heads, S, S] is added to the scores."""
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                             for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        seen = scores.softmax(-1).to(value.dtype) @ value
        mixed = self.mixed(seen.transpose(1, 2).flatten(2))
        x = self.attention_norm(x + functional.dropout(mixed, dropout, self.training))
        inner = self.down(functional.gelu(self.up(x)))
        return self.norm(x + functional.dropout(inner, dropout, self.training))


def distance_buckets(length, num_buckets, device, max_distance=128):
    """int64 [length, length]: small distances have a bucket each, larger ones share; half the buckets for each direction."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs().clamp_min(1)
    shared = exact + ((far.float() / exact).log() / math.log(max_distance / exact) * (half - exact)).long()
    bucket = torch.where(far < exact, distance.abs(), shared.clamp(exact, half - 1))
    return bucket + half * (distance < 0)


class Encoder(nn.Module):
    NAMES = {"query": "attention.attn.q", "key": "attention.attn.k", "value": "attention.attn.v", "mixed": "attention.attn.o",
             "attention_norm": "attention.LayerNorm", "up": "intermediate.dense", "down": "output.dense",
             "norm": "output.LayerNorm"}

    def __init__(self, config, tokenizer):
        super().__init__()
        size = config["hidden_size"]
        self.tokenizer = tokenizer
        self.words = nn.Embedding(config["vocab_size"], size)
        self.positions = nn.Embedding(config["max_position_embeddings"], size)
        self.distances = nn.Embedding(config["relative_attention_num_buckets"], config["num_attention_heads"])
        self.norm = nn.LayerNorm(size, config["layer_norm_eps"])
        self.layers = nn.ModuleList(
            Layer(size, config["intermediate_size"], config["num_attention_heads"], config["layer_norm_eps"])
            for _ in range(config["num_hidden_layers"])
        )
        self.hidden, self.output = nn.Linear(size, size), nn.Linear(size, 1)
        self.dropout = 0.1

    @classmethod
    def pretrained(cls, folder):
        from tokenizers import Tokenizer

        folder = pathlib.Path(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST)
        encoder = cls(json.loads((folder / "config.json").read_text("utf-8")), tokenizer)
        given = load_file(folder / "model.safetensors")
        names = {"words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
                 "norm": "embeddings.LayerNorm", "distances": "encoder.relative_attention_bias"}
        for i in range(len(encoder.layers)):
            names.update({f"layers.{i}.{own}": f"encoder.layer.{i}.{theirs}" for own, theirs in cls.NAMES.items()})
        state = encoder.state_dict()
        for own, theirs in names.items():
            for part in ("weight", "bias"):
                if f"{own}.{part}" in state:
                    state[f"{own}.{part}"] = given[f"{theirs}.{part}"].float()
        encoder.load_state_dict(state)
        return encoder

    def embed(self, ids, dropout=0.0):
        """ids [B, S] -> mean of the last layer's tokens [B, C]."""
        there = ids != PAD
        length = ids.shape[1]
        position = self.positions.weight[FIRST_POSITION : FIRST_POSITION + length]
        x = functional.dropout(self.norm(self.words(ids) + position), dropout, self.training)
        bias = self.distances(distance_buckets(length, self.distances.num_embeddings, ids.device)).permute(2, 0, 1)
        bias = bias + torch.zeros_like(there, dtype=bias.dtype).masked_fill(~there, -1e4)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias, dropout)
        there = there.unsqueeze(-1)
        return (x * there).sum(1) / there.sum(1)

    def forward(self, ids):
        h = functional.dropout(self.embed(ids, self.dropout), self.dropout, self.training)
        return self.output(functional.dropout(torch.tanh(self.hidden(h)), self.dropout, self.training))[:, 0]

    def encode(self, texts):
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]


def pad(rows, device):
    out = np.full((len(rows), max(map(len, rows))), PAD)
    for line, row in zip(out, rows):
        line[: len(row)] = row
    return torch.from_numpy(out).to(device)


def half_precision(device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def like_length(rows, batch_size=512):
    """Batches of rows of like length: [(their positions, ids)]."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [(part, pad([rows[i] for i in part], "cpu")) for part in parts]


@torch.no_grad()
def apply(encoder, batches, function):
    """`function(ids)` of the rows that like_length made batches of, in the order of the rows: fp32 on the CPU."""
    encoder.train(False)
    device = encoder.output.weight.device
    with half_precision(device):
        together = torch.cat([function(ids.to(device)).float() for _, ids in batches]).cpu()
    out = torch.empty_like(together)
    out[torch.tensor([i for part, _ in batches for i in part])] = together
    return out


def parameter_groups(encoder, learning_rate, layer_decay):
    """Layers further down move less."""
    depth = len(encoder.layers)
    groups = [{"params": [*encoder.hidden.parameters(), *encoder.output.parameters()], "lr": 5 * learning_rate}]
    for i, layer in enumerate(encoder.layers):
        groups.append({"params": list(layer.parameters()), "lr": learning_rate * layer_decay ** (depth - 1 - i)})
    below = [encoder.words, encoder.positions, encoder.distances, encoder.norm]
    groups.append({"params": [p for part in below for p in part.parameters()], "lr": learning_rate * layer_decay**depth})
    return groups


def shuffled_batches(rows, batch_size, generator):
    """Batches of like length, out of windows of 16 batches, in random order."""
    order = torch.randperm(len(rows), generator=generator).tolist()
    batches = []
    for i in range(0, len(order), 16 * batch_size):
        window = sorted(order[i : i + 16 * batch_size], key=lambda j: len(rows[j]))
        batches += [window[j : j + batch_size] for j in range(0, len(window), batch_size)]
    return [batches[b] for b in torch.randperm(len(batches), generator=generator).tolist()]


def fine_tune(encoder, rows, targets, epochs, generator, learning_rate=4e-5, layer_decay=0.9, batch_size=32, log=print):
    """Trains all weights on probabilities of "positive"; warm-up over a tenth of the steps, then linear decay."""
    device = encoder.output.weight.device
    targets = torch.as_tensor(targets, dtype=torch.float32).to(device)
    steps = epochs * math.ceil(len(rows) / batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, learning_rate, layer_decay), weight_decay=0.01,
                                  fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps + 1), max(0.0, (steps - step) / (0.9 * steps)))
    )
    encoder.train()
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        batches = shuffled_batches(rows, batch_size, generator)
        for batch in batches:
            with half_precision(device):
                logits = encoder(pad([rows[i] for i in batch], device))
            loss = functional.binary_cross_entropy_with_logits(logits.float(), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        log(f"teacher: epoch {epoch + 1} of {epochs}, loss {total.item() / len(batches):.4f}")
