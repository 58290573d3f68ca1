"""The reference pages against what they describe: generated ones letter by letter, the others by name."""
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

import blocks

ROOT = blocks.ROOT
REFERENCE = ROOT / "docs" / "reference"


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def tracked(*patterns):
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, check=True).stdout.splitlines()
    return [pathlib.Path(line) for line in listing if (ROOT / line).is_file()]


class Reference(unittest.TestCase):
    def check_generated(self, script, page, names):
        printed = subprocess.run([sys.executable, ROOT / "scripts" / script], text=True, capture_output=True, check=True,
                                 env={**os.environ, "PYTHONIOENCODING": "utf-8"}).stdout
        self.assertEqual(printed, (REFERENCE / page).read_text(encoding="utf-8"),
                         f"run scripts/{script} > docs/reference/{page}")
        self.assertGreater(len(names), 5)
        self.assertEqual([name for name in names if f"`{name}`" not in "".join(re.findall(r"(?m)^#.*", printed))], [])

    def test_c(self):
        functions = re.findall(r"\b(tessera_\w+)\(", re.sub(r"/\*.*?\*/", "", "".join(
            read(path) for path in tracked("include/tessera/*.h") if path.parent.name == "tessera"), flags=re.S))
        self.check_generated("c_reference.py", "c.md", functions)

    def test_python(self):
        names = re.findall(r"(?m)^(?:def|class) (\w+)", read("python/tessera/__init__.pyi"))
        self.check_generated("python_reference.py", "python.md", names)

    def test_python_stubs(self):
        printed = subprocess.run([sys.executable, ROOT / "scripts" / "python_stubs.py"], text=True, capture_output=True,
                                 check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}).stdout
        self.assertEqual(printed, read("python/tessera/__init__.pyi"),
                         "run scripts/python_stubs.py > python/tessera/__init__.pyi")

    def test_support(self):
        """What was tested, out of the records: another run of a suite asks for the page to be written anew."""
        names = re.findall(r"(?m)^## (.*)$", read("docs/reference/support.md"))
        printed = subprocess.run([sys.executable, ROOT / "scripts" / "support_matrix.py"], text=True, capture_output=True,
                                 check=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}).stdout
        self.assertEqual(printed, read("docs/reference/support.md"), "run scripts/support_matrix.py > docs/reference/support.md")
        self.assertEqual(len(names), 4)
        record = json.loads(read("tests/gpu/RECORD.json"))
        for suite, entry in record.items():
            self.assertRegex(printed, rf"(?m)^\| {suite} \| {entry['gpu']} \| {entry['passed']} \|")

    def test_what_ran_in_engines(self):
        sys.path.insert(0, str(ROOT / "scripts"))
        self.addCleanup(sys.path.remove, str(ROOT / "scripts"))
        import support_matrix
        between = support_matrix.SERVE.findall(read("docs/how-to/serve.md"))
        self.assertEqual(len(between), 1)
        written = support_matrix.SERVE.search(read("docs/how-to/serve.md"))[0]
        self.assertEqual(written, between[0][0] + support_matrix.engines() + between[0][1],
                         "run scripts/support_matrix.py --serve")

    def test_the_readme_is_short(self):
        self.assertLessEqual(read("README.md").count("\n"), 100)

    def test_every_cpp_header_is_listed(self):
        page = (REFERENCE / "cpp.md").read_text(encoding="utf-8")
        headers = [path for path in tracked("include/tessera/*/*.h", "include/tessera/*/*.cuh")]
        self.assertGreater(len(headers), 20)
        self.assertEqual([str(path) for path in headers if f"[{path.relative_to('include')}]" not in page], [])
        named = re.findall(r"^\| \[[^]]+\]\([^)]+\) \| (.*) \|$", page, re.M)
        code = "".join(read(path) for path in headers)
        unknown = {name for cell in named for name in re.findall(r"`(\w+)", cell)} - set(re.findall(r"\w+", code))
        self.assertEqual(unknown, set())

    def test_limits_in_prose(self):
        """Sentences for readers that state the layer's limits, against the header that decides them."""
        limit = dict(re.findall(r"constexpr \w+ (\w+) = (\d+);", read("include/tessera/moe/limits.h")))
        width, experts, slots = limit["kWidthMultiple"], f"{int(limit['kMaxExperts']):,}", limit["kMaxTopK"]
        for page, sentence in (
                ("README.md", f"hidden and intermediate size multiples of {width}, at most {experts} experts, at most "
                              f"{slots} experts a token."),
                ("docs/concepts/layouts.md", f"H and I are multiples of {width}; 1 to {experts} experts; 1 to {slots} slots "
                                             "a token;")):
            self.assertIn(sentence, read(page), page)

    def test_every_status_code_is_explained(self):
        page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
        body = re.search(r"enum tessera_status \{(.*?)\}", read("include/tessera/tessera.h"), re.S)[1]
        codes = re.findall(r"(TESSERA_\w+) = (\d+)", body)
        self.assertGreater(len(codes), 4)
        self.assertEqual(codes, re.findall(r"^\| `(TESSERA_\w+)` \| (\d+) \|", page, re.M))

    def test_exit_codes_are_those_of_the_command(self):
        def codes(text):
            return sorted({int(code) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.M) for code in row.split(",")})
        errors = (REFERENCE / "errors.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
        self.assertEqual(codes(errors), sorted({*codes(read("docs/reference/cli.md")), 143}))

    def test_every_environment_variable_is_listed(self):
        page = (REFERENCE / "environment.md").read_text(encoding="utf-8").partition("## CMake")[0]
        listed = set(re.findall(r"`([A-Z][A-Z_]+)`", page.partition("CUDA's own")[0]))
        read_there = set()
        for path in tracked("src", "tools", "python", "scripts/*.sh"):
            if path.suffix not in (".cc", ".h", ".cu", ".cuh", ".py", ".sh"):
                continue
            text = read(path)
            read_there |= set(re.findall(r"environ(?:\.get\(|\[)[\"'](\w+)", text))
            read_there |= set(re.findall(r"\$\{([A-Z_]+):-", text))
            if "getenv" in text:  # by name, or from a list of names in that file
                read_there |= set(re.findall(r"\"([A-Z]+_[A-Z_]+)\"", text))
        self.assertGreater(len(read_there), 5)
        self.assertEqual(listed, read_there)

    def test_every_cmake_option_is_listed(self):
        page = (REFERENCE / "environment.md").read_text(encoding="utf-8").partition("## CMake")[2]
        files = "".join(read(path) for path in tracked("CMakeLists.txt", "cmake/*"))
        options = set(re.findall(r"^ *(?:option|find_path|find_library)\((TESSERA_\w+)", files, re.M))
        options |= set(re.findall(r"^ *set\((TESSERA_\w+) [^)\n]*\bCACHE\b", files, re.M))
        self.assertGreater(len(options), 10)
        self.assertEqual(options, set(re.findall(r"`(TESSERA_\w+)`", page)))

    def test_a_page_that_fell_behind_is_seen(self):
        with self.assertRaises(AssertionError):
            self.check_generated("c_reference.py", "errors.md", ["tessera_version"])
        with self.assertRaises(AssertionError):
            self.check_generated("c_reference.py", "c.md", ["tessera_no_such"] * 9)


if __name__ == "__main__":
    unittest.main()
