#!/usr/bin/env python3
"""The GPU record: which sources the GPU tests last passed on, where, and with what result.

  record.py check                     fails when a suite's sources differ from those recorded (part of make test)
  record.py hash SUITE                the hash of a suite's sources
  record.py run BUILD_DIR SUITE...    runs prebuilt tests and the sanitizers on this machine's GPU and writes RECORD.json
  record.py closure BUILD_DIR         writes closure.json, of a build with nvcc: what each suite's programs are made of
  record.py compare BUILD_DIR         fails when closure.json is not what the build says (part of make test with nvcc)

A suite of suites.json is a GoogleTest program, run again under each sanitizer, or a folder of Python tests of the package:
  linked     files of the build; the sources they are made of are the suite's, by closure.json
  files      globs of what runs or is read without being compiled, and of the suite's own tests
  blocks     true: the documents' Python blocks that only a GPU machine can run are the suite's too
  processes  into how many of them the program's tests are dealt out, side by side; one if it is not there
  alone      filter of the program's tests that nothing may disturb: timing, streams, memory that is full
  sanitized  filter of the tests that reach every kernel, or
  sanitizer  why the suite runs under none
  unittest   folder of Python tests; `alone` names those that nothing may disturb: timing, streams; `first` those that
             take long: a compiler or a process of their own
The hash covers these sources, the compiler's flags and the suite's entry itself. A kernel change without its GPU run is an
error. Where no GPU can be had, a line of STALE.md names suite and hash that it excuses, and why; the check then passes with
a warning. Needs Python only, neither git nor a compiler, but for closure and compare.
"""
import argparse
import collections
import concurrent.futures
import datetime
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "docs")]

import blocks
import closure
import side_by_side

RECORD, STALE, SUITES, CLOSURE = (HERE / name for name in ("RECORD.json", "STALE.md", "suites.json", "closure.json"))
SOURCE_SUFFIXES = (".h", ".cuh", ".cc", ".cu", ".py", ".pyi", ".toml", ".json", ".txt", ".safetensors")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CLEAN = "0 errors, planted bug found"
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
SLOWEST = 10  # tests whose times are printed
# Each holds a GPU context with its shadow memory, and a connection of its own, of which the tool opens a limited number.
SANITIZERS_AT_A_TIME = 8
PYTHON_PROCESSES = 12  # more would wait for each other's share of one GPU
PACKAGES = ("torch", "transformers", "cupy-cuda13x", "cupy-cuda12x", "numpy")  # of a Python run, where they are installed


def suites():
    return json.loads(SUITES.read_text())


def closures():
    return json.loads(CLOSURE.read_text()) if CLOSURE.exists() else {}


def source_files(suite):
    """Names of the suite's sources, sorted: what its programs are made of by closure.json, and what suites.json adds."""
    files = set(closures().get(suite, {}).get("files", ()))
    for pattern in suites()[suite].get("files", ()):
        files |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)
                  if path.is_file() and path.suffix in SOURCE_SUFFIXES}
    return sorted(files)


def gpu_blocks():
    """[(page, text)] of the documents' Python blocks that make test cannot run, and of what they must print."""
    found = []
    for page in blocks.pages(ROOT):
        of_page = blocks.read_blocks(page, ROOT)
        for block in of_page:
            if block.language == "python" and "needs" in block.directives:
                found += [(page, block.directives["needs"] + "\n" + block.text),
                          (page, blocks.output_after(of_page, block) or "")]
    return found


def sources_sha256(suite):
    """One hash over the suite's entry, its flags, and names and contents of its sources in the order of their names."""
    digest = hashlib.sha256()
    entry = suites()[suite]
    digest.update(json.dumps([entry, closures().get(suite, {}).get("flags")], sort_keys=True).encode() + b"\0")
    for name in source_files(suite):
        path = ROOT / name
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"is not there") + b"\0")
    for page, text in gpu_blocks() if entry.get("blocks") else ():
        digest.update(page.encode() + b"\0" + text.encode() + b"\0")
    return digest.hexdigest()


