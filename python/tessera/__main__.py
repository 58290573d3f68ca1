"""`python -m tessera`: the command of the same installation, and what the package does without it.

    python -m tessera doctor
    python -m tessera classify --text "Tender, funny and beautifully acted."
    python -m tessera classify --input reviews.parquet --field review --keep all --output labels.parquet
    python -m tessera bench moe --preset qwen3-30b --tokens 4096

`doctor` and `inspect PATH` are the package's own (`--json`: as JSON). All else goes to the `tessera` command where one is installed
(TESSERA_COMMAND, then beside this package, then PATH); Parquet files, and texts where there is no command, are labelled by the
package itself.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys


def find_command():
    """The path of the `tessera` command, or None."""
    named = os.environ.get("TESSERA_COMMAND")
    if named:
        return named
    beside = pathlib.Path(__file__).parent / "bin" / "tessera"
    return str(beside) if beside.is_file() else shutil.which("tessera")


def _own(arguments):
    """doctor and inspect, whose answers are about this installation of the package."""
    from . import doctor, inspect_checkpoint
    parser = argparse.ArgumentParser(prog="python -m tessera")
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


def main(arguments):
    if arguments[:1] in (["doctor"], ["inspect"]):
        return _own(arguments)
    from ._tables import classify, is_for_package
    if arguments[:1] == ["classify"] and is_for_package(arguments[1:]):
        return classify(arguments[1:])
    command = find_command()
    if command is not None:
        os.execv(command, [command, *arguments])
    if arguments[:1] == ["classify"]:
        return classify(arguments[1:])
    if arguments in ([], ["--help"], ["-h"], ["help"]):
        print(__doc__.strip())
        return 0 if arguments else 2
    sys.stderr.write(f"tessera: error: {arguments[0]}: got no `tessera` command on this machine, expected one, as "
                      "`cmake --install` or the Debian package installs it; TESSERA_COMMAND may name it\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
