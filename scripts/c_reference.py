#!/usr/bin/env python3
"""Prints docs/reference/c.md: the C headers with their comments, so that the reference cannot fall behind them.

  c_reference.py > docs/reference/c.md
"""
import pathlib
import re
import sys

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include" / "tessera"
HEADERS = ("tessera.h", "tessera_moe.h", "tessera_quantize.h", "tessera_router.h", "tessera_checkpoint.h",
           "tessera_classifier.h")
HEAD = """# C interface

Made by `scripts/c_reference.py` from the headers; the tests compare the two. Include `tessera/tessera.h`, link `libtessera`
(`tessera::c` in CMake, `pkg-config tessera`). No C++, no torch, no CUDA type is in it: a stream is a `void*`. A whole program:
[program.c](../../tests/consumer/c/program.c). Status codes: [errors](errors.md#c-status-codes).
"""
COMMENT = re.compile(r"/\*(.*?)\*/\n?", re.S)


def words(comment):
    """A comment as Markdown; what is indented is code."""
    lines = [re.sub(r"^ ?\*? ?", "", line).rstrip() for line in comment.splitlines()]
    escaped = [line if line.startswith("  ") else re.sub(r"([<*])", r"\\\1", line) for line in lines]
    return re.sub(r"(?m)(?:^  .*(?:\n|\Z))+", lambda m: "```c\n" + re.sub(r"(?m)^  ", "", m[0]).rstrip() + "\n```\n",
                  "\n".join(escaped).strip())


def declarations(text):
    """[(comment, declaration)], those without a comment of their own together with what is above them."""
    body = re.sub(r"(?ms)^TESSERA_INLINE (\S[^{]*?) \{.*?^\}\n", r"\1;\n", text)
    body = re.sub(r"(?m)^#.*\n|^TESSERA_API |^extern \"C\" \{\n|^\}\n", "", body)
    parts = []
    for block in re.split(r"\n{2,}", body.strip()):
        opening = COMMENT.match(block)
        parts.append((words(opening[1]) if opening else "", block[opening.end() if opening else 0:].strip()))
    return [part for part in parts if any(part)]


def name_of(declaration):
    """What the reader looks for: the functions, else the type."""
    functions = re.findall(r"\b(tessera_\w+)\(", declaration)
    types = re.findall(r"^typedef (?:enum|struct) (tessera_\w+)|^enum \{ (\w+)|^typedef \w+ \(\*(tessera_\w+)\)", declaration)
    return ", ".join(f"`{name}`" for name in dict.fromkeys(functions or [next(filter(None, t)) for t in types]))


def page(header):
    text = (INCLUDE / header).read_text(encoding="utf-8")
    opening = COMMENT.match(text)
    parts = [f"## tessera/{header}\n", words(opening[1])]
    for comment, declaration in declarations(text[opening.end():]):
        parts += [f"\n### {name_of(declaration)}\n"] + [comment + "\n"] * bool(comment) + [f"```c\n{declaration}\n```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write("\n".join([HEAD, *map(page, HEADERS)]))
