"""Rules of this repository that a compiler does not check. Each rule takes files and returns a list of complaints."""
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

CODE = (".h", ".cc", ".cuh", ".cu")
MAX_FILE_LINES = 600
MAX_HEADER_LINES = 180
MAX_KERNEL_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_MAIN_LOOP_LINES = 100  # a device main loop

# Who may include whom. A layer may include itself and what is listed; tests, bench and fuzzers may include anything.
MAY_INCLUDE = {
    "core": set(),
    "batching": {"core"},
    "cuda/core": {"core", "batching"},  # host side of the kernels: error checks, tensor maps, arrays of the plan
    "cuda/ptx": {"core"},
    "cuda/cta": {"core", "cuda/core", "cuda/ptx"},
    "cuda/grouped": {"core", "batching", "cuda/core", "cuda/cta", "cuda/ptx"},  # what grouped GEMMs share
    "cuda/kernels": {"core", "batching", "cuda/core", "cuda/cta", "cuda/grouped", "cuda/ptx"},
    "cpu": {"core", "batching"},
    "moe": {"core", "batching", "cuda/core", "cuda/grouped", "cuda/kernels", "cpu"},
    "io": {"core"},
    "checkpoint": {"core", "cuda/core", "moe", "io"},  # layers of published models, from disk
    "classifier": {"core", "batching", "cuda/core", "cuda/grouped", "cuda/kernels", "cpu", "moe", "io"},
    "api": {"core", "cuda/core", "cpu", "moe", "io", "checkpoint", "classifier"},  # the C interface
    "tools": {"core", "batching", "cuda/core", "cuda/kernels", "cpu", "moe", "io", "checkpoint", "classifier"},
    "examples": {"core", "batching", "cuda/core", "moe", "checkpoint", "classifier"},
}

# Public headers of a folder whose layer has another name.
FOLDER_LAYERS = {"cuda": "cuda/core"}

BANNED_WORDS = {
    r"\b(TODO|FIXME|XXX|HACK)\b": "unfinished work belongs in no commit",
    r"\b(not implemented|placeholder)\b": "unfinished work belongs in no commit",
    r"/(work|root|home)/": "a path of somebody's machine",
    r"\bstd::endl\b": "use '\\n': a flush in the middle of output is slow",
}
BANNED_IN_LIBRARY = {
    r"\b(printf|fprintf|puts)\(|std::(cout|cerr)": "the library never prints",
    r"\b(exit|abort|_exit)\(": "the library never exits",
    r"\basm\b": "PTX lives in src/cuda/ptx only",
    r'"(?:[^"\\]|\\.)*--[a-z](?:[^"\\]|\\.)*"': "the library names its argument; the command adds the dashes",
}
BANNED_IN_PYTHON = {
    r"\bpickle\b|torch\.load\b|\beval\(|\bexec\(|__import__": "a loader must not execute what it loads",
}


def tracked_files():
    """Files git tracks or would track, as paths relative to the repository."""
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, check=True).stdout
    return [pathlib.Path(line) for line in listing.splitlines() if (ROOT / line).is_file()]


def layer_of(path):
    """The layer a file belongs to, or None where anything may be included."""
    parts = path.parts
    if parts[0] == "include":
        return FOLDER_LAYERS.get(parts[2], parts[2]) if len(parts) > 3 else "api"
    if parts[0] == "src":
        return "/".join(parts[1:3]) if parts[1] == "cuda" else parts[1]
    return parts[0] if parts[0] in ("tools", "examples") else None


def included_layer(header):
    """The layer of an include line's path, or None for system headers."""
    if header.startswith("tessera/"):
        folder = header.split("/")[1]
        return FOLDER_LAYERS.get(folder, folder) if header.count("/") > 1 else "api"
    first = header.split("/")[0]
    if first == "cuda":
        return "/".join(header.split("/")[:2])
    return first if first in MAY_INCLUDE else None


def include_direction(path, text):
    layer = layer_of(path)
    if layer not in MAY_INCLUDE:
        return []
    complaints = []
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#include "([^"]+)"', line)
        target = match and included_layer(match[1])
        if not target or target == layer and layer != "cuda/kernels" or target in MAY_INCLUDE[layer]:
            continue
        if layer == "cuda/kernels" and target == layer and match[1].split("/")[2] == path.parts[3]:
            continue  # a kernel folder includes its own files, never another kernel's
        complaints.append(f"{path}:{number}: layer {layer} must not include {match[1]}")
    return complaints


def file_length(path, text):
    limit = MAX_FILE_LINES
    if path.name == "kernel.cuh":
        limit = MAX_KERNEL_LINES
    elif path.suffix == ".h" and path.parts[0] == "include":
        limit = MAX_HEADER_LINES
    lines = text.count("\n")
    return [f"{path}: {lines} lines, at most {limit}"] if lines > limit else []


