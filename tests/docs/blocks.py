"""The fenced blocks of the documents: where each stands, what its directives say, and of which class it is.

A directive is an HTML comment on a line of its own right before the fence:

  <!-- from: examples/02_moe_layer.cc -->   the block's lines stand there, in this order; `...` marks a gap
  <!-- wrap: NAME -->                       the block is the body of tests/docs/wraps/NAME.*
  <!-- needs: torch, gpu -->                Python that `make test` cannot run; tests/gpu/python/test_docs.py does
  <!-- checked: REASON -->                  shell commands too large to run: programs, targets and options must exist
  <!-- prints -->                           text that the block before it prints; `...` stands for anything
  <!-- shown: REASON -->                    text that nothing can check: a picture in letters, names
"""
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIRECTIVE = re.compile(r"<!-- (from|wrap|needs|checked|prints|shown)(?:: (.+?))? -->$")
WITHOUT_VALUE = {"prints"}
FENCE = re.compile(r"^(`{3,})(\S*)\s*$")
# Pages that a program writes: a test compares each with what the program prints now.
GENERATED = ("docs/reference/cli.md", "docs/reference/c.md", "docs/reference/python.md")
PROGRAM_LANGUAGES = {"cpp": ".cc", "c": ".c", "cuda": ".cu"}
NEEDS = {"torch", "transformers", "gpu"}


class Block(NamedTuple):
    page: str  # relative to the root
    line: int  # of the opening fence, from 1
    language: str
    text: str
    directives: dict

    @property
    def place(self):
        return f"{self.page}:{self.line}"


class Unclassified(Exception):
    """A block that no rule covers, so that nothing would ever check it."""


def pages(root=ROOT):
    """The documents whose blocks are run: those of the top folder and docs but the decisions."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    return sorted(p for p in (str(path.relative_to(root)) for path in found) if not p.startswith("docs/decisions/"))


def directives_before(lines, fence):
    """{name: value} of the comments right above line number `fence`, counted from 0."""
    found = {}
    for line in reversed(lines[:fence]):
        match = DIRECTIVE.match(line.strip())
        if not match:
            break
        found[match[1]] = match[2] or ""
    return found


def read_blocks(page, root=ROOT):
    lines = (root / page).read_text(encoding="utf-8").splitlines()
    blocks, number = [], 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening:
            end = next((n for n in range(number + 1, len(lines)) if lines[n].strip() == opening[1]), None)
            if end is None:
                raise Unclassified(f"{page}:{number + 1}: the fence is never closed")
            blocks.append(Block(page, number + 1, opening[2], "\n".join(lines[number + 1:end]) + "\n",
                                directives_before(lines, number)))
            number = end
        number += 1
    return blocks


def classify(block):
    """The one class of a block. Unclassified where there is none, or where directives contradict each other."""
    given = set(block.directives)
    for name, value in block.directives.items():
        if bool(value) == (name in WITHOUT_VALUE):
            raise Unclassified(f"{block.place}: the directive '{name}' {'takes no' if value else 'needs a'} value")
    if block.page in GENERATED and not given:
        return "generated"

    def one_of(*allowed):
        if len(given) == 1 and given <= set(allowed):
            return next(iter(given))
        raise Unclassified(f"{block.place}: a {block.language or 'nameless'} block with directives {sorted(given)}; "
                           f"expected one of {sorted(allowed)}")
    if block.language in PROGRAM_LANGUAGES:
        if not given and re.search(r"^int main\(", block.text, re.M) and block.language != "cuda":
            return "program"
        return {"from": "quoted", "wrap": "program"}[one_of("from", "wrap") if block.language != "cuda" else one_of("from")]
    if block.language == "python":
        return {None: "python", "needs": "python elsewhere", "from": "quoted"}[one_of("needs", "from") if given else None]
    if block.language == "cmake":
        return {"from": "quoted"}[one_of("from")]
    if block.language == "sh":
        return {None: "shell", "checked": "shell, checked"}[one_of("checked") if given else None]
    if block.language == "console" and not given:
        return "console"
    if block.language == "json" and not given:
        return "data"
    if block.language == "text":
        return {"prints": "output", "shown": "shown"}[one_of("prints", "shown")]
    raise Unclassified(f"{block.place}: no rule for a {block.language or 'nameless'} block with {sorted(given)}")


def needs_of(block):
    needs = {word.strip() for word in block.directives.get("needs", "").split(",") if word.strip()}
    if needs - NEEDS:
        raise Unclassified(f"{block.place}: unknown needs {sorted(needs - NEEDS)}; expected of {sorted(NEEDS)}")
    return needs


def output_after(blocks, block):
    """The text that `block` must print, or None where the page does not say."""
    position = blocks.index(block) + 1
    following = blocks[position] if position < len(blocks) else None
    return following.text if following is not None and "prints" in following.directives else None


def agrees(printed, expected):
    """Whether output is as the page shows it; `...` stands for anything, on a line or for lines."""
    def trimmed(text):
        return "\n".join(line.rstrip() for line in text.strip().splitlines())
    pattern = re.escape(trimmed(expected)).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, trimmed(printed), re.S) is not None


def quote_problem(block, root=ROOT):
    """Why a quoted block is not what its source says, or ""."""
    source = root / block.directives["from"]
    if not source.is_file():
        return f"{block.place}: {block.directives['from']} does not exist"
    if source.suffix in (".cc", ".c", ".cu") and source.relative_to(root).parts[0] not in ("examples", "tests"):
        return f"{block.place}: {block.directives['from']} is no program that the tests build and run"
    theirs = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
    position, gap = 0, True
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        line = line.strip()
        if not line:
            continue
        if re.fullmatch(r"(//|#)? ?\.\.\.", line):
            gap = True
            continue
        while position < len(theirs) and not theirs[position] and not gap:
            position += 1
        found = next((n for n in range(position, len(theirs) if gap else min(position + 1, len(theirs)))
                      if theirs[n] == line), None)
        if found is None:
            return f"{block.page}:{number}: {block.directives['from']} does not say this here: {line}"
        position, gap = found + 1, False
    return ""
