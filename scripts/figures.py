#!/usr/bin/env python3
"""Writes measured figures into the documents, so that none is ever typed by hand, and draws the pictures.

A figure stands between markers and names the file and member it comes from, and its format:
  <!--fig bench/results/classifier_cpu.json#embeddings_bf16.sentences_per_second ,.0f-->612<!--/fig-->

  figures.py            rewrites the documents, and draws by matplotlib those pictures of docs/figures that are old
  figures.py --check    changes nothing; fails where a document disagrees with the results or states an unmarked figure, or a
                        picture is not of these results (no matplotlib needed)
A whole table names a member with "columns" and "rows":
  <!--table bench/results/training.json#around_the_shipped-->...<!--/table-->
<!--reliability--> and its end hold the tables of what the endurance harness measured (reliability.py).
A figure from elsewhere is allowed on a line that names its source: <!--source: ...-->
"""
import argparse
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import reliability

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
sys.path.insert(0, str(FIGURES))

import charts  # noqa: E402  after the path to it

MARKER = re.compile(r"<!--fig (\S+)#(\S+)\s+([\w,.]+)-->(.*?)<!--/fig-->", re.S)
TABLE = re.compile(r"<!--table (\S+)#([\w.]+)-->(.*?)<!--/table-->", re.S)
RELIABILITY = re.compile(r"<!--reliability-->(.*?)<!--/reliability-->", re.S)
# What counts as a performance or accuracy figure in running text.
CLAIM = re.compile(r"\d[\d,.]*\s*(?:%|(?:[kM]?\s?sentences|[kMGT]?FLOP|[kMGT]?B)/s)")


def documents():
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, check=True).stdout
    return [ROOT / line for line in listing.splitlines() if (ROOT / line).is_file()]


def result(file, member):
    value = json.loads((ROOT / file).read_text())
    for key in member.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def figure(file, member, form):
    return format(result(file, member), "" if form == "s" else form)


def table(file, member):
    content = result(file, member)
    rows = [content["columns"], ["---"] * len(content["columns"]), *content["rows"]]
    return "".join("| " + " | ".join(str(cell) for cell in row) + " |\n" for row in rows)


def filled_in(text):
    text = RELIABILITY.sub(lambda m: f"<!--reliability-->\n{reliability.tables()}<!--/reliability-->", text)
    text = TABLE.sub(lambda m: f"<!--table {m[1]}#{m[2]}-->\n{table(m[1], m[2])}<!--/table-->", text)
    return MARKER.sub(lambda m: f"<!--fig {m[1]}#{m[2]} {m[3]}-->{figure(m[1], m[2], m[3])}<!--/fig-->", text)


def unmarked_claims(text):
    """Lines that state a figure outside markers, code blocks and lines that name a source."""
    plain = re.sub(r"```.*?```", lambda m: "\n" * m[0].count("\n"), RELIABILITY.sub("", TABLE.sub("", MARKER.sub("", text))), flags=re.S)
    return [(number, line.strip()) for number, line in enumerate(plain.splitlines(), 1)
            if CLAIM.search(line) and "<!--source:" not in line]


def pictures():
    """(name, module, content, stamp) of each script of docs/figures that has something to draw; needs no matplotlib."""
    for script in sorted(FIGURES.glob("*.py")):
        module = importlib.import_module(script.stem)
        content = module.content() if hasattr(module, "content") else None
        if content is not None:
            shared = {"charts.py", script.name} | ({"peers.py"} if hasattr(module, "peers") else set())
            yield script.stem, module, content, charts.stamp(sorted(shared), content)


def old_pictures():
    """(file, theme, module, content, stamp) of those whose content or script has changed since they were drawn."""
    for name, module, content, stamp in pictures():
        for theme in charts.THEMES:
            path = FIGURES / f"{name}{theme.suffix}.svg"
            if not path.exists() or charts.stamp_of(path.read_text()) != stamp:
                yield path, theme, module, content, stamp


def draw_pictures():
    old = list(old_pictures())
    if old and importlib.util.find_spec("matplotlib") is None:
        subprocess.run([ROOT / "scripts" / "install.sh", "figures"], check=True)
        importlib.invalidate_caches()
        if importlib.util.find_spec("matplotlib") is None:
            raise SystemExit(f"figures.py: error: {sys.executable} has no matplotlib, /usr/bin/python3 has the installed one")
    for path, theme, module, content, stamp in old:
        path.write_text(charts.svg(module.draw(content, theme), stamp))
        print(f"docs/figures/{path.name}")


def picture_problems():
    for path, *_ in old_pictures():
        yield f"docs/figures/{path.name}: not of these results and this script; run `make figures`"


def check():
    problems = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if filled_in(text) != text:
            problems.append(f"{name}: figures differ from the results; run `make figures`")
        problems += [f"{name}:{number}: a figure without a marker or source: {line}"
                     for number, line in unmarked_claims(text)]
    problems += picture_problems()
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        problems = check()
        print("\n".join(problems))
        return 1 if problems else 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled_in(text), encoding="utf-8")
    draw_pictures()
    return 0


if __name__ == "__main__":
    sys.exit(main())