def write_closure(build_dir):
    """closure.json of every suite, sorted, one path a line."""
    build = closure.Build(build_dir, ROOT)
    made = {suite: build.closure(*linked_names(build_dir, known)) for suite, known in suites().items()}
    CLOSURE.write_text(json.dumps(made, indent=1) + "\n")
    for suite, parts in made.items():
        print(f"{suite}: {len(parts['files'])} files, {len(parts['flags'])} sets of flags")


def linked_names(build_dir, known):
    """Names of the suite's linked files as the build's rules have them: a shared library by its full version."""
    return [path.with_name((build_dir / path).resolve().name).as_posix() for path in map(pathlib.Path, known["linked"])]


def compare(build_dir):
    """What closure.json lacks, and what it has too much, against the build."""
    build, written, problems = closure.Build(build_dir, ROOT), closures(), []
    for suite, known in suites().items():
        lines = closure.difference(written.get(suite, {}), build.closure(*linked_names(build_dir, known)))
        problems += [f"suite {suite}: closure.json: {line}" for line in lines]
    problems += [f"closure.json has a suite {suite}, suites.json has none" for suite in sorted(set(written) - set(suites()))]
    return problems


def check():
    """(problems, warnings) of the record against the tree."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    excuses = STALE.read_text().splitlines() if STALE.exists() else []
    problems, warnings, hashes = [], [], set()
    for suite in suites():
        current, entry = sources_sha256(suite), record.get(suite)
        hashes.add(current)
        if suite not in closures():
            problems.append(f"suite {suite}: closure.json has no such suite; build with nvcc, then record.py closure BUILD_DIR")
        if entry and entry["sources_sha256"] == current:
            if entry["failed"] or entry["skipped"] or not entry["passed"] or not sanitized(suite, entry["sanitizer"]):
                problems.append(f"suite {suite}: the recorded run did not pass in full: {entry}")
        elif any(current in line and re.search(rf"\b{suite}\b", line) for line in excuses):
            warnings.append(f"WARNING: suite {suite} has NOT run on a GPU since its sources changed; tests/gpu/STALE.md "
                            f"excuses {current}")
        else:
            problems.append(f"suite {suite}: sources have hash {current}, the last GPU run was of "
                            f"{entry['sources_sha256'] if entry else 'nothing'}; run make gpu-test")
    problems += [f"STALE.md excuses {old}, which no suite's sources have: that line must go"
                 for old in re.findall(r"\b[0-9a-f]{64}\b", "\n".join(excuses)) if old not in hashes]
    return problems, warnings


def sanitized(suite, results):
    """Whether every tool found nothing but its planted bug, or suites.json says why this suite runs under none."""
    why_none = suites()[suite].get("sanitizer")
    return results == (why_none or {tool: CLEAN for tool in TOOLS})


def run(command, timeout, env=None):
    """(exit code, output); a hang is exit code 124."""
    try:
        done = subprocess.run([str(c) for c in command], text=True, errors="replace", timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        return 124, f"no end within {timeout} s\n{late.stdout or ''}"


def seconds_of(test):
    """Of a test in GoogleTest's report: "0.25s"."""
    return float(str(test.get("time", "0s")).rstrip("s"))


def print_times(title, times):
    """What took longest, of [(name, seconds)]."""
    slowest = sorted(times, key=lambda pair: -pair[1])[:SLOWEST]
    print(f"{title}, slowest of {len(times)} tests:")
    print("".join(f"  {seconds:7.2f} s  {name}\n" for name, seconds in slowest), end="", flush=True)


