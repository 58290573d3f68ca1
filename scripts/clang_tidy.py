#!/usr/bin/env python3
"""clang-tidy over the sources that a build compiles as one, joined: what headers they share is read and checked once.

  clang_tidy.py BUILD_DIR    a build configured with TESSERA_UNITY=ON (preset lint); nothing of it need be compiled

The sources stand in one file and are not included by it, for the static analyzer follows paths in the main file alone.
"""
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Steps through one function, of the analyzer's 225000: a quarter of the time, and still every path of short functions.
MAX_STEPS = 30000
OPTIONS = [f"--extra-arg={word}" for word in ("-Xclang", "-analyzer-config", "-Xclang", f"max-nodes={MAX_STEPS}")]


def members(source):
    """The sources that a unity file of CMake includes; another file is its own only member."""
    if not re.fullmatch(r"unity_\d+_cxx\.cxx", source.name):
        return [source]
    return [pathlib.Path(path) for path in re.findall(r'^#include "(.*)"$', source.read_text(), re.M)]


def is_of_cuda(source):
    """clang 14 cannot parse the CUDA headers, and what stands for them in a build without is made to their signatures."""
    return source.is_relative_to(ROOT) and "cuda" in str(source.relative_to(ROOT))


def joined(sources):
    """(text of all, first line of each)."""
    texts, begins, line = [], [], 1
    for source in sources:
        begins.append(line)
        texts.append(source.read_text().rstrip("\n") + "\n")
        line += texts[-1].count("\n")
    return "".join(texts), begins


def located(output, path, sources, begins):
    """clang-tidy's output with the places of the joined file as those of its sources."""

    def place(match):
        line = int(match[1])
        source, begin = max(((s, b) for s, b in zip(sources, begins) if b <= line), key=lambda pair: pair[1])
        return f"{source}:{line - begin + 1}:"

    return re.sub(re.escape(str(path)) + r":(\d+):", place, output)


def check(build):
    """For each group of sources (their paths, exit code, output)."""
    folder = build / "joined"
    folder.mkdir(exist_ok=True)
    groups, commands = [], []
    for entry in json.loads((build / "compile_commands.json").read_text()):
        source = pathlib.Path(entry["file"])
        sources = [member for member in members(source) if not is_of_cuda(member)]
        if not sources:
            continue
        text, begins = joined(sources)
        path = folder / f"{len(groups)}_{sources[0].stem}.cc"
        path.write_text(text)
        groups.append((path, sources, begins))
        commands.append({**entry, "file": str(path), "command": entry["command"].replace(str(source), str(path))})
    (folder / "compile_commands.json").write_text(json.dumps(commands, indent=1))
    groups.sort(key=lambda group: -group[0].stat().st_size)  # the long ones first: both processors have work to the end

    def run(group):
        path, sources, begins = group
        done = subprocess.run(["clang-tidy", "-p", folder, f"--config-file={ROOT / '.clang-tidy'}", "--quiet", *OPTIONS, path],
                              cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return sources, done.returncode, located(done.stdout, path, sources, begins)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, groups))


def main():
    results = check(pathlib.Path(sys.argv[1]).resolve())
    for _, code, output in results:
        if code != 0:
            print(output)
    return 1 if any(code for _, code, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
