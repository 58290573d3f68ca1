"""scripts/clang_tidy.py finds what is planted in the second of two joined sources, on a path through it, at its place."""
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"))
import clang_tidy  # noqa: E402

FIRST = "namespace first {\nint one() { return 1; }\n}  // namespace first\n"
PLANTED = "int at(int x) {\n  const int* place = nullptr;\n  if (x > 3) return *place;\n  return 0;\n}\n"
SOUND = PLANTED.replace("nullptr", "&x")


class ClangTidy(unittest.TestCase):
    def check(self, second):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "first.cc").write_text(FIRST)
            (folder / "second.cc").write_text(second)
            unity = folder / "unity_0_cxx.cxx"
            unity.write_text(f'#include "{folder}/first.cc"\n\n#include "{folder}/second.cc"\n')
            (folder / "compile_commands.json").write_text(json.dumps(
                [{"directory": name, "file": str(unity), "command": f"c++ -std=c++20 -c {unity}"}]))
            (sources, code, output), = clang_tidy.check(folder)
            self.assertEqual([source.name for source in sources], ["first.cc", "second.cc"])
            return code, output

    def test_a_planted_error_is_found_where_it_stands(self):
        code, output = self.check(PLANTED)
        self.assertNotEqual(code, 0)
        self.assertRegex(output, r"second\.cc:3:\d+: error: .*clang-analyzer-core\.NullDereference")

    def test_sound_sources_pass(self):
        self.assertEqual(self.check(SOUND)[0], 0)


if __name__ == "__main__":
    unittest.main()
