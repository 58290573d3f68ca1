#!/usr/bin/env python3
"""Prints python/tessera/__init__.pyi: the signatures, docstrings and members that stand in the code, for type checkers.

  python_stubs.py > python/tessera/__init__.pyi

What a public name is, python/tessera/__init__.py imports. Nothing is said in the stubs that help(tessera.moe) does not say.
"""
import ast
import pathlib
import sys
import textwrap

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "python" / "tessera"
HEAD = """from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy

"""


class Module:
    """The source of one file of the package, and what it defines."""

    def __init__(self, name):
        self.lines = (PACKAGE / f"{name}.py").read_text().splitlines()
        self.tree = ast.parse("\n".join(self.lines))
        self.defined = {node.name: node for node in self.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        self.constants = {node.targets[0].id: node for node in self.tree.body
                          if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}

    def text(self, first, last):
        return self.lines[first - 1:last]

    def docstring(self, node):
        first = node.body[0]
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        return self.text(first.lineno, first.end_lineno) if is_text else []

    def function(self, node):
        """The definition as it is written, then its docstring or an ellipsis."""
        header = self.text(node.lineno, max(node.body[0].lineno - 1, node.lineno))
        while not header[-1].rstrip().endswith(":"):  # comments behind the header
            header.pop()
        doc = self.docstring(node)
        return [*header, *doc, ""] if doc else [*header[:-1], header[-1] + " ..."]

    def class_(self, node):
        lines = [self.lines[node.lineno - 1], *self.docstring(node)]
        fields = [self.lines[item.lineno - 1] for item in node.body if isinstance(item, ast.AnnAssign)]
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef)
                   and (not item.name.startswith("_") or item.name in ("__init__", "__call__"))]
        if fields:
            lines += ([""] if len(lines) > 1 else []) + fields
        if methods:
            lines.append("")
        for method in methods:
            lines += self.function(method)
        while lines[-1] == "":
            lines.pop()
        return lines


def literals(native, types):
    """`Activation = Literal["identity", ...]` of `Activation = Literal[ACTIVATIONS]`."""
    lines = []
    for name, node in types.constants.items():
        if isinstance(node.value, ast.Subscript):
            values = [value for part in ast.walk(node.value.slice) if isinstance(part, ast.Name)
                      for value in ast.literal_eval(native.constants[part.id].value)]
            body = ", ".join(f'"{value}"' for value in values)
            line = f"{name} = Literal[{body}]"
            lines += [line] if len(line) <= 120 else [f"{name} = Literal[", f"    {body}", "]"]
        else:
            lines.append(types.lines[node.lineno - 1])
    return lines


def stubs():
    modules = {path.stem: Module(path.stem) for path in PACKAGE.glob("_*.py")}
    package = modules["__init__"]
    parts = [*package.text(1, package.tree.body[0].end_lineno), "", HEAD.rstrip(), "",
             *literals(modules["_native"], modules["_types"]), "", "__version__: str"]
    names = [(node.module, alias.name) for node in package.tree.body if isinstance(node, ast.ImportFrom)
             for alias in node.names]
    for module, name in names:
        node = modules[module].defined.get(name)
        if isinstance(node, ast.ClassDef):
            parts += ["", *modules[module].class_(node)]
        elif node is not None:
            parts += ["", *modules[module].function(node)]
        while parts[-1] == "":
            parts.pop()
    return textwrap.dedent("\n".join(parts)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(stubs())
