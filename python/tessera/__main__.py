"""`python -m tessera`: the command of the same installation, and what the package does without it.

    python -m tessera classify --text "Tender, funny and beautifully acted."
    python -m tessera classify --input reviews.parquet --field review --keep all --output labels.parquet
    python -m tessera bench moe --preset qwen3-30b --tokens 4096

Everything goes to the `tessera` command where one is installed (TESSERA_COMMAND, then beside this package, then PATH); Parquet
files, and texts where there is no command, are labelled by the package itself.
"""

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


def main(arguments):
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
