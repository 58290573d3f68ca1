"""python -m tessera doctor | inspect PATH: what this installation can do here, what a checkpoint holds. --json: as JSON."""

import argparse
import json
import sys

from . import doctor, inspect_checkpoint


def _main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tessera", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="devices, engines, plug-ins, paths; a small layer on every device, checked")
    inspected = commands.add_parser("inspect", help="what a checkpoint holds and how its layers would run here")
    inspected.add_argument("path", help="folder with config.json and safetensors files")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="a JSON object")
    given = parser.parse_args(arguments)
    if given.command == "doctor":
        report = doctor()
        print(report.json() if given.json else report)
        return 1 if report.problems else 0
    try:
        found = inspect_checkpoint(given.path)
    except ValueError as error:
        print(f"tessera: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if given.json else _text(found))
    return 0 if all(layer["cpu"]["runs"] or layer["hopper_gpu"]["runs"] for layer in found["layers"]) else 1


def _text(found):
    """Short: the command `tessera inspect` says more."""
    lines = [f"{found['family']}, {found['num_layers']} layers, {found['num_experts']} experts, {found['top_k']} a token, "
             f"{found['num_files']} files, {found['num_bytes'] / 1e9:.2f} GB"]
    for layer in found["layers"]:
        for device in ("cpu", "hopper_gpu"):
            runs = layer[device]
            state = f"{runs['weight_format']}, {runs['weight_bytes'] / 1e9:.3f} GB" if runs["runs"] else runs["problem"]
            lines.append(f"layer {layer['layer']:<4} {device:<11}{state}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(_main())
