#!/usr/bin/env python3
"""The GPU record: which sources the GPU tests last passed on, where, and with what result.

  record.py check                     fails when a suite's sources differ from those recorded (part of make test)
  record.py hash SUITE                the hash of a suite's sources
  record.py run BUILD_DIR SUITE...    runs prebuilt tests and the sanitizers on this machine's GPU and writes RECORD.json

A suite of suites.json is a GoogleTest program, run again under each sanitizer, or a folder of Python tests of the package.
A kernel change without its GPU run is an error. Where no GPU can be had, STALE.md names the hash it excuses and why; the
check then passes with a warning. Needs Python only: neither git nor a compiler.
"""
import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RECORD, STALE, SUITES = HERE / "RECORD.json", HERE / "STALE.md", HERE / "suites.json"
SOURCE_SUFFIXES = (".h", ".cuh", ".cc", ".cu")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CLEAN = "0 errors, planted bug found"
PACKAGES = ("torch", "transformers", "cupy-cuda13x", "cupy-cuda12x", "numpy")  # of a Python run, where they are installed


def suites():
    return json.loads(SUITES.read_text())


def sources_sha256(suite):
    """One hash over the names and contents of every source of the suite, in the order of their names."""
    digest = hashlib.sha256()
    suffixes = SOURCE_SUFFIXES + tuple(suites()[suite].get("suffixes", ()))
    files = {path for pattern in suites()[suite]["sources"] for path in ROOT.glob(pattern)}
    for path in sorted(files):
        if path.is_file() and path.suffix in suffixes:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def check():
    """(problems, warnings) of the record against the tree."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    excuses = STALE.read_text() if STALE.exists() else ""
    problems, warnings = [], []
    for suite in suites():
        current, entry = sources_sha256(suite), record.get(suite)
        if entry and entry["sources_sha256"] == current:
            if entry["failed"] or entry["skipped"] or not entry["passed"] or not sanitized(suite, entry["sanitizer"]):
                problems.append(f"suite {suite}: the recorded run did not pass in full: {entry}")
        elif current in excuses:
            warnings.append(f"WARNING: suite {suite} has NOT run on a GPU since its sources changed; tests/gpu/STALE.md "
                            f"excuses {current}")
        else:
            problems.append(f"suite {suite}: sources have hash {current}, the last GPU run was of "
                            f"{entry['sources_sha256'] if entry else 'nothing'}; run make gpu-test")
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


def run_tests(program):
    """Counts of one GoogleTest program."""
    report = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"{program.name}.json"
    report.unlink(missing_ok=True)
    code, output = run([program, "--gtest_brief=1", f"--gtest_output=json:{report}"], timeout=500)
    print(output[-4000:])
    if not report.exists():
        return {"passed": 0, "failed": 1, "skipped": 0}
    tests = [test for suite in json.loads(report.read_text())["testsuites"] for test in suite["testsuite"]]
    skipped = sum(test.get("result") == "SKIPPED" for test in tests)
    failed = sum(bool(test.get("failures")) for test in tests)
    return {"passed": len(tests) - skipped - failed, "failed": failed + (code != 0 and failed == 0), "skipped": skipped}


def run_sanitizers(program, subset, planted_bug):
    """Each tool over a subset that reaches every kernel, and over a program with one planted bug of its class."""
    results = {}
    for tool in TOOLS:
        base = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        code, output = run([*base, program, f"--gtest_filter={subset}"], timeout=400)
        errors = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", output)
        clean = code == 0 and errors and int(errors[1] or errors[2] or 0) == 0
        ran = re.search(r"\[  PASSED  \] (\d+) test", output)
        found, _ = run([*base, planted_bug, tool], timeout=120)
        if clean and ran and int(ran[1]) > 0 and found == 99:
            results[tool] = CLEAN
        else:
            results[tool] = f"exit {code}, tests {ran[1] if ran else 0}, planted bug exit {found}"
            print(output[-4000:])
    return results


def machine():
    """Names of the GPU, its driver and the toolkit the tests were built with."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    code, output = run(query, timeout=60)
    if code != 0 or not output.strip():
        sys.exit("record.py: no GPU here: nvidia-smi says " + output)
    gpu, driver = output.splitlines()[0].rsplit(", ", 1)
    return {"gpu": gpu, "driver": driver}


def run_python_tests(build_dir, folder):
    """Counts of the tests in a folder, run with the package of this tree and the library of the build."""
    package = build_dir / "python" / "tessera"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "python" / "tessera", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(build_dir / "libtessera.so", package)
    path = os.pathsep.join([str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "unittest", "discover", "-v", "-s", ROOT / folder, "-p", "test_*.py"]
    code, output = run(command, timeout=570, env={"PYTHONPATH": path, "TESSERA_LIBRARY": ""})
    print(output[-12000:])
    return count_unittest(code, output)


def count_unittest(code, output):
    """Counts from the last lines that unittest writes."""
    ran = re.search(r"^Ran (\d+) tests?", output, re.M)
    if ran is None:
        return {"passed": 0, "failed": 1, "skipped": 0}
    counts = dict(re.findall(r"(failures|errors|skipped|unexpected successes)=(\d+)", output[ran.end():]))
    skipped = int(counts.pop("skipped", 0))
    failed = sum(map(int, counts.values()))
    failed += code != 0 and failed == 0
    return {"passed": max(int(ran[1]) - skipped - failed, 0), "failed": failed, "skipped": skipped}


def versions():
    """{package: version} of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def run_suite(build_dir, suite):
    known = suites()[suite]
    entry = {"sources_sha256": sources_sha256(suite), **machine(), "date": datetime.date.today().isoformat()}
    if "unittest" in known:
        entry = {**run_python_tests(build_dir, known["unittest"]), **entry, "packages": versions(),
                 "sanitizer": known["sanitizer"]}
    else:
        program = build_dir / "tests" / "gpu" / f"gpu_test_{suite}"
        code, toolkit = run([program, "--toolkit"], timeout=60)
        planted_bug = build_dir / "tests" / "gpu" / "gpu_planted_bug"
        entry = {**run_tests(program), **entry, "toolkit": toolkit.strip() if code == 0 else "unknown",
                 "sanitizer": run_sanitizers(program, known["sanitized"], planted_bug)}
    print(json.dumps({suite: entry}, indent=2))
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("check", "hash", "run"))
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
    record = json.loads(args.record.read_text()) if args.record.exists() else {}
    for suite in args.arguments[1:]:
        record[suite] = run_suite(pathlib.Path(args.arguments[0]).resolve(), suite)
    args.record.write_text(json.dumps(record, indent=2) + "\n")
    complete = all(not e["failed"] and not e["skipped"] and e["passed"] for e in record.values())
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
