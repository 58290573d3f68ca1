"""Relative links, pictures and anchors of the Markdown files."""
import re
import subprocess

from blocks import ROOT

FENCED = re.compile(r"^(`{3,}).*?^\1\s*$", re.S | re.M)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
PICTURE = re.compile(r"<(?:img|source)\b[^>]*?\b(?:src|srcset)=\"([^\"\s]+)\"")


def markdown_files(root=ROOT):
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=root, text=True,
                             stdout=subprocess.PIPE, check=True).stdout.splitlines()
    return sorted(p for p in listing if (root / p).is_file())


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCED.sub("", text), re.M):
        plain = re.sub(r"[`*]|<!--.*?-->", "", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip()
        base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        name, copy = base, 0
        while name in found:
            copy += 1
            name = f"{base}-{copy}"
        found.add(name)
    return found


def link_problems(page, root=ROOT):
    """(problems, number of links that were followed)"""
    problems, followed = [], 0
    text = (root / page).read_text(encoding="utf-8")
    plain = FENCED.sub("", text)
    for target in LINK.findall(plain) + PICTURE.findall(plain):
        if re.match(r"[a-z]+:", target):
            continue
        followed += 1
        name, _, anchor = target.partition("#")
        file = (root / page).parent / name if name else root / page
        if not file.exists() or not file.resolve().is_relative_to(root.resolve()):
            problems.append(f"{page}: {target}: there is no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8"))):
            problems.append(f"{page}: {target}: there is no such heading")
    return problems, followed
