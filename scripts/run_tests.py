#!/usr/bin/env python3
"""The one test entry: builds, runs every test, prints each stage's time and, last, `N passed, N failed, N skipped`.

  run_tests.py                all stages
  run_tests.py --only cli     one stage or several (--list names them); for working on something
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import time

import clang_tidy

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
FUZZ_SECONDS = 30
LEAST_EXECUTIONS = 200  # of the slowest, which reads whole files of records, where all share two cores
# What pip says when it cannot reach the index it was told of.
NO_INDEX = re.compile(r"SSLError|NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError")
SHARED = ROOT.parent / "shared"  # optional data beside the checkout; what needs it says so when it is absent


class Tally:
    """Counts of one stage; every skip carries its reason."""

    def __init__(self):
        self.passed, self.failed, self.skipped = 0, 0, []

    def add(self, ok, name, output=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {name}\n{output[-8000:]}", flush=True)


def run(command, timeout=1800, env=None):
    """(exit code, output) of a command; a time-out is exit code 124."""
    try:
        done = subprocess.run([str(c) for c in command], cwd=ROOT, timeout=timeout, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        return 124, f"no end within {timeout} s\n{late.stdout or ''}"


def build(tally, preset, *targets):
    chosen = ["--target", *targets] if targets else []
    for command in (["cmake", "--preset", preset, "--log-level=WARNING"], ["cmake", "--build", "--preset", preset, *chosen]):
        code, output = run(command)
        if code != 0:
            tally.add(False, f"build of preset {preset}", output)
            return False
    tally.add(True, f"build of preset {preset}")
    return True


def gtest_programs(preset):
    return sorted(p for p in (BUILD / preset / "tests").glob("test_*") if p.is_file() and os.access(p, os.X_OK))


# Programs whose tests take minutes of one processor: run as so many processes, each with a part.
SHARDS = {"test_moe": 2, "test_api": 2}
# Programs whose tests look at the clock and have it to themselves.
ALONE = {"test_tools"}
# Files of tests/cli whose tests look at the clock.
CLI_ALONE = ("bench_classify_test.py", "input_kinds_test.py", "interrupt_test.py", "progress_test.py")
# What has threads of its own, in test_classifier.
ENGINE_TESTS = "Engine*:Isolated*:BoundedQueue*:OrderedWriter*"
# Processes that end by planted signals do so at once, without a report.
THREAD_OPTIONS = "halt_on_error=1:handle_segv=0:atexit_sleep_ms=0"
NOT_UNDER_THREAD = "ThreadPool.HasFewerThreadsWhereTheSystemAllowsFewer"  # counts threads, and the sanitizer has one more
# Of the layer's cases those that have every size and every option once: where the arithmetic is not what is tested.
SPREAD = {"TESSERA_CASES": "spread"}


def run_gtests(tally, preset, env=None, only=None):
    """Every test program, or those of `only` with its filters; two at a time where they may."""
    programs = [p for p in gtest_programs(preset) if only is None or p.name in only]
    if not programs:
        tally.add(False, f"no unit test program in preset {preset}")
    parts = [(program, shard) for program in programs for shard in range(SHARDS.get(program.name, 1))]
    parts.sort(key=lambda part: part[0].name not in SHARDS)  # the long ones first

    def report_of(program, shard):
        return BUILD / preset / f"{program.name}.{shard}.json"

    def run_part(part):
        program, shard = part
        report_of(*part).unlink(missing_ok=True)
        share = {"GTEST_TOTAL_SHARDS": str(SHARDS.get(program.name, 1)), "GTEST_SHARD_INDEX": str(shard)}
        return run([program, "--gtest_brief=1", f"--gtest_output=json:{report_of(*part)}",
                    f"--gtest_filter={(only or {}).get(program.name, '*')}"], env={**(env or {}), **share})

    together = [part for part in parts if part[0].name not in ALONE]
    alone = [part for part in parts if part[0].name in ALONE]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        ended = list(zip(together, pool.map(run_part, together)))
    ended += [(part, run_part(part)) for part in alone]
    num_cases = 0
    for (program, shard), (code, output) in ended:
        if not report_of(program, shard).exists():
            tally.add(False, f"{program.name} ended without a report, exit code {code}", output)
            continue
        report = json.loads(report_of(program, shard).read_text())
        count_gtest_report(tally, program.name, report)
        num_cases += sum(len(suite["testsuite"]) for suite in report["testsuites"] if suite["name"] == "MoeBatteryCpu")
        if code != 0:
            print(output[-8000:], flush=True)
    if num_cases:
        entries = json.loads((ROOT / "tests" / "moe" / "cases.json").read_text())
        print(f"   {num_cases} of the {sum(len(entry['dtypes']) for entry in entries)} cases of an MoE layer", flush=True)


def count_gtest_report(tally, program, report):
    for suite in report["testsuites"]:
        for test in suite["testsuite"]:
            name = f"{program} {suite['name']}.{test['name']}"
            if test.get("result") == "SKIPPED":
                reasons = " ".join(m.get("message", "") for m in test.get("skipped", [])).split("\n")
                tally.skipped.append(f"{name}: {reasons[-1] or 'see the test'}")
            else:
                tally.add(not test.get("failures"), name)


def stage_unit(tally):
    if build(tally, "test"):
        run_gtests(tally, "test")


def stage_package(tally):
    """The installed package and the sources, as other projects use them."""
    if build(tally, "test"):
        run_unittest(tally, "tests/package", {"TESSERA_BUILD_DIR": str(BUILD / "test")})


def stage_examples(tally):
    for program in sorted((BUILD / "test" / "examples").glob("example_*")):
        code, output = run([program], timeout=120)
        tally.add(code == 0, program.name, output)


def stage_cli(tally):
    """The command's tests, two files at a time; those that look at the clock one by one."""
    tessera = BUILD / "test" / "tools" / "tessera" / "tessera"
    names = sorted(path.name for path in (ROOT / "tests" / "cli").glob("*test*.py"))
    parts = {name: Tally() for name in names}

    def run_file(name):
        run_unittest(parts[name], "tests/cli", {"TESSERA_BIN": str(tessera), "TESSERA_SHARED": str(SHARED)}, pattern=name)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(run_file, [name for name in names if name not in CLI_ALONE]))
    for name in CLI_ALONE:
        run_file(name)
    for part in parts.values():
        tally.passed, tally.failed, tally.skipped = (tally.passed + part.passed, tally.failed + part.failed,
                                                     tally.skipped + part.skipped)


