"""Runs the rules of tidy.py over the repository, and each rule over a planted offence."""
import pathlib
import unittest

import tidy

TEXT_SUFFIXES = tidy.CODE + (".py", ".md", ".sh", ".txt", ".json", ".cmake", ".svg", ".yml", "")
P = pathlib.Path


def read(path):
    try:
        return (tidy.ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


class Repository(unittest.TestCase):
    def setUp(self):
        self.files = [p for p in tidy.tracked_files() if p.suffix in TEXT_SUFFIXES and p.name != "vocab.txt"]

    def test_every_file_follows_the_rules(self):
        complaints = [c for path in self.files for c in tidy.check_file(path, read(path))]
        self.assertEqual(complaints, [], "\n" + "\n".join(complaints))

    def test_files_named_in_comments_exist(self):
        paths = [p for p in self.files if p.suffix in tidy.CODE + (".py",)]
        self.assertEqual([c for path in paths for c in tidy.named_files(path, read(path), self.files)], [])

    def test_no_dead_files(self):
        self.assertEqual(tidy.dead_files(self.files, read), [])

    def test_the_listing_is_not_empty(self):
        self.assertGreater(len(self.files), 50)


class PlantedOffences(unittest.TestCase):
    def assertFound(self, complaints, fragment):
        self.assertTrue(any(fragment in c for c in complaints), complaints)

    def test_include_direction(self):
        self.assertFound(tidy.include_direction(P("src/batching/a.cc"), '#include "tessera/moe/plan.h"\n'), "must not")
        self.assertFound(tidy.include_direction(P("src/io/a.cc"), '#include "cpu/gemm.h"\n'), "must not")
        self.assertFound(tidy.include_direction(P("src/cuda/kernels/a/b.cu"), '#include "cuda/kernels/c/d.h"\n'),
                         "must not")
        self.assertEqual(tidy.include_direction(P("src/cuda/kernels/a/b.cu"), '#include "cuda/kernels/a/d.h"\n'), [])
        self.assertEqual(tidy.include_direction(P("src/cpu/a.cc"), '#include "tessera/batching/plan.h"\n'), [])

    def test_lengths(self):
        long_function = "void f() {\n" + "  g();\n" * 70 + "}\n"
        self.assertFound(tidy.function_length(P("src/io/a.cc"), long_function), "function of 72 lines")
        self.assertEqual(tidy.function_length(P("src/io/a.cc"), "void f() {\n" + "  g();\n" * 68 + "}\n"), [])
        long_python = "def f():\n" + "    g()\n" * 70
        self.assertFound(tidy.python_function_length(P("a.py"), long_python), "function of 71 lines")
        self.assertFound(tidy.file_length(P("include/tessera/core/a.h"), "x\n" * 181), "at most 180")
        self.assertFound(tidy.file_length(P("src/io/a.cc"), "x\n" * 601), "at most 600")

    def test_banned_words(self):
        self.assertFound(tidy.banned_words(P("src/io/a.cc"), "// TO" + "DO: later\n"), "unfinished")
        self.assertFound(tidy.banned_words(P("src/io/a.cc"), 'printf("x");\n'), "never prints")
        self.assertFound(tidy.banned_words(P("src/cpu/a.cc"), "exit(1);\n"), "never exits")
        self.assertFound(tidy.banned_words(P("src/cuda/cta/a.cuh"), 'asm volatile("");\n'), "PTX")
        self.assertFound(tidy.banned_words(P("training/a.py"), "import pickle\n"), "execute")
        self.assertEqual(tidy.banned_words(P("tools/tessera/a.cc"), 'printf("x");\n'), [])
        for literal in ('"--form"', '"see --form auto"', '"\\"--form"'):
            self.assertFound(tidy.banned_words(P("src/io/a.cc"), f"throw Error({literal}, name);\n"), "names its argument")
            self.assertEqual(tidy.banned_words(P("tools/tessera/a.cc"), f"throw Error({literal}, name);\n"), [])
        self.assertEqual(tidy.banned_words(P("src/io/a.cc"), 'f("a - b -- c", "form", --n);  // as --form\n'), [])

    def test_commented_out_code(self):
        text = "int a;\n// b = f(c);\n// return b;\n"
        self.assertFound(tidy.commented_out_code(P("src/io/a.cc"), text), "commented-out")
        self.assertEqual(tidy.commented_out_code(P("src/io/a.cc"), "int a;\n// Rounds to nearest; ties to even.\n"), [])

    def test_dead_files(self):
        texts = {P("src/io/a.h"): "", P("src/io/b.h"): "", P("src/io/b.cc"): '#include "io/b.h"\n'}
        self.assertEqual(tidy.dead_files(list(texts), texts.get), ["src/io/a.h: nothing refers to this file"])

    def test_files_named_in_comments(self):
        paths = [P("src/io/json.h"), P("tests/unit/io/json_test.cc"), P("tests/tidy/tidy.py")]
        for comment in ("// See io/jason.h.", "int a;  // as in json.cc", "// (jason_test.cc)", "/// core/json.h", "// xjson.h"):
            self.assertFound(tidy.named_files(P("src/io/a.cc"), comment + "\n", paths), "no file is called")
        self.assertFound(tidy.named_files(P("a.py"), "x = 1  # see tidi.py\n", paths), "no file is called tidi.py")
        for right in ("// See io/json.h, json_test.cc.", "// src/io/json.h", '#include "io/no.h"', 'f("no.h"); // g', "// e.g. x.y"):
            self.assertEqual(tidy.named_files(P("src/io/a.cc"), right + "\n", paths), [])

    def test_text_form(self):
        self.assertFound(tidy.text_form(P("a.md"), "x \n"), "trailing")
        self.assertFound(tidy.text_form(P("a.md"), "x"), "no newline")


if __name__ == "__main__":
    unittest.main()
