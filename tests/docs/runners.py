"""Runs the blocks of a page: programs compiled against a build, Python by one interpreter, shell commands in a folder.

Every function returns a list of problems, each starting with the place of the block. Nothing runs on a GPU here:
CUDA_VISIBLE_DEVICES is empty, so that pages print the same on every machine.
"""
import json
import os
import pathlib
import re
import shlex
import subprocess
import tempfile
from typing import NamedTuple

from blocks import PROGRAM_LANGUAGES, ROOT, agrees, classify, needs_of, output_after, read_blocks

BLOCK_SECONDS = 120
BETWEEN = "\x1e"  # printed between two Python blocks of a page
RUN_AS_THEY_ARE = {"cmp", "cat", "head", "ls", "mkdir", "printf", "sort", "wc", "xxd"}
COMPILERS = {".cc": ["c++", "-std=c++20", "-Wall", "-Wextra", "-Werror"], ".c": ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror"]}


class Setting(NamedTuple):
    root: pathlib.Path
    build: pathlib.Path  # with libraries and command built
    python: str          # an interpreter that has the package tessera and NumPy, "" where there is none

    @property
    def tessera(self):
        return self.build / "tools" / "tessera" / "tessera"

    @property
    def environment(self):
        return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8",
                "PATH": f"{self.tessera.parent}:{os.environ['PATH']}"}


def setting_of_environment():
    """TESSERA_BUILD_DIR names the build (build/test if unset), TESSERA_PYTHON the interpreter."""
    return Setting(ROOT, pathlib.Path(os.environ.get("TESSERA_BUILD_DIR", ROOT / "build" / "test")),
                   os.environ.get("TESSERA_PYTHON", ""))


def run(command, setting, cwd, seconds=BLOCK_SECONDS):
    """(exit code, standard output, standard error)."""
    try:
        done = subprocess.run([str(c) for c in command], cwd=cwd, env=setting.environment, text=True, errors="replace",
                              capture_output=True, timeout=seconds)
        return done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        return 124, "", f"no end within {seconds} s"


def scratch(setting):
    """A folder as a reader's checkout: models, examples and docs are there, what commands write goes away."""
    folder = tempfile.TemporaryDirectory(prefix="tessera-docs-")
    for name in ("models", "examples", "docs"):
        if (setting.root / name).exists():
            pathlib.Path(folder.name, name).symlink_to(setting.root / name)
    return folder


def compared(block, expected, printed):
    if expected is None or agrees(printed, expected):
        return []
    return [f"{block.place}: prints\n{printed}\nbut the page says\n{expected}"]


# ---- C and C++ ------------------------------------------------------------------------------------------------------

def link_line(setting):
    """What the command is linked with: every library of the build, and theirs."""
    listing = subprocess.run(["ninja", "-C", str(setting.build), "-t", "commands", "tools/tessera/tessera"], text=True,
                             capture_output=True, check=True).stdout.splitlines()
    words = shlex.split(listing[-1])
    start = words.index("-o") + 2
    return [word for word in words[start:] if word not in (":", "&&")]


def source_of(block, setting):
    """The whole program of a block: itself, or wrapped."""
    suffix = PROGRAM_LANGUAGES[block.language]
    if "wrap" not in block.directives:
        return suffix, block.text
    wrap = setting.root / "tests" / "docs" / "wraps" / (block.directives["wrap"] + suffix)
    before, marker, after = wrap.read_text(encoding="utf-8").partition("// the block\n")
    if not marker:
        raise ValueError(f"{wrap}: has no line '// the block'")
    return suffix, before + f'#line {block.line + 1} "{block.page}"\n' + block.text + after


def run_program(block, blocks, setting, libraries):
    with scratch(setting) as folder:
        suffix, text = source_of(block, setting)
        source, program = pathlib.Path(folder, "block" + suffix), pathlib.Path(folder, "program")
        source.write_text(text, encoding="utf-8")
        flags = ["-O0", f"-I{setting.root / 'include'}", source, "-o", program]
        if suffix == ".c":  # as C users link: the shared library, nothing of C++
            flags += [f"-L{setting.build}", f"-Wl,-rpath,{setting.build}", "-ltessera", "-lm"]
        else:
            flags += libraries
        code, out, err = run([*COMPILERS[suffix], *flags], setting, setting.build)
        if code != 0:
            return [f"{block.place}: does not compile\n{out}{err}"]
        code, out, err = run([program], setting, folder)
        if code != 0:
            return [f"{block.place}: exit code {code}\n{out}{err}"]
        return compared(block, output_after(blocks, block), out)


# ---- Python ---------------------------------------------------------------------------------------------------------

def python_script(page, chosen, root):
    """The chosen blocks as one script in which line n is line n of the page."""
    page_lines = (root / page).read_text(encoding="utf-8").splitlines()
    script = [""] * (len(page_lines) + 1)
    for block in chosen:
        body = block.text.splitlines()
        script[block.line:block.line + len(body)] = body
        script[block.line + len(body)] = f"print({BETWEEN!r}, flush=True)"
    return "\n".join(script) + "\n"


