"""What a linked file is made of, as the build that linked it says: repository files and flags. Needs ninja, ar and the
compiler of the build; the hash of a closure that is written down needs none of them.

An archive gives a program only the members that something refers to, and only those count: an edit of an object that the
linker never took changes nothing in the program. Which it took is asked of the linker itself, in a second link over thin
archives: the trace names a member of those by its path, where `launch.cu.o` of one kernel is not that of another.
"""
import json
import pathlib
import re
import shlex
import subprocess
import tempfile


class BuildError(Exception):
    """The build cannot say what was asked."""


def output_of(command, cwd):
    done = subprocess.run([str(word) for word in command], cwd=cwd, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-2000:]}"
                         f"{done.stderr[-2000:]}")
    return done.stdout


class Build:
    """A build folder of CMake's Ninja generator in which the linked files asked for are built and up to date."""

    def __init__(self, folder, root):
        self.folder, self.root = pathlib.Path(folder).resolve(), pathlib.Path(root).resolve()
        if not (self.folder / "build.ninja").is_file():
            raise BuildError(f"{self.folder}: got no build.ninja, expected a build folder: cmake --preset cuda")
        listing = json.loads((self.folder / "compile_commands.json").read_text())
        self.commands = {}
        for entry in listing:
            words = shlex.split(entry["command"])
            self.commands[words[words.index("-o") + 1]] = words

    def closure(self, *outputs):
        """{"files": [...], "flags": [...]}, each sorted: of every object that the outputs were linked of, and the links'."""
        objects, files, flags = set(), set(), set()
        for output in outputs:
            command = self.link_command(output)
            objects |= self.linked_objects(output, command)
            files |= self.own_files(self.inputs(output))  # a linker script
            flags.add(link_flags(command, self.root))
        for paths in self.dependencies(objects).values():
            files |= self.own_files(paths)
        flags |= {compile_flags(self.commands[name], self.root) for name in objects}
        return {"files": sorted(files), "flags": sorted(flags)}

    def own_files(self, paths):
        """Those in the repository and not in the build, relative to the root; headers of system and toolkit drop out."""
        found = set()
        for path in paths:
            path = (self.folder / path).resolve()
            if path.is_relative_to(self.root) and not path.is_relative_to(self.folder):
                found.add(path.relative_to(self.root).as_posix())
        return found

    def inputs(self, output):
        """What ninja links or archives it of, in order, without what must merely be there first."""
        query = output_of(["ninja", "-t", "query", output], self.folder)
        section = re.search(r"^  input: .*\n((?:    .*\n)*)", query, re.M)
        if section is None:
            raise BuildError(f"{self.folder / output}: ninja knows no rule that makes it")
        lines = [line.strip() for line in section[1].splitlines()]
        return [line.removeprefix("| ") for line in lines if not line.startswith("|| ")]

    def link_command(self, output):
        """Words of the command that links it."""
        lines = output_of(["ninja", "-t", "commands", "-s", output], self.folder).splitlines()
        for part in lines[-1].split("&&") if lines else ():
            words = shlex.split(part)
            if "-o" in words and words[words.index("-o") + 1] == output:
                return words
        raise BuildError(f"{self.folder / output}: no command links it: {lines[-1:]}")

    def linked_objects(self, output, command):
        """Objects of this build that the linker takes, as ninja names them."""
        with tempfile.TemporaryDirectory(prefix="tessera-closure-") as scratch:
            words, thin = [], {}
            for word in command:
                archive = self.folder / word
                if word.endswith(".a") and not pathlib.PurePath(word).is_absolute() and archive.is_file():
                    if word not in thin:
                        thin[word] = pathlib.Path(scratch, f"{len(thin)}.a")
                        members = [self.folder / name for name in self.inputs(word) if name.endswith(".o")]
                        output_of(["ar", "rc", "--thin", thin[word], *members], self.folder)
                    word = thin[word]
                words.append(word)
            words[words.index("-o") + 1] = pathlib.Path(scratch, "linked")
            trace = output_of([*words, "-Wl,--trace", "-Wl,--trace"], self.folder)  # twice: archives' members too
        objects = set()
        for line in trace.splitlines():
            path = pathlib.Path(self.folder, line.strip())
            # `(archive)member` is of an archive that is none of this build's: the toolkit's, the system's.
            if path.suffix == ".o" and path.is_relative_to(self.folder) and not line.startswith("("):
                objects.add(path.relative_to(self.folder).as_posix())
        if not objects or objects - set(self.commands):
            raise BuildError(f"{self.folder / output}: the linker's trace names {sorted(objects - set(self.commands))}, "
                             f"expected objects of compile_commands.json\n{trace[-2000:]}")
        return objects

    def dependencies(self, objects):
        """{object: paths} that the compiler read, from ninja's log of dependency files."""
        found, paths = {}, None
        for line in output_of(["ninja", "-t", "deps", *sorted(objects)], self.folder).splitlines():
            header = re.fullmatch(r"(.+): #deps \d+, deps mtime \d+ \((VALID|STALE)\)", line)
            if header:
                if header[2] == "STALE":
                    raise BuildError(f"{header[1]}: compiled again since its dependencies were logged; build first")
                paths = found.setdefault(header[1], [])
            elif line.strip() and paths is not None:
                paths.append(line.strip())
        missing = sorted(name for name in objects if not found.get(name))
        if missing:
            raise BuildError(f"{missing[0]}: ninja has no dependencies of it; build first")
        return found


# Options that take a word of their own and say where something lies, not what is compiled.
PLACES_APART = {"-o", "-c", "-MT", "-MF", "-MQ", "-I", "-isystem", "-iquote", "-L"}
PLACES = re.compile(r"-(MD|MMD|I.*|isystem.*|L.*|l.*|Wl,-soname.*|W(?!l,|a,|p,).*)$")
# Names in messages and debug information, not code; it holds the folder of the checkout, which a hash must not.
PREFIX_MAP = re.compile(r",?-ffile-prefix-map=[^,]*")
LAUNCHERS = {"ccache", "sccache", "distcc"}


def decisive(words, root):
    """Options that decide what is made: neither places nor warnings. Paths of the repository become relative to it."""
    kept, skip = [], False
    for word in words:
        if skip or not word.startswith("-"):
            # A word that belongs to the option before it (`-x cu`), unless that one is dropped with its word.
            if not skip and kept and kept[-1] in ("-x", "-include"):
                kept[-1] += " " + word
            skip = False
        elif word in PLACES_APART:
            skip = True
        elif not PLACES.match(word):
            kept.append(PREFIX_MAP.sub("", word).replace(f"{root}/", ""))
    return [word for word in kept if word]


def compile_flags(words, root):
    """`nvcc -O3 ...` of a compiler's command line, wherever compiler and repository lie."""
    if pathlib.PurePath(words[0]).name in LAUNCHERS:
        words = words[1:]
    return " ".join([pathlib.PurePath(words[0]).name, *decisive(words[1:], root)])


def link_flags(words, root):
    return " ".join(["link", *decisive(words[1:], root)])


def difference(written, built):
    """What a written closure lacks and what it has too much, in words, one line each."""
    lines = []
    for kind in ("files", "flags"):
        have, want = set(written.get(kind, ())), set(built[kind])
        lines += [f"{kind}: missing {name}" for name in sorted(want - have)]
        lines += [f"{kind}: extra {name}" for name in sorted(have - want)]
    return lines