def stage_python(tally):
    """The wheel as `pip install .` builds it on a machine without CUDA, in a clean environment; the sources' archive."""
    base = BUILD / "python"
    for folder in ("venv", "wheels", "sdist"):
        shutil.rmtree(base / folder, ignore_errors=True)
    python = base / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q"]
    # The build folder stays, and what other presets have compiled with the same options comes from ccache.
    options = ["--config-settings", f"build-dir={base / 'build'}",  # pip before 23.1, Debian 12's, knows no -C
               "--config-settings", "cmake.define.TESSERA_CUDA=OFF"]
    backend = {"PYTHONPATH": str(base / "backend")}
    make_sdist = f"import scikit_build_core.build as backend; backend.build_sdist({str(base / 'sdist')!r})"
    for name, command, env in (
            ("environment", [sys.executable, "-m", "venv", base / "venv"], {}),
            ("wheel", [*pip, "wheel", ROOT, "--no-deps", "-w", base / "wheels", *options], {}),
            ("install", ["sh", "-c", '"$0" -m pip --disable-pip-version-check -q install "$1"/*.whl', python,
                         base / "wheels"], {}),
            ("tables", ["sh", "-c", '"$0" -m pip --disable-pip-version-check -q install pandas pyarrow', python], {}),
            ("backend", [*pip, "install", "--upgrade", "--target", base / "backend", "scikit-build-core"], {}),
            ("archive of the sources", [python, "-c", make_sdist], backend)):
        code, output = run(command, timeout=900, env=env)
        if code != 0 and (reason := NO_INDEX.search(output)):
            tally.skipped.append(f"the wheel from source: no package index can be reached ({reason[0]}); the package was "
                                 "tested as it lies in the tree, with Debian's numpy")
            return test_python_in_place(tally, base)
        tally.add(code == 0, f"python package: {name}", output)
        if code != 0:
            return
    check_sdist(tally, base / "sdist")
    run_unittest(tally, "tests/python", {"PYTHONPATH": "", "TESSERA_LIBRARY": ""}, python)
    check_editable(tally, base, options)


