"""What a program is made of, as a real build of a small repository says it: the linker's choice of objects and the
compiler's of headers, and every planted difference between that and what is written down."""
import importlib.util
import json
import pathlib
import shlex
import subprocess
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
specification = importlib.util.spec_from_file_location("record", ROOT / "tests" / "gpu" / "record.py")
record = importlib.util.module_from_spec(specification)
specification.loader.exec_module(record)

# Two members of the archive bear one name, as kernels' launch.cu.o do; the program refers to the first alone.
SOURCES = {"src/used/launch.cc": '#include "used/launch.h"\nint used() { return kUsed; }\n',
           "src/used/launch.h": '#pragma once\n#include "deep.h"\nconstexpr int kUsed = kDeep;\n',
           "src/deep.h": "#pragma once\n#include <cstddef>\nconstexpr int kDeep = 0;\n",
           "src/spare/launch.cc": '#include "spare/launch.h"\nint spare() { return kSpare; }\n',
           "src/spare/launch.h": "#pragma once\nconstexpr int kSpare = 2;\n",
           "src/beside.h": "#pragma once\n",
           "main.cc": "int used();\nint main() { return used(); }\n"}
OBJECTS = {"used.dir/launch.cc.o": "src/used/launch.cc", "spare.dir/launch.cc.o": "src/spare/launch.cc",
           "main.cc.o": "main.cc"}
MADE_OF = ["main.cc", "src/deep.h", "src/used/launch.cc", "src/used/launch.h"]
FLAGS = ["c++ -O1 -DKIND=1 -x c++", "c++ -O1 -x c++", "link -O1"]


