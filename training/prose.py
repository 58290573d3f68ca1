"""English sentences about anything, for the teachers to label: what people say without a word that a film review would praise or
blame with. From two Debian packages that are freely licensed, wordnet-base (the example sentences of a dictionary) and fortunes.

    for text in sentences([pathlib.Path("/usr/share/wordnet"), pathlib.Path("/usr/share/games/fortunes")]): ...
"""

import re

WORDS = range(3, 46)  # a sentence of fewer or more words says too little or is cut
FORTUNES_LEFT_OUT = ("ascii-art", "perl", "translate-me", "knghtbrd", "debian", "linux", "linuxcookie", "computers", "magic")


def dictionary(path):
    """Examples in quotes of every gloss, and the definitions of adjectives."""
    for line in path.read_text("utf-8", "replace").splitlines():
        gloss = line.partition(" | ")[2]
        yield from re.findall(r'"([^"]+)"', gloss)
        if path.name == "data.adj":
            yield gloss.partition(";")[0].strip()


def cookies(path):
    """Sentences of the texts between lines that hold a percent sign; a last line with the source is left out."""
    for text in re.split(r"^%\n", path.read_text("utf-8", "replace"), flags=re.MULTILINE):
        lines = [line for line in text.splitlines() if not re.match(r"\s*--", line)]
        yield from re.split(r"(?<=[.!?])[\s\"]+", " ".join(" ".join(lines).split()))


def sentences(folders):
    """Every sentence once, in the order of the files' names."""
    found = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.name in ("data.adj", "data.adv", "data.noun", "data.verb"):
                made = dictionary(path)
            elif path.is_file() and not path.is_symlink() and not path.suffix and path.name not in FORTUNES_LEFT_OUT \
                    and "wordnet" not in str(folder):
                made = cookies(path)
            else:
                continue
            for text in made:
                text = text.strip().strip("\"'")
                if text.isascii() and len(text.split()) in WORDS:
                    found.setdefault(text)
    return list(found)