def report_of(program, what, *arguments, **environment):
    """(exit code, output, [(name, test of GoogleTest's report)]) of one process. `what` names its report."""
    report = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"{program.name}.{what}.json"
    report.unlink(missing_ok=True)
    code, output = run([program, "--gtest_brief=1", f"--gtest_output=json:{report}", *arguments], 500, environment)
    found = json.loads(report.read_text())["testsuites"] if report.exists() else []
    return code, output, [(f"{suite['name']}.{test['name']}", test) for suite in found for test in suite["testsuite"]]


def part_of(program, part, parts, alone):
    """report_of the tests of one of `parts` processes, without those of the filter `alone`."""
    return report_of(program, part, f"--gtest_filter=-{alone}", GTEST_TOTAL_SHARDS=str(parts), GTEST_SHARD_INDEX=str(part))


def counted(program, reports, alone):
    """Counts of one GoogleTest program, of the reports of its processes. Every test that it lists must be in one of them,
    once: a process that dies takes its tests with it, and a test that no process has taken has not run. A pattern of the
    filter `alone` that no test matches would let a test that was renamed be disturbed."""
    code, output, listed = report_of(program, "list", "--gtest_list_tests")
    failed_codes = [(code, output)] * (code != 0) + [(code, output) for code, output, _ in reports if code != 0]
    for code, output in failed_codes:
        print(f"{program.name}: exit code {code}\n{output[-4000:]}")
    tests = [test for _, _, of_process in reports for test in of_process]
    print_times(program.name, [(name, seconds_of(test)) for name, test in tests])
    ran, expected = (collections.Counter(name for name, _ in found) for found in (tests, listed))
    lost = sorted(((expected - ran) + (ran - expected)).elements())
    unknown = [pattern for pattern in alone.split(":") if pattern and not fnmatch.filter(expected, pattern)]
    wrong = bool(failed_codes or lost or unknown or not listed)
    if wrong:
        print(f"{program.name}: ran {len(tests)} tests of {len(listed)}; not once: {lost[:SLOWEST]}; to run by themselves, and "
              f"no tests: {unknown}")
    skipped = sum(test.get("result") == "SKIPPED" for _, test in tests)
    failed = sum(bool(test.get("failures")) for _, test in tests)
    passed = len(tests) - skipped - failed
    return {"passed": passed, "failed": failed or int(wrong), "skipped": skipped}


def run_programs(build_dir, names):
    """{suite: counts} of the suites that are GoogleTest programs: all their processes side by side, and then, one after the
    other, what nothing may disturb."""
    reports, programs = {suite: [] for suite in names}, {suite: program_of(build_dir, suite) for suite in names}
    alone = {suite: suites()[suite].get("alone", "") for suite in names}
    with concurrent.futures.ThreadPoolExecutor(max_workers=max(2, os.cpu_count() - 2)) as pool:
        started = []
        for suite in names:
            parts = suites()[suite].get("processes", 1)
            started += [(suite, part, pool.submit(timed, part_of, programs[suite], part, parts, alone[suite]))
                        for part in range(parts)]
        for suite, part, future in started:
            report, seconds = future.result()
            reports[suite].append(report)
            print(f"  {seconds:7.2f} s  {suite}, process {part}: {len(report[2])} tests", flush=True)
    for suite in filter(alone.get, names):
        report, seconds = timed(report_of, programs[suite], "alone", f"--gtest_filter={alone[suite]}")
        reports[suite].append(report)
        print(f"  {seconds:7.2f} s  {suite}, by themselves: {len(report[2])} tests", flush=True)
    return {suite: counted(programs[suite], reports[suite], alone[suite]) for suite in names}


def timed(function, *arguments):
    begin = time.monotonic()
    return function(*arguments), time.monotonic() - begin


def sanitize(tool, *command):
    return run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", *command], timeout=400)


def judged(result, planted):
    """The words of a record for one pass of a tool and for its pass over the planted bug, each (exit code, output)."""
    (code, output), (found, _) = result, planted
    errors = SUMMARY.search(output)
    clean = code == 0 and errors and int(errors[1] or errors[2] or 0) == 0
    ran = re.search(r"\[  PASSED  \] (\d+) test", output)
    if clean and ran and int(ran[1]) > 0 and found == 99:
        return CLEAN
    return f"exit {code}, tests {ran[1] if ran else 0}, planted bug exit {found}"


