"""Shipped binaries: position-independent, tables read-only after start, stack protector, checked copies, and nothing
that tells on which machine they were built. TESSERA_BUILD_DIR is the build that is installed (build/test if unset)."""
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from package_test import BUILD, ROOT, InstalledCase, run

# Each weakens a program in one way; the checker must name it.
WEAKENED = {
    "no PIE": ["-no-pie", "-fno-pie"],
    "no full RELRO": ["-Wl,-z,lazy", "-Wl,-z,norelro"],
    "an executable stack": ["-Wl,-z,execstack"],
    "no stack protector": ["-fno-stack-protector"],
    "no checked copies": ["-U_FORTIFY_SOURCE"],
}
SOUND = ["-O2", "-fPIE", "-pie", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2",
         "-Wl,-z,relro,-z,now"]
PROGRAM = """
#include <stdio.h>
#include <string.h>
int main(int argc, char** argv) {
  char text[64];
  strcpy(text, argv[argc - 1]);
  puts(text);
  return 0;
}
"""


def readelf(option, path):
    return subprocess.run(["readelf", "--wide", option, path], text=True, check=True, stdout=subprocess.PIPE).stdout


def weaknesses(path):
    """What a binary lacks, in words; empty if nothing."""
    header, segments, dynamic = (readelf(option, path) for option in ("-h", "-l", "-d"))
    symbols = readelf("--dyn-syms", path)
    stack = next((line for line in segments.splitlines() if "GNU_STACK" in line), "GNU_STACK RWE")
    found = {
        "no PIE": "DYN (" not in header,
        "no full RELRO": "GNU_RELRO" not in segments or "NOW" not in dynamic,
        "an executable stack": "RWE" in stack,
        "no stack protector": "__stack_chk_fail" not in symbols,
        "no checked copies": "_chk@" not in symbols.replace("__stack_chk_fail@", ""),
    }
    return [name for name, is_so in found.items() if is_so]


def source_paths(path):
    """Places of this checkout's path, and of its build, in the bytes of a file."""
    content = pathlib.Path(path).read_bytes()
    return [str(folder) for folder in {ROOT, BUILD.resolve()} if str(folder).encode() + b"/" in content]


class TheChecker(unittest.TestCase):
    def build(self, folder, *flags):
        source, program = pathlib.Path(folder) / "program.c", pathlib.Path(folder) / "program"
        source.write_text(PROGRAM)
        subprocess.run([shutil.which("cc") or "gcc", *SOUND, *flags, source, "-o", program], check=True,
                       stderr=subprocess.DEVNULL)
        return program

    def test_finds_each_weakness(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(weaknesses(self.build(folder)), [])
            for name, flags in WEAKENED.items():
                self.assertIn(name, weaknesses(self.build(folder, *flags)))

    def test_finds_a_path(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "file"
            path.write_bytes(b"\x00" + str(ROOT).encode() + b"/src/io/file.cc\x00")
            self.assertEqual(source_paths(path), [str(ROOT)])


class ShippedBinaries(InstalledCase):
    def test_are_hardened(self):
        files = [self.prefix / "bin" / "tessera", (self.library_dir / "libtessera.so").resolve()]
        for path in files:
            with self.subTest(path.name):
                self.assertEqual(weaknesses(path), [])

    def test_name_no_folder_of_the_build(self):
        files = [path for path in self.prefix.rglob("*") if path.is_file()]
        self.assertGreater(len(files), 10)
        for path in files:
            with self.subTest(path.name):
                self.assertEqual(source_paths(path), [])

    def test_errors_still_say_where(self):
        """Messages of broken contracts name the source, without the folder that held the checkout."""
        code, output = run("sh", "-c", f"strings -a {self.prefix}/bin/tessera | grep -cE '^[./]*/src/io/.*\\.cc$'")
        self.assertEqual(code, 0, output)
        self.assertGreater(int(output), 2)


if __name__ == "__main__":
    unittest.main()