def function_length(path, text):
    """C++: a block that opens at the end of a line with ')' before it, measured to its closing brace."""
    complaints, stack = [], []
    limit = MAX_MAIN_LOOP_LINES if path.suffix == ".cuh" else MAX_FUNCTION_LINES
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'|//.*', "", line)
        for position, character in enumerate(code):
            if character == "{":
                before = code[:position].rstrip()
                opens_function = bool(re.search(r"\)\s*(const|noexcept|override|final|->\s*[\w:<>]+|\s)*$", before))
                control = re.search(r"\b(if|for|while|switch|catch)\b", before)
                stack.append(number if opens_function and not control else None)
            elif character == "}" and stack:
                begin = stack.pop()
                if begin and number - begin + 1 > limit:
                    complaints.append(f"{path}:{begin}: function of {number - begin + 1} lines, at most {limit}")
    return complaints


def python_function_length(path, text):
    complaints, begin, indent = [], None, 0
    lines = text.splitlines() + ["end"]
    for number, line in enumerate(lines, 1):
        match = re.match(r"( *)def ", line)
        ends = begin and line.strip() and len(line) - len(line.lstrip()) <= indent
        if ends:
            last = next(n for n in range(number - 1, begin - 1, -1) if lines[n - 1].strip())
            if last - begin + 1 > MAX_FUNCTION_LINES:
                complaints.append(f"{path}:{begin}: function of {last - begin + 1} lines, at most {MAX_FUNCTION_LINES}")
            begin = None
        if match and begin is None:
            begin, indent = number, len(match[1])
    return complaints


def matches(path, text, patterns):
    complaints = []
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, reason in patterns.items():
            found = re.search(pattern, line)
            if found:
                complaints.append(f"{path}:{number}: '{found[0]}': {reason}")
    return complaints


def banned_words(path, text):
    if path.parts[:2] == ("tests", "tidy"):  # the rules name what they ban
        return []
    complaints = matches(path, text, BANNED_WORDS)
    in_library = path.parts[0] in ("src", "include") and path.suffix in CODE
    if in_library and path.parts[:3] != ("src", "cuda", "ptx"):
        complaints += matches(path, text, BANNED_IN_LIBRARY)
    if path.suffix == ".py":
        complaints += matches(path, text, BANNED_IN_PYTHON)
    return complaints


def commented_out_code(path, text):
    """Two comment lines in a row that end like statements. A header's opening contract shows code and is exempt."""
    lines = text.splitlines()
    body = 0
    while body < len(lines) and (lines[body].startswith("//") or not lines[body].strip()):
        body += 1
    pattern = re.compile(r"^\s*//(?!/)\s*[\w:<>&*\[\]().,\->+=! ]*[;{}]\s*$")
    complaints = []
    for number in range(body + 1, len(lines)):
        if pattern.match(lines[number]) and pattern.match(lines[number - 1]):
            complaints.append(f"{path}:{number + 1}: commented-out code")
    return complaints


def dead_files(paths, read):
    """Headers nobody includes, scripts and documents nobody names."""
    texts = {path: read(path) for path in paths if path.suffix in CODE + (".py", ".md", ".sh", ".txt", ".json", "")}
    complaints = []
    for path in paths:
        others = [text for other, text in texts.items() if other != path]
        if path.suffix in (".h", ".cuh"):
            tail = "/".join(path.parts[1:])
            alive = any(f'"{tail}"' in text or f'"{path.name}"' in text or f'/{path.name}"' in text for text in others)
        elif path.suffix == ".sh" or path.parts[0] == "scripts" or path.parts[0] == "docs":
            picture = path.stem + ".svg"  # a drawing script lives by its picture
            alive = any(path.name in text or picture in text for text in others)
        else:
            alive = True
        if not alive:
            complaints.append(f"{path}: nothing refers to this file")
    return complaints


NAMED_FILE = re.compile(r"(?<![\w./<-])[\w.-]*\w(?:/[\w.-]+)*\.(?:h|cc|cuh|cu|py|md|sh|cmake)(?![\w/])")


def comments(path, text):
    """(line number, words) of the comments of C++ and CUDA, and of Python's that begin with a hash."""
    mark = r"(?<!:)//(.*)" if path.suffix in CODE else r"(?:^|\s)#(.*)"
    for number, line in enumerate(text.splitlines(), 1):
        code = re.sub(r'"(\\.|[^"\\])*"', '""', line)
        found = re.search(mark, code)
        if found:
            yield number, found[1]


def named_files(path, text, paths):
    """Files that comments name: a file of the repository ends with those words. Python's standard names are none."""
    known = {"/" + str(other) for other in paths}
    complaints = []
    for number, words in comments(path, text):
        for name in NAMED_FILE.findall(words):
            if not any(other.endswith("/" + name) for other in known):
                complaints.append(f"{path}:{number}: no file is called {name}")
    return complaints


def text_form(path, text):
    complaints = []
    if text and not text.endswith("\n"):
        complaints.append(f"{path}: no newline at the end")
    if path.suffix in CODE + (".py", ".md", ".sh", ".txt"):
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip() or "\t" in line:
                complaints.append(f"{path}:{number}: trailing space or tab")
    return complaints


def check_file(path, text):
    complaints = banned_words(path, text) + text_form(path, text)
    if path.suffix in CODE:
        complaints += include_direction(path, text) + file_length(path, text) + function_length(path, text)
        complaints += commented_out_code(path, text)
    if path.suffix == ".py":
        complaints += file_length(path, text) + python_function_length(path, text)
    return complaints