def check_editable(tally, base, options):
    """`pip install -e .`: the sources stay where they are, the library goes elsewhere, and the package finds it."""
    python = base / "editable" / "bin" / "python"
    shutil.rmtree(base / "editable", ignore_errors=True)
    program = ("import pathlib, tessera; print(tessera.__file__); "
               f"assert pathlib.Path(tessera.__file__).is_relative_to({str(ROOT)!r}); "
               "assert not tessera.doctor().problems, tessera.doctor()")
    for name, command in (("environment", [sys.executable, "-m", "venv", base / "editable"]),
                          ("installation", [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "-e", ROOT,
                                            *options]),
                          ("use", ["sh", "-c", 'cd / && "$0" -c "$1"', python, program])):
        code, output = run(command, timeout=900, env={"PYTHONPATH": "", "TESSERA_LIBRARY": ""})
        tally.add(code == 0, f"editable install: {name}", output)
        if code != 0:
            return


def test_python_in_place(tally, base):
    """The package's sources beside the library of preset test, in an environment that sees the system's numpy."""
    if not build(tally, "test"):
        return
    shutil.rmtree(base / "venv", ignore_errors=True)
    python = base / "venv" / "bin" / "python"
    code, output = run([sys.executable, "-m", "venv", "--system-site-packages", base / "venv"])
    folder = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True,
                            stdout=subprocess.PIPE, check=False).stdout.strip() if code == 0 else ""
    tally.add(bool(folder), "python package: environment in place", output)
    if folder:
        package = pathlib.Path(folder) / "tessera"
        shutil.copytree(ROOT / "python" / "tessera", package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(BUILD / "test" / "libtessera.so", package)
        shutil.copytree(ROOT / "models", package / "models")
        run_unittest(tally, "tests/python", {"PYTHONPATH": "", "TESSERA_LIBRARY": ""}, python)


def check_sdist(tally, folder):
    """Every source that the wheel is built of lies in the archive, and nothing big beside them."""
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    wanted = subprocess.run(["git", "ls-files", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "cmake",
                             "include", "src", "python", "models/movie-reviews"], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    missing = sorted(set(wanted.stdout.split()) - names)
    tally.add(len(names) > 100 and not missing and archive.stat().st_size < 2**22, f"{archive.name} lacks {missing}")


def run_unittest(tally, folder, env, python=sys.executable, pattern="*test*.py"):
    code, output = run([python, "-m", "unittest", "discover", "-v", "-s", folder, "-p", pattern], env=env)
    ran = re.search(r"^Ran (\d+) tests?", output, re.M)
    if ran is None or int(ran[1]) == 0:
        tally.add(False, f"{folder}/{pattern}: ran no test", output)
        return
    failed = sum(int(n) for n in re.findall(r"(?:failures|errors)=(\d+)", output.splitlines()[-1]))
    skipped = re.findall(r"^(\S+) .*\.\.\. skipped ['\"](.*)['\"]$", output, re.M)
    tally.skipped += [f"{folder} {name}: {reason}" for name, reason in skipped]
    tally.passed += int(ran[1]) - failed - len(skipped)
    tally.failed += failed
    if code != 0:
        tally.failed += failed == 0
        print(output[-12000:], flush=True)


def python_with(*modules):
    """The first Python here that can import all of them: this one, the machine's, or that of training/README.md; or None."""
    for python in (sys.executable, "/usr/bin/python3", ROOT / ".venv-train" / "bin" / "python"):
        if pathlib.Path(python).exists() and run([python, "-c", "import " + ", ".join(modules)])[0] == 0:
            return python
    return None


def stage_training(tally):
    """The tokenizer's twin anywhere; training itself where a Python has torch, else its tests say that they are skipped."""
    run_unittest(tally, "training", {}, python_with("torch", "safetensors") or sys.executable)


def stage_sanitize(tally):
    """Unit tests and a run of the command under ASan and UBSan."""
    if not build(tally, "sanitize"):
        return
    # The dynamic linker's own copies of libgomp's thread data live until exit: not this project's leaks.
    env = {"ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1", "UBSAN_OPTIONS": "print_stacktrace=1", **SPREAD}
    run_gtests(tally, "sanitize", env)
    tessera = BUILD / "sanitize" / "tools" / "tessera" / "tessera"
    code, output = run([tessera, "evaluate", "--model", "models/movie-reviews", "--input", "examples/data/reviews.tsv",
                        "--label-column", "1", "--text-column", "2"], env=env)
    tally.add(code == 0, "tessera evaluate under sanitizers", output)


def stage_portable(tally):
    """Without oneDNN the library still builds and computes the same model; the engine is the same with and without."""
    if build(tally, "portable"):
        run_gtests(tally, "portable", SPREAD, only={"test_cpu": "*", "test_moe": "*", "test_classifier": f"-{ENGINE_TESTS}"})


def stage_fuzz(tally):
    if not build(tally, "fuzz"):
        return
    programs = sorted(p for p in (BUILD / "fuzz" / "tests" / "fuzz").glob("fuzz_*") if os.access(p, os.X_OK))
    running = []
    for program in programs:  # side by side: one core each
        corpus = BUILD / "fuzz" / f"corpus_{program.name}"
        corpus.mkdir(exist_ok=True)
        seeds = ROOT / "tests" / "fuzz" / "corpus" / program.name.removeprefix("fuzz_")
        command = [program, corpus, seeds, f"-max_total_time={FUZZ_SECONDS}", "-rss_limit_mb=2048", "-timeout=10",
                   "-print_final_stats=1", f"-artifact_prefix={BUILD}/fuzz/"]
        running.append((program.name, subprocess.Popen([str(c) for c in command], cwd=ROOT, text=True, errors="replace",
                                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)))
    for name, process in running:
        output, _ = process.communicate(timeout=FUZZ_SECONDS * 4)
        executed = re.search(r"number_of_executed_units: (\d+)", output)
        tally.add(process.returncode == 0 and executed and int(executed[1]) > LEAST_EXECUTIONS, name, output)
        print(f"  {name}: {executed[1] if executed else 'no'} executions", flush=True)
    if not programs:
        tally.add(False, "no fuzzer was built")


def stage_endurance(tally):
    """The bounded run of tests/endurance."""
    # One after the other: what the command is made of then comes from the compiler cache.
    if not build(tally, "test") or not build(tally, "test", "endurance_faults"):
        return
    code, output = run([sys.executable, "tests/endurance/endurance.py", BUILD / "test"])
    rows = re.findall(r"^(\w+): (\{.*\})$", output, re.M)
    for name, row in rows:
        tally.add(json.loads(row)["ok"], f"endurance: {name}", row)
        print(f"  {name}: {row[:200]}", flush=True)
    if code != 0 and all(json.loads(row)["ok"] for _, row in rows) or not rows:
        tally.add(False, f"endurance ended with exit code {code}", output)


def stage_thread(tally):
    """ThreadSanitizer over the tests of the engine, its worker processes and the thread pool, in a build of their own."""
    if not build(tally, "thread"):
        return
    report = BUILD / "thread" / "test_threads.json"
    report.unlink(missing_ok=True)
    # Without random addresses: ThreadSanitizer knows no place for its memory on kernels that draw many bits.
    code, output = run(["setarch", "-R", BUILD / "thread" / "tests" / "test_threads", "--gtest_brief=1",
                        f"--gtest_output=json:{report}", f"--gtest_filter=-{NOT_UNDER_THREAD}"], env={"TSAN_OPTIONS": THREAD_OPTIONS})
    tally.add(code == 0 and report.exists() and "WARNING: ThreadSanitizer" not in output,
              f"test_threads under ThreadSanitizer, exit code {code}", output)
    if report.exists():
        count_gtest_report(tally, "test_threads", json.loads(report.read_text()))


def stage_tidy(tally):
    run_unittest(tally, "tests/tidy", {})
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.h", "*.cc", "*.cuh", "*.cu"], cwd=ROOT,
                           text=True, stdout=subprocess.PIPE, check=True).stdout.split()
    code, output = run(["clang-format", "--dry-run", "-Werror", *[f for f in files if (ROOT / f).exists()]])
    tally.add(code == 0, "clang-format (make format mends it)", output)


def stage_clang_tidy(tally):
    """Host sources of the libraries only: clang 14 cannot parse the CUDA headers. The build is configured, not compiled."""
    code, output = run(["cmake", "--preset", "lint", "--log-level=WARNING"])
    tally.add(code == 0, "configuration of preset lint", output)
    if code != 0:
        return
    for sources, code, output in clang_tidy.check(BUILD / "lint"):
        tally.add(code == 0, f"clang-tidy over {', '.join(path.name for path in sources)}", output)


def stage_gpu(tally):
    """GPU tests need a GPU and run by `make gpu-test`; here their sources must be those of the recorded run."""
    if not build(tally, "test"):  # what the suites are made of is read from an up-to-date build
        return
    programs = sorted(p for p in (BUILD / "test" / "tests" / "gpu").glob("gpu_test_*") if os.access(p, os.X_OK))
    if programs:
        code, output = run([sys.executable, "tests/gpu/record.py", "compare", BUILD / "test"])
        tally.add(code == 0, "GPU suites: closure.json is what the build says", output)
    else:
        tally.skipped.append("CUDA kernels and their tests: not built, no nvcc on this machine; closure.json not compared")
    for program in programs:
        _, listing = run([program, "--gtest_list_tests"])
        count = sum(line.startswith("  ") for line in listing.splitlines())
        tally.skipped.append(f"{program.name}: {count} tests run by make gpu-test on a GPU, not by make test")
    code, output = run([sys.executable, "tests/gpu/record.py", "check"])
    tally.add(code == 0, "GPU record: the tests last passed on a GPU with these very sources", output)
    if output.strip():
        print(output.strip(), flush=True)


def stage_docs(tally):
    """Every block of README and docs, run or checked; links; the reference pages. Python by the stage python's wheel."""
    if not build(tally, "test"):
        return
    python = BUILD / "python" / "venv" / "bin" / "python"
    run_unittest(tally, "tests/docs", {"TESSERA_BUILD_DIR": str(BUILD / "test"), "PYTHONPATH": "", "TESSERA_LIBRARY": "",
                                       "TESSERA_PYTHON": str(python) if python.exists() else ""})


def stage_figures(tally):
    code, output = run([sys.executable, "scripts/figures.py", "--check"])
    tally.add(code == 0, "figures of README, docs and model card agree with bench/results", output)


# "python" after "portable": with the two builds before it, ccache has nearly all that its wheel is made of.
STAGES = {"unit": stage_unit, "package": stage_package, "examples": stage_examples, "cli": stage_cli,
          "training": stage_training, "gpu": stage_gpu, "tidy": stage_tidy, "figures": stage_figures,
          "sanitize": stage_sanitize, "portable": stage_portable, "python": stage_python, "docs": stage_docs,
          "fuzz": stage_fuzz, "endurance": stage_endurance, "clang-tidy": stage_clang_tidy, "thread": stage_thread}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--list", action="store_true", help="name the stages")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name}: {(stage.__doc__ or '').strip()}" for name, stage in STAGES.items()))
        return 0
    passed, failed, skipped, times = 0, 0, [], []
    for name in args.only:
        print(f"== {name}", flush=True)
        tally, start = Tally(), time.monotonic()
        STAGES[name](tally)
        seconds = time.monotonic() - start
        times.append((name, seconds))
        print(f"   {name}: {tally.passed} passed, {tally.failed} failed, {len(tally.skipped)} skipped in {seconds:.0f} s",
              flush=True)
        passed, failed, skipped = passed + tally.passed, failed + tally.failed, skipped + tally.skipped
    print("\nstage times: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times) +
          f"; in all {sum(s for _, s in times):.0f} s")
    for reason in skipped:
        print(f"skipped: {reason}")
    print(f"{passed} passed, {failed} failed, {len(skipped)} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
