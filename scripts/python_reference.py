#!/usr/bin/env python3
"""Prints docs/reference/python.md: what the package's type stubs say, so that the reference cannot fall behind them.

  python_reference.py > docs/reference/python.md
"""
import ast
import pathlib
import re
import sys
import textwrap

STUBS = pathlib.Path(__file__).resolve().parent.parent / "python" / "tessera" / "__init__.pyi"
HEAD = """# Python interface

Made by `scripts/python_reference.py` from the package's type stubs; the tests compare the two. Shapes: T tokens, k slots a
token, H hidden size, I intermediate size, E experts. Exceptions: [errors](errors.md#python-exceptions). Transformers:
[how to](../how-to/transformers.md).

"""


def code(text):
    return f"```python\n{textwrap.dedent(text).strip()}\n```\n"


def prose(docstring):
    """A docstring as Markdown: indented lines are code."""
    text = docstring.replace("``", "`") + "\n"
    return re.sub(r"(?m)(?:^    .*\n)+", lambda match: code(match[0]), text)


def signature(source, node, owner=""):
    """What stands before the body; of an __init__, the call that makes an object."""
    lines = source.splitlines()[node.lineno - 1:node.body[0].lineno]
    lines[-1] = lines[-1][:node.body[0].col_offset]
    text = textwrap.dedent("\n".join(lines)).rstrip().rstrip(":")
    if node.name == "__init__":
        text = text.replace("def __init__(\n    self,", f"class {owner}(").replace(") -> None", ")")
    return text


def attributes(source, node):
    """The annotated members of a class, with the comment behind each."""
    items = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    comments = [[part.strip() for part in source.splitlines()[item.lineno - 1].split("#")[1:]] for item in items]
    words = [" ".join(part for part in parts if not part.startswith("type:")) for parts in comments]
    return "".join(f"- `{ast.get_source_segment(source, item)}`{': ' if comment else ''}{comment}\n"
                   for item, comment in zip(items, words))


def entry(source, node, level=2, owner=""):
    """A function, or a class with its members, under a heading."""
    parts = [f"{'#' * level} `{owner}{node.name}`\n"]
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    made_by = [node] if isinstance(node, ast.FunctionDef) else [item for item in methods if item.name == "__init__"]
    parts += [code(signature(source, item, node.name)) for item in made_by]
    if ast.get_docstring(node):
        parts.append(prose(ast.get_docstring(node)))
    if isinstance(node, ast.ClassDef):
        parts.append(attributes(source, node))
        parts += [entry(source, item, level + 1, f"{node.name}.") for item in methods if item.name != "__init__"]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def reference(source):
    module = ast.parse(source)
    kinds = "\n".join(ast.get_source_segment(source, item) for item in module.body if isinstance(item, ast.Assign))
    parts = [prose(ast.get_docstring(module)), "## Names\n", code(kinds)]
    parts += [entry(source, item) for item in module.body
              if isinstance(item, (ast.FunctionDef, ast.ClassDef)) and not item.name.startswith("_")]
    return HEAD + "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference(STUBS.read_text(encoding="utf-8")))
