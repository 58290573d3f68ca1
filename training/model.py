"""The classifier, many independent models side by side in one set of tensors.

    embedding -> convolutions of several widths -> ReLU -> max over positions -> h
    h -> router softmax; sum over experts of router weight * (expert weight h + bias)
    -> head layers with ReLU -> a logit each class

One such model has about 1 MFLOP a sentence and would leave a GPU idle, so every
parameter has a leading dimension `num_models` (seeds and folds), written M below.
B sentences, S positions, C channels, F filters a width, D = F * widths, E experts.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from data import NUM_FIXED_CHANNELS
from tokenizer import PAD_ID, UNKNOWN_ID


@dataclass
class ModelConfig:
    sequence_length: int = 56
    learned_channels: int = 24
    filter_widths: tuple = (1, 2, 3, 4, 5, 56)
    num_filters: int = 16
    num_experts: int = 4
    expert_size: int = 64
    head_sizes: tuple = (64,)
    num_classes: int = 2
    # Filters at least this wide have the same weight at every tap: what they find is a sum
    # over their window, which the other filters' maximum cannot express.
    shared_taps_from: int = 12
    fixed_scale: float = 2.0
    ratio_scale: float = 0.5
    learned_std: float = 0.1
    cooccurrence_channels: int = 0

    @property
    def feature_size(self):
        return self.num_filters * len(self.filter_widths)

    def as_dict(self):
        return asdict(self)


@dataclass
class Noise:
    """Rates of everything random in a training step; all zero in evaluation."""

    unknown: float = 0.05  # token becomes <unk>
    forget: float = 0.4  # token keeps only its fixed channels, like a word never trained on
    embedding: float = 0.2
    feature: float = 0.4
    head: float = 0.2


NO_NOISE = Noise(0.0, 0.0, 0.0, 0.0, 0.0)


def uniform(shape, fan_in, generator, device):
    values = torch.rand(shape, generator=generator, device=device)
    return nn.Parameter((2 * values - 1) * fan_in**-0.5)


class StackedClassifier(nn.Module):
    """num_models classifiers; `fixed` and `ratio` hold what is known of each word."""

    def __init__(self, config, num_models, fixed, ratio, known, generator):
        """fixed [V, fixed channels - 1]; ratio [M, V]; known [M, V]: word was trained on."""
        super().__init__()
        device = fixed.device
        self.config = config
        self.num_models = num_models
        self.register_buffer("fixed", fixed * config.fixed_scale)
        self.register_buffer("ratio", ratio)
        self.register_buffer("known", known)
        channels = config.learned_channels + NUM_FIXED_CHANNELS
        shape = (num_models, len(fixed), config.learned_channels)
        learned = torch.randn(shape, generator=generator, device=device) * config.learned_std
        self.learned = nn.Parameter(learned)
        self.conv_weight = nn.ParameterList()
        self.conv_bias = nn.ParameterList()

        def linear(outputs, inputs):
            weight = uniform((num_models, inputs, outputs), inputs, generator, device)
            return weight, uniform((num_models, 1, outputs), inputs, generator, device)

        for width in config.filter_widths:
            taps = 1 if width >= config.shared_taps_from else width
            weight, bias = linear(config.num_filters, taps * channels)
            self.conv_weight.append(weight)
            self.conv_bias.append(bias)
        self.router_weight, self.router_bias = linear(config.num_experts, config.feature_size)
        experts = config.num_experts * config.expert_size
        self.expert_weight, self.expert_bias = linear(experts, config.feature_size)
        sizes = (config.expert_size, *config.head_sizes, config.num_classes)
        layers = [linear(outputs, inputs) for inputs, outputs in zip(sizes, sizes[1:])]
        self.head_weight = nn.ParameterList(weight for weight, _ in layers)
        self.head_bias = nn.ParameterList(bias for _, bias in layers)

    def learned_ids(self, ids):
        """Row of the learned table: words a model never trained on share the row of <unk>."""
        model = torch.arange(self.num_models, device=ids.device)[:, None, None]
        return torch.where(self.known[model, ids], ids, UNKNOWN_ID)

    def embed(self, ids, ratio, noise, generator):
        """ids [M, B, S], ratio [M, B, S] -> [M, B, S, C]; pad rows are exactly zero."""
        is_word = (ids != PAD_ID).unsqueeze(-1)
        learned_ids = self.learned_ids(ids)
        if noise.unknown or noise.forget:
            draw = torch.rand(ids.shape, generator=generator, device=ids.device)
            unknown = (draw < noise.unknown) & is_word.squeeze(-1)
            ids = ids.masked_fill(unknown, UNKNOWN_ID)
            forget = draw < noise.unknown + noise.forget
            learned_ids = learned_ids.masked_fill(forget, UNKNOWN_ID)
            ratio = ratio.masked_fill(forget, 0.0)
        model = torch.arange(self.num_models, device=ids.device)[:, None, None]
        table = self.learned.flatten(0, 1)
        learned = functional.embedding(learned_ids + model * self.learned.shape[1], table)
        learned = functional.dropout(learned, noise.embedding)
        ratio = ratio.unsqueeze(-1) * self.config.ratio_scale
        return torch.cat([learned, ratio, self.fixed[ids]], -1) * is_word

    def convolve(self, x, width, weight, bias):
        """x [M, B, S, C] -> maximum over the positions after ReLU [M, B, F]."""
        positions = x.shape[2] - width + 1
        if width >= self.config.shared_taps_from:
            ends = functional.pad(x.cumsum(2), (0, 0, 1, 0))
            windows = ends[:, :, width:] - ends[:, :, :positions]
        else:
            windows = torch.cat([x[:, :, tap : tap + positions] for tap in range(width)], -1)
        y = torch.matmul(windows.flatten(1, 2), weight).unflatten(1, windows.shape[1:3])
        return torch.relu(y.amax(2) + bias)

    def forward(self, ids, ratio, noise=NO_NOISE, generator=None):
        """ids, ratio [M, B, S] -> logits [M, B, num_classes], router weights [M, B, E]."""
        config = self.config
        x = self.embed(ids, ratio, noise, generator)
        filters = zip(config.filter_widths, self.conv_weight, self.conv_bias)
        h = torch.cat([self.convolve(x, *each) for each in filters], -1)
        h = functional.dropout(h, noise.feature)
        router = torch.softmax(h @ self.router_weight + self.router_bias, -1)
        experts = (h @ self.expert_weight + self.expert_bias).unflatten(-1, (config.num_experts, -1))
        h = (router.unsqueeze(-1) * experts).sum(-2)
        last = len(self.head_weight) - 1
        for i, (weight, bias) in enumerate(zip(self.head_weight, self.head_bias)):
            h = functional.dropout(h, noise.head) @ weight + bias
            if i != last:
                h = torch.relu(h)
        return h, router

    @torch.no_grad()
    def predict(self, ids, batch_size=1024):
        """ids [n, S] or [M, n, S] -> logits [M, n, 2], router weights [M, n, E]."""
        ids = ids.expand(self.num_models, *ids.shape[-2:])
        model = torch.arange(self.num_models, device=ids.device)[:, None, None]
        outputs = [self(part, self.ratio[model, part]) for part in ids.split(batch_size, 1)]
        return tuple(torch.cat(parts, 1) for parts in zip(*outputs))

    @torch.no_grad()
    def export_tensors(self, model=0):
        """Tensors of one model under the names and shapes of the checkpoint format."""
        config = self.config
        ids = torch.arange(len(self.fixed), device=self.fixed.device)
        ratio = self.ratio[model, ids] * config.ratio_scale
        learned_ids = torch.where(self.known[model], ids, UNKNOWN_ID)
        embedding = torch.cat([self.learned[model, learned_ids], ratio[:, None], self.fixed], 1)
        embedding[PAD_ID] = 0
        tensors = {"embedding.weight": embedding}
        for i, width in enumerate(config.filter_widths):
            weight = self.conv_weight[i][model].view(-1, embedding.shape[1], config.num_filters)
            weight = weight.expand(width, -1, -1) if width >= config.shared_taps_from else weight
            tensors[f"conv.{i}.weight"] = weight.permute(2, 1, 0)
            tensors[f"conv.{i}.bias"] = self.conv_bias[i][model, 0]
        tensors["router.weight"] = self.router_weight[model].T
        tensors["router.bias"] = self.router_bias[model, 0]
        experts = zip(self.expert_weight[model].T.split(config.expert_size),
                      self.expert_bias[model, 0].split(config.expert_size))
        for e, (weight, bias) in enumerate(experts):
            tensors[f"experts.{e}.weight"], tensors[f"experts.{e}.bias"] = weight, bias
        layers = list(zip(self.head_weight, self.head_bias))
        for i, (weight, bias) in enumerate(layers):
            name = "output" if i == len(layers) - 1 else f"head.{i}"
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight[model].T, bias[model, 0]
        return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