def run_sanitizers(build_dir, names):
    """{suite: {tool: words}}: each tool over a subset of each suite that reaches every kernel, and over a program with one
    planted bug of its class. They run side by side, in the order of the names: what a tool finds does not depend on who else uses the GPU. One that
    ends without its summary has not looked (no memory or no connection was left) and runs once more, by itself."""
    commands = {}
    for suite in names:
        filtered = f"--gtest_filter={suites()[suite]['sanitized']}"
        commands.update({(suite, tool): (tool, program_of(build_dir, suite), filtered) for tool in TOOLS})
    planted = build_dir / "tests" / "gpu" / "gpu_planted_bug"
    commands.update({("planted bug", tool): (tool, planted, tool) for tool in TOOLS})  # short: last
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(SANITIZERS_AT_A_TIME, os.cpu_count())) as pool:
        started = {key: pool.submit(timed, sanitize, *command) for key, command in commands.items()}
        passes = {key: future.result() for key, future in started.items()}
    results = {}
    for (what, tool), (result, seconds) in passes.items():
        if not SUMMARY.search(result[1]):
            result, more = timed(sanitize, *commands[what, tool])
            passes[what, tool], seconds = (result, seconds + more), seconds + more
        print(f"  {seconds:7.2f} s  {tool} of {what}", flush=True)
    for suite in names:
        results[suite] = {tool: judged(passes[suite, tool][0], passes["planted bug", tool][0]) for tool in TOOLS}
        for tool, words in results[suite].items():
            if words != CLEAN:
                print(passes[suite, tool][0][1][-4000:])
    return results


