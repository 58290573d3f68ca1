"""The harness itself: wrong blocks are planted in a made-up repository and must be found."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import blocks
import links
import runners

SETTING = runners.setting_of_environment()


class Planted(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="tessera-planted-")
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "examples").mkdir()
        (self.root / "examples" / "a.cc").write_text("int main() {\n  first();\n\n  second();\n  third();\n}\n")
        (self.root / "include").symlink_to(blocks.ROOT / "include")
        (self.root / "tests").symlink_to(blocks.ROOT / "tests")
        for name in ("Makefile", "CMakeLists.txt", "CMakePresets.json", "cmake"):
            (self.root / name).symlink_to(blocks.ROOT / name)
        self.setting = runners.Setting(self.root, SETTING.build, sys.executable)

    def page(self, text):
        (self.root / "page.md").write_text(text.replace("~~~", "```"))
        return blocks.read_blocks("page.md", self.root)

    def refused(self, text, words):
        with self.assertRaisesRegex(blocks.Unclassified, words):
            for block in self.page(text):
                blocks.classify(block)
                blocks.needs_of(block)

    def found(self, problems, words):
        self.assertTrue(problems, f"nothing was found, expected {words}")
        self.assertRegex("\n".join(problems), words)

    # ---- classes

    def test_blocks_that_no_rule_covers(self):
        self.refused("~~~\nx\n~~~\n", "page.md:1: a nameless block|no rule for a nameless block")
        self.refused("~~~cpp\nlayer.run();\n~~~\n", r"page.md:1: a cpp block with directives \[\]")
        self.refused("\n~~~cmake\nfind_package(x)\n~~~\n", "page.md:2: a cmake block")
        self.refused("~~~rust\nfn main() {}\n~~~\n", "no rule for a rust block")
        self.refused("~~~text\nx\n~~~\n", "a text block")
        self.refused("<!-- from: examples/a.cc -->\n<!-- wrap: layer -->\n~~~cpp\nx\n~~~\n", "a cpp block")
        self.refused("<!-- shown -->\n~~~text\nx\n~~~\n", "needs a value")
        self.refused("<!-- needs: luck -->\n~~~python\nx\n~~~\n", "unknown needs")
        self.refused("~~~sh\nmake test\n", "never closed")

    def test_classes(self):
        text = ("~~~cpp\nint main() {}\n~~~\n<!-- prints -->\n~~~text\n~~~\n<!-- needs: torch -->\n~~~python\nx\n~~~\n"
                "~~~sh\nmake\n~~~\n~~~json\n{}\n~~~\n")
        self.assertEqual([blocks.classify(block) for block in self.page(text)],
                         ["program", "output", "python elsewhere", "shell", "data"])

    # ---- quotes

    def quote(self, body):
        return blocks.quote_problem(self.page(f"<!-- from: examples/a.cc -->\n~~~cpp\n{body}\n~~~\n")[0], self.root)

    def test_quotes(self):
        self.assertEqual(self.quote("first();\nsecond();"), "")
        self.assertEqual(self.quote("first();\n// ...\nthird();"), "")
        self.assertIn("page.md:4: examples/a.cc does not say this here: third();", self.quote("first();\nthird();"))
        self.assertIn("does not say this here: first();", self.quote("second();\n// ...\nfirst();"))
        self.assertIn("does not say this here: fourth();", self.quote("fourth();"))
        missing = self.page("<!-- from: examples/b.cc -->\n~~~cpp\nx\n~~~\n")[0]
        self.assertIn("does not exist", blocks.quote_problem(missing, self.root))
        nowhere = self.page("<!-- from: include/tessera/tessera.h -->\n~~~cmake\nx\n~~~\n")[0]
        self.assertIn("does not say", blocks.quote_problem(nowhere, self.root))

    # ---- programs

    def program(self, body, language="cpp", after=""):
        page = self.page(f"~~~{language}\n{body}\n~~~\n{after}")
        return runners.run_program(page[0], page, self.setting, [])

    def test_programs(self):
        main = "#include <cstdio>\nint main() {{ std::puts(\"4 rows\"); return {}; }}"
        shown = "<!-- prints -->\n~~~text\n{}\n~~~\n"
        self.assertEqual(self.program(main.format(0), after=shown.format("4 ...")), [])
        self.found(self.program(main.format(0), after=shown.format("5 rows")), "but the page says")
        self.found(self.program(main.format(3)), "page.md:1: exit code 3")
        self.found(self.program("int main() { return zero; }"), "page.md:1: does not compile")
        self.found(self.program("#include \"tessera/tessera.h\"\nint main(void) { return tessera_no_such(); }", "c"),
                   "does not compile")

    # ---- Python

    def python(self, text, offers=frozenset()):
        self.page(text)
        return runners.run_python("page.md", self.setting, offers)

    def test_python(self):
        first, second = "~~~python\nx = 4\n~~~\n", "~~~python\nprint(x)\nassert x == {}\n~~~\n"
        problems, ran = self.python(first + "words\n" + second.format(4) + "<!-- prints -->\n~~~text\n4\n~~~\n")
        self.assertEqual((problems, len(ran)), ([], 2))
        self.found(self.python(first + second.format(4) + "<!-- prints -->\n~~~text\n5\n~~~\n")[0], "but the page says")
        problems, ran = self.python(first + second.format(5))
        self.found(problems, "(?s)page.md:4: exit code 1.*line 6, in <module>")
        self.assertEqual(len(ran), 1)
        self.found(self.python("~~~python\nraise SystemExit(3)\n~~~\n")[0], "page.md:1: exit code 3")

    def test_python_of_elsewhere_runs_only_there(self):
        text = "~~~python\nx = 1\n~~~\n<!-- needs: gpu -->\n~~~python\nassert x == 2\n~~~\n"
        self.assertEqual(self.python(text)[0], [])
        self.found(self.python(text, {"gpu"})[0], "page.md:5: exit code 1")

    # ---- shell

    def shell(self, text):
        self.page(text)
        return runners.run_shell("page.md", self.setting)

    def test_commands_that_run(self):
        problems, ran, checked = self.shell("~~~sh\nprintf 'a\\n' > f  # a file\ncat \\\n  f\n~~~\n"
                                            "~~~console\n$ cat f\na\n~~~\n")
        self.assertEqual((problems, ran, checked), ([], 3, 0))
        self.found(self.shell("~~~sh\ncat missing\n~~~\n")[0], "page.md:1: cat missing: exit code 1")
        self.found(self.shell("~~~console\n$ printf a\nb\n~~~\n")[0], "but the page says")
        self.found(self.shell("~~~sh\ntessera classify --no-such-option\n~~~\n")[0], "exit code")
        self.found(self.shell("~~~console\nno command\n~~~\n")[0], "no command in it")

    def test_commands_that_are_checked(self):
        good = ["make demo test", "cmake --preset cuda -DTESSERA_CUDA=ON", "python3 tests/docs/blocks.py",
                "tessera classify --model m --input f --device cuda:0,1", "mpirun -np 4 tessera classify --shard auto --device cuda",
                "tessera bench moe --preset olmoe --tokens 1 --device cuda"]
        for command in good:
            self.assertEqual(self.shell(f"~~~sh\n{command}\n~~~\n"), ([], 0, 1), command)
        bad = {"make harvest": "no target harvest", "cmake --preset fast": "no preset fast",
               "cmake -DTESSERA_FAST=ON": "no option TESSERA_FAST", "python3 tests/none.py": "no file",
               "pip install ./models": "no pyproject.toml", "rm -rf x": "no rule for the command",
               "tessera classify --device cuda --fast": "classify has no option --fast",
               "tessera sing --device cuda": "no command",
               "tessera bench moe --preset none --device cuda": "no preset none"}
        for command, words in bad.items():
            self.found(self.shell(f"~~~sh\n{command}\n~~~\n")[0], words)
        self.found(self.shell("<!-- checked: too large -->\n~~~sh\ntessera verify --no-such\n~~~\n")[0], "no option")

    # ---- links

    def test_links(self):
        (self.root / "other.md").write_text("# One `two`, three\n\n# One\n\n# One\n")
        self.page("[a](other.md#one-two-three) [b](other.md#one-1) [c](https://example.org) [d](#words)\n\n# Words\n")
        self.assertEqual(links.link_problems("page.md", self.root), ([], 3))
        for target in ("none.md", "other.md#four", "#none", "../outside.md", "examples/a.cc#x"):
            self.page(f"![picture [x]]({target})\n")
            self.found(links.link_problems("page.md", self.root)[0], "there is no such")

    def test_a_run_without_an_interpreter_fails(self):
        code = subprocess.run([sys.executable, "-m", "unittest", "docs_test.Python"], cwd=pathlib.Path(__file__).parent,
                              env={**os.environ, "TESSERA_PYTHON": ""}, capture_output=True).returncode
        self.assertNotEqual(code, 0)


if __name__ == "__main__":
    unittest.main()
