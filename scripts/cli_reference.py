#!/usr/bin/env python3
"""Prints docs/reference/cli.md: what the command's own --help says, so that the reference cannot fall behind the program.

  cli_reference.py build/test/tools/tessera/tessera > docs/reference/cli.md
"""
import subprocess
import sys

HEAD = """# The `tessera` command

Made by `scripts/cli_reference.py` from the command's own help; the tests compare the two. Environment:
[environment](environment.md).

| command | does |
|---|---|
| [`classify`](#classify) | labels text, token ids or embeddings |
| [`merge`](#merge) | puts the parts of a sharded run together |
| [`evaluate`](#evaluate) | labels sentences whose labels are known, prints the accuracy |
| [`verify`](#verify) | compares results with an answers file or the fp64 oracle |
| [`convert`](#convert) | between the school's format and a checkpoint; ids to embeddings |
| [`synth`](#synth) | writes a synthetic model of any size, and inputs for it |
| [`doctor`](#doctor) | says what this machine offers and tries it |
| [`inspect`](#inspect) | says what a checkpoint on disk holds and how its layers would run here |
| [`bench`](#bench-classify) | measures [the classifier](#bench-classify) or [an MoE layer](#bench-moe) |
| [`explain`](#explain-moe) | shows the plan of an MoE layer on a GPU, without one: in words, as a picture, a page, a trace |
| [`report`](#report) | puts what this machine is and does, and what a GPU would do, on one page |
| [`completion`](#completion), [`manual`](#manual) | print what shells complete, and the manual page |

Results go to standard output or to `--output`; progress, statistics and errors go to standard error. Errors read
`tessera: error: WHERE: got X, expected Y`; after a mistyped command or option a second line asks for the nearest there is.
`tessera`, `tessera bench` and `tessera explain` alone list their commands on standard error and end with exit code 2;
`tessera help COMMAND` is `tessera COMMAND --help`.

| exit code | meaning |
|---|---|
| 0 | all ok |
| 1 | some records failed (they are listed), or a comparison found differences; a measured result is wrong |
| 2 | usage, a file or a model is wrong; nothing was run |
| 3 | a device failed, and the others finished the work: nothing is missing |
| 4 | incomplete: no device is left, the input could not be read further or the output not written; `--resume` continues |
| 5 | the results are whole; a file beside them (`--statistics`, `--json`, `--svg`) could not be written |
| 130 | interrupted by Ctrl-C; what was finished is in `OUTPUT.partial` (143 after SIGTERM) |
| 141 | standard output was closed, as `| head` does |
"""


def help_of(program, *command):
    done = subprocess.run([program, *command, "--help"], text=True, capture_output=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def commands(program, *group):
    """The commands as lists of words, from the lists that the help shows; a group counts by what is in it."""
    _, marker, rest = help_of(program, *group).partition("Subcommands:\n")
    if not marker:
        return [group]
    names = [line.split()[0] for line in rest.split("\n\n")[0].splitlines()]
    return [command for name in names for command in commands(program, *group, name)]


def reference(program):
    parts = [HEAD]
    for command in commands(program):
        parts.append(f"\n## {' '.join(command)}\n\n```\n{help_of(program, *command)}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.write(reference(sys.argv[1]))