def machine():
    """Names of the GPU, its driver and the toolkit the tests were built with."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    code, output = run(query, timeout=60)
    if code != 0 or not output.strip():
        sys.exit("record.py: no GPU here: nvidia-smi says " + output)
    gpu, driver = output.splitlines()[0].rsplit(", ", 1)
    return {"gpu": gpu, "driver": driver}


def run_python_tests(build_dir, suite):
    """Counts of the suite's folder of tests, run side by side with the package of this tree and the library of the build."""
    known, package = suites()[suite], build_dir / "python" / "tessera"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python" / "tessera", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    if (ROOT / "models").is_dir():  # as an installed package has it
        shutil.copytree(ROOT / "models" / "movie-reviews", package / "models" / "movie-reviews")
    shutil.copy(build_dir / "libtessera.so", package)
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A pool of compiling processes for each process here would outnumber the cores, and start for a kernel or two.
    environment = {"PYTHONPATH": path, "TESSERA_LIBRARY": "", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    workers = max(2, min(PYTHON_PROCESSES, os.cpu_count() - 2))
    results, loaded = side_by_side.run(ROOT / known["unittest"], workers, environment, known["alone"],
                                            known["first"])
    results += [{"test": f"the hash of suite {suite}", "outcome": "failed", "seconds": 0.0,
                 "words": f"{name} was loaded and is not in the hash; suites.json must list it"}
                for name in unhashed(suite, loaded, build_dir)]
    by_module = {}
    for result in sorted(results, key=lambda result: result["test"]):
        module = result["test"].partition(".")[0]
        by_module[module] = by_module.get(module, 0) + result["seconds"]
        if result["outcome"] != "passed" or (result["words"] and module in known["alone"]):
            print(f"{result['outcome']}: {result['test']}\n{result['words'][-4000:]}")
    print("".join(f"  {seconds:7.2f} s  {module}\n" for module, seconds in by_module.items()), end="")
    print_times(f"{known['unittest']} in {workers} processes", [(r["test"], r["seconds"]) for r in results])
    return {outcome: sum(r["outcome"] == outcome for r in results) for outcome in ("passed", "failed", "skipped")}


def unhashed(suite, loaded, build_dir):
    """Files of the repository that a test process has loaded and the hash does not cover. The package is a copy."""
    hashed, found = set(source_files(suite)), set()
    for name in loaded:
        path = pathlib.Path(name).resolve()
        if path.is_relative_to(build_dir / "python"):
            path = ROOT / "python" / path.relative_to(build_dir / "python")
        # Modules that a library makes up name files that are nowhere (torch's "_ops.py"), the runner is no test's source.
        if not pathlib.PurePath(name).is_absolute() or path.name == "side_by_side.py":
            continue
        if path.is_relative_to(ROOT) and path.suffix == ".py" and "site-packages" not in path.parts:
            found.add(path.relative_to(ROOT).as_posix())
    return sorted(found - hashed)


def versions():
    """{package: version} of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def program_of(build_dir, suite):
    return build_dir / "tests" / "gpu" / f"gpu_test_{suite}"


def run_suites(build_dir, names):
    """{suite: entry}. First the tests of the programs, then those of Python, which need the processor's cores for
    themselves; then the sanitizers of all programs, those of the largest suites first."""
    entries = {suite: {"sources_sha256": sources_sha256(suite), **machine(), "date": datetime.date.today().isoformat()}
               for suite in names}
    compiled = [suite for suite in names if "sanitized" in suites()[suite]]
    results, seconds = timed(run_programs, build_dir, compiled)
    if compiled:
        print(f"suites {', '.join(compiled)}: {seconds:.1f} s", flush=True)
    for suite in names:
        if suite in compiled:
            code, toolkit = run([program_of(build_dir, suite), "--toolkit"], timeout=60)
            entries[suite] = {**results[suite], **entries[suite], "toolkit": toolkit.strip() if code == 0 else "unknown"}
        else:
            counts, seconds = timed(run_python_tests, build_dir, suite)
            entries[suite] = {**counts, **entries[suite], "packages": versions(), "sanitizer": suites()[suite]["sanitizer"]}
            print(f"suite {suite}: {seconds:.1f} s", flush=True)
    if compiled:
        largest_first = sorted(compiled, key=lambda suite: -entries[suite]["passed"])
        results, seconds = timed(run_sanitizers, build_dir, largest_first)
        print(f"sanitizers: {seconds:.1f} s", flush=True)
        for suite in compiled:
            entries[suite]["sanitizer"] = results[suite]
    print(json.dumps(entries, indent=2))
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("check", "hash", "run", "closure", "compare"))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--record", type=pathlib.Path, default=RECORD, help="where to write; default RECORD.json here")
    args = parser.parse_args()
    if args.verb == "hash":
        print(sources_sha256(args.arguments[0]))
        return 0
    if args.verb == "check":
        problems, warnings = check()
        print("\n".join(warnings + problems))
        return 1 if problems else 0
    build_dir = pathlib.Path(args.arguments[0]).resolve()
    if args.verb in ("closure", "compare"):
        try:
            problems = compare(build_dir) if args.verb == "compare" else write_closure(build_dir)
        except closure.BuildError as error:
            sys.exit(f"record.py: {error}")
        print("\n".join([*problems, "mend it: tests/gpu/record.py closure BUILD_DIR"] if problems else []))
        return 1 if problems else 0
    unknown = [suite for suite in args.arguments[1:] if suite not in suites()]
    if unknown:
        sys.exit(f"record.py: got suites {unknown}, expected of {list(suites())}")
    record = json.loads(args.record.read_text()) if args.record.exists() else {}
    entries, seconds = timed(run_suites, build_dir, args.arguments[1:])
    record.update(entries)
    args.record.write_text(json.dumps(record, indent=2) + "\n")
    print(f"in all {seconds:.1f} s")
    complete = all(not e["failed"] and not e["skipped"] and e["passed"] and sanitized(suite, e["sanitizer"])
                   for suite, e in entries.items())
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