def run_python(page, setting, offers=frozenset()):
    """Blocks whose needs are among `offers`, in one namespace. (problems, blocks that ran)"""
    blocks = read_blocks(page, setting.root)
    chosen = [b for b in blocks if classify(b) in ("python", "python elsewhere") and needs_of(b) <= offers]
    if not chosen:
        return [], []
    with scratch(setting) as folder:
        # Not the page's own name: transformers.py would be what `import transformers` finds.
        script = pathlib.Path(folder, f"blocks_of_{pathlib.Path(page).stem}.py")
        script.write_text(python_script(page, chosen, setting.root), encoding="utf-8")
        # On a GPU machine the caller's environment decides which devices there are.
        environment = setting.environment | ({"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
                                             if "gpu" in offers else {})
        try:
            done = subprocess.run([setting.python, script], cwd=folder, env=environment, text=True, errors="replace",
                                  capture_output=True, timeout=600)
        except subprocess.TimeoutExpired:
            return [f"{page}: its Python blocks did not end within 600 s"], []
        printed = done.stdout.split(BETWEEN + "\n")
        if done.returncode != 0:
            place = chosen[min(len(printed) - 1, len(chosen) - 1)].place
            return [f"{place}: exit code {done.returncode}\n{done.stdout}{done.stderr}"], chosen[:len(printed) - 1]
        problems = [p for block, text in zip(chosen, printed) for p in compared(block, output_after(blocks, block), text)]
        return problems, chosen


# ---- shell ----------------------------------------------------------------------------------------------------------

def commands_of(text):
    """The commands of a block, one a line; a backslash joins lines, comments go."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for command in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if command]


def console_steps(text):
    """[(command, expected output)] of a console block; no output shown: not compared."""
    steps = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif not steps:
            return []
        else:
            steps[-1][1].append(line)
    return [(command, "\n".join(output) if any(output) else None) for command, output in steps]


def runs_here(command):
    """Whether a command is run, or only checked for what it names: GPUs are not here, builds take too long."""
    return command.split()[0] in RUN_AS_THEY_ARE | {"tessera"} and not re.search(r"\bcuda\b", command)


def run_shell(page, setting):
    """The sh and console blocks of a page in one folder, in order. (problems, commands run, commands checked)"""
    problems, ran, checked = [], 0, 0
    with scratch(setting) as folder:
        for block in read_blocks(page, setting.root):
            kind = classify(block)
            if kind not in ("shell", "shell, checked", "console"):
                continue
            steps = console_steps(block.text) if kind == "console" else [(c, None) for c in commands_of(block.text)]
            if not steps:
                problems.append(f"{block.place}: no command in it")
            for command, expected in steps:
                if kind == "shell, checked" or not runs_here(command):
                    checked += 1
                    problems += [f"{block.place}: {p}" for p in check_command(command, setting)]
                    continue
                ran += 1
                code, out, err = run(["bash", "-euo", "pipefail", "-c", command], setting, folder)
                if code != 0:
                    problems.append(f"{block.place}: {command}: exit code {code}\n{out}{err}")
                problems += compared(block, expected, out)
    return problems, ran, checked


def check_command(command, setting):
    """What is wrong with what a command names. Only the words are judged; it is not run."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and words[0] == "mpirun":
        words = words[words.index("tessera"):] if "tessera" in words else []
    checkers = {"make": check_make, "cmake": check_cmake, "pip": check_pip, "python3": check_python, "python": check_python,
                "tessera": check_tessera, "ninja": lambda *_: [], "vllm": lambda *_: []}
    if not words or words[0] not in checkers:
        return [f"no rule for the command: {command}"]
    return checkers[words[0]](words[1:], setting)


def check_make(words, setting):
    makefile = (setting.root / "Makefile").read_text(encoding="utf-8")
    return [f"make has no target {word}" for word in words if not re.search(rf"^{re.escape(word)}:", makefile, re.M)]


def check_cmake(words, setting):
    presets = json.loads((setting.root / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]
    declared = "\n".join(p.read_text(encoding="utf-8") for p in
                         [setting.root / "CMakeLists.txt", *sorted((setting.root / "cmake").glob("*.cmake"))])
    problems = []
    for word, value in zip(words, [*words[1:], ""]):
        if word == "--preset" and value not in {preset["name"] for preset in presets}:
            problems.append(f"cmake has no preset {value}")
        option = re.match(r"-D(TESSERA_\w+)=", word)
        if option and not re.search(rf"\b(option|set)\({option[1]}\b", declared):
            problems.append(f"cmake has no option {option[1]}")
    return problems


def check_pip(words, setting):
    problems = []
    for word in words[1:]:
        folder, _, extras = word.partition("[")
        if folder.startswith("."):
            project = setting.root / folder / "pyproject.toml"
            if not project.is_file():
                problems.append(f"pip: {word} has no pyproject.toml")
            elif extras and not re.search(rf"^{re.escape(extras.rstrip(']'))} *=", project.read_text(), re.M):
                problems.append(f"pip: {word}: pyproject.toml has no such extra")
    return problems


def check_python(words, setting):
    return [] if words and (words[0] == "-m" or (setting.root / words[0]).is_file()) else [f"python has no file {words[:1]}"]


def check_tessera(words, setting):
    """The sub-command, its options and the presets it is given."""
    path = []
    for word in words:
        if word.startswith("-") or not re.fullmatch(r"[a-z]+", word) or len(path) == 2:
            break
        path.append(word)
    while True:
        code, out, _ = run([setting.tessera, *path, "--help"], setting, setting.root)
        usage = re.search(r"^Usage: tessera(.*)", out, re.M)
        if code != 0 or usage is None:
            return [f"tessera has no command '{' '.join(path)}'"]
        if not path or usage[1].startswith(" " + " ".join(path)):
            break
        path.pop()
    if not path and not any(word in ("--help", "--version") for word in words):
        return [f"tessera has no command '{' '.join(words[:2])}'"]
    known = set(re.findall(r"(?:^|[ ,])(--?[a-z][\w-]*)", out, re.M))
    problems = [f"tessera {' '.join(path)} has no option {word}" for word in words
                if word.startswith("-") and word.split("=")[0] not in known]
    listed = out.partition("Presets:")[2]
    problems += [f"tessera has no preset {value}" for word, value in zip(words, words[1:])
                 if word == "--preset" and listed and not re.search(rf"(^|[\s,]){re.escape(value)}([\s,]|$)", listed)]
    return problems