class Built(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.scratch.name).resolve() / "tree"
        cls.folder = cls.root / "build"
        for name, text in SOURCES.items():
            path = cls.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        cls.folder.mkdir()
        cls.write_rules()
        (cls.root / "suites.json").write_text('{"kernels": {"linked": ["program"], "sanitized": "*"}}')

    @classmethod
    def write_rules(cls):
        commands = {}
        rules = ["rule archive\n  command = : && rm -f $out && ar qc $out $in && ranlib $out && :",
                 "rule link\n  command = : && c++ -O1 $in -o $out liball.a && :",
                 "rule compile\n  deps = gcc\n  depfile = $out.d\n  command = $words"]
        for made, source in OBJECTS.items():
            kind = "-DKIND=1 " if source == "main.cc" else ""
            commands[made] = (f"c++ -I{cls.root}/src -isystem /usr/include/x86_64-linux-gnu -O1 {kind}-Wall -MD -MT {made} "
                              f"-MF {made}.d -o {made} -x c++ -c {cls.root}/{source}")
            rules.append(f"build {made}: compile {cls.root}/{source}\n  words = {commands[made]}")
        rules += ["build liball.a: archive used.dir/launch.cc.o spare.dir/launch.cc.o",
                  "build program: link main.cc.o | liball.a", "build apart: phony program"]
        (cls.folder / "build.ninja").write_text("\n".join(rules) + "\n")
        listing = [{"directory": str(cls.folder), "command": "/usr/bin/ccache /usr/bin/" + command, "file": command.split()[-1]}
                   for command in commands.values()]
        (cls.folder / "compile_commands.json").write_text(json.dumps(listing))

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def setUp(self):
        for name, value in (("ROOT", self.root), ("SUITES", self.root / "suites.json"),
                            ("CLOSURE", self.root / "closure.json"), ("RECORD", self.root / "RECORD.json"),
                            ("STALE", self.root / "STALE.md")):
            patch = mock.patch.object(record, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        subprocess.run(["ninja", "-C", self.folder], check=True, stdout=subprocess.DEVNULL)

    def written(self):
        with mock.patch("builtins.print"):
            record.write_closure(self.folder)
        return json.loads(record.CLOSURE.read_text())


class Closure(Built):
    def test_what_a_program_is_made_of(self):
        self.assertEqual(self.written(), {"kernels": {"files": MADE_OF, "flags": FLAGS}})
        self.assertEqual(record.compare(self.folder), [])
        lines = record.CLOSURE.read_text().splitlines()
        self.assertEqual([line.strip(' ",') for line in lines if ".h" in line or ".cc" in line], MADE_OF)

    def test_missing_and_extra_entries_are_named(self):
        written = self.written()
        for plant, expected in ((lambda c: c["files"].remove("src/deep.h"), "files: missing src/deep.h"),
                                (lambda c: c["files"].append("src/beside.h"), "files: extra src/beside.h"),
                                (lambda c: c["flags"].remove(FLAGS[0]), f"flags: missing {FLAGS[0]}"),
                                (lambda c: c["flags"].append("c++ -O2"), "flags: extra c++ -O2")):
            planted = json.loads(json.dumps(written))
            plant(planted["kernels"])
            record.CLOSURE.write_text(json.dumps(planted))
            self.assertEqual(record.compare(self.folder), [f"suite kernels: closure.json: {expected}"])
        record.CLOSURE.write_text(json.dumps({**written, "another": {}}))
        self.assertEqual(record.compare(self.folder), ["closure.json has a suite another, suites.json has none"])
        record.CLOSURE.unlink()
        self.assertEqual(len(record.compare(self.folder)), len(MADE_OF) + len(FLAGS))

    def test_only_a_change_of_what_it_is_made_of_asks_for_a_run(self):
        self.written()
        entry = {"passed": 1, "failed": 0, "skipped": 0, "sources_sha256": record.sources_sha256("kernels"),
                 "sanitizer": {tool: record.CLEAN for tool in record.TOOLS}}
        record.RECORD.write_text(json.dumps({"kernels": entry}))
        for name in SOURCES:
            with self.subTest(name):
                (self.root / name).write_text(SOURCES[name] + "// changed\n")
                problems, _ = record.check()
                self.assertEqual(bool(problems), name in MADE_OF, problems)
                (self.root / name).write_text(SOURCES[name])
        self.assertEqual(record.check(), ([], []))

    def test_a_header_and_an_object_that_come_and_go(self):
        self.written()
        main = self.root / "main.cc"
        main.write_text("int used();\nint spare();\nint main() { return used() + 0 * spare(); }\n")
        self.addCleanup(subprocess.run, ["ninja", "-C", self.folder], check=True, stdout=subprocess.DEVNULL)
        self.addCleanup(main.write_text, SOURCES["main.cc"])
        subprocess.run(["ninja", "-C", self.folder], check=True, stdout=subprocess.DEVNULL)
        self.assertEqual(record.compare(self.folder), [f"suite kernels: closure.json: files: missing src/spare/launch.{end}"
                                                       for end in ("cc", "h")])

    def test_a_build_that_cannot_say(self):
        with self.assertRaisesRegex(record.closure.BuildError, "got no build.ninja"):
            record.closure.Build(self.root / "src", self.root)
        build = record.closure.Build(self.folder, self.root)
        with self.assertRaisesRegex(record.closure.BuildError, "nothing"):
            build.closure("nothing")
        with self.assertRaisesRegex(record.closure.BuildError, "no command links it"):
            build.closure("apart")
        (self.folder / ".ninja_deps").unlink()
        with self.assertRaisesRegex(record.closure.BuildError, "no dependencies of it; build first"):
            record.closure.Build(self.folder, self.root).closure("program")

    def test_no_flag_holds_the_folder_of_the_checkout(self):
        command = "g++ -O2 -ffile-prefix-map=/x=. -Xcompiler=-fstack-protector-strong,-ffile-prefix-map=/x=. -c a.cc".split()
        self.assertEqual(record.closure.compile_flags(command, "/x"), "g++ -O2 -Xcompiler=-fstack-protector-strong")

    def test_flags_that_decide(self):
        command = shlex.split("/usr/bin/ccache /opt/bin/nvcc -forward-unknown -I/x/src -isystem=/y -O3 -DA=/x/b -Werror=all "
                              "-Wl,-z,now -Wl,-soname,lib.so.0 -Wall -MD -MT o -MF o.d -x cu -c /x/a.cu -o a.o -L/q -lrt")
        self.assertEqual(record.closure.compile_flags(command, "/x"), "nvcc -forward-unknown -O3 -DA=b -Wl,-z,now -x cu")


if __name__ == "__main__":
    unittest.main()
