"""Installs a build, moves the prefix, and uses it as other projects do: CMake package, pkg-config, plain C, and the
sources as a part of another build. TESSERA_BUILD_DIR is the build that is installed (build/test if unset)."""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("TESSERA_BUILD_DIR", ROOT / "build" / "test"))
CONSUMER = ROOT / "tests" / "consumer"
MODEL = ROOT / "models" / "movie-reviews"
VERSION = re.search(r"project\(tessera VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
HAS_CUDA = "set(tessera_CUDA ON)" in (BUILD / "package" / "tesseraConfig.cmake").read_text()


def run(*command, env=None):
    """(exit code, output) of a command."""
    done = subprocess.run([str(c) for c in command], text=True, errors="replace", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=900, env={**os.environ, **(env or {})})
    return done.returncode, done.stdout


def one_line(text):
    """CMake breaks its messages into lines anywhere."""
    return " ".join(text.split())


class PackageCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory(prefix="tessera-package-")
        cls.addClassCleanup(scratch.cleanup)
        cls.scratch = pathlib.Path(scratch.name)

    def succeed(self, *command, env=None):
        code, output = run(*command, env=env)
        self.assertEqual(code, 0, f"{shlex.join(map(str, command))}\n{output[-6000:]}")
        return output

    def refuse(self, *command):
        code, output = run(*command)
        self.assertNotEqual(code, 0, f"{shlex.join(map(str, command))}\n{output[-6000:]}")
        return one_line(output)

    def check_program_output(self, output):
        self.assertRegex(output, r'classifier: "[Aa] moving .* is positive')
        self.assertRegex(output, r'classifier: "[Aa] dull.* is negative')
        self.assertRegex(output, r"moe: largest error \d\.\de-0\d")


class InstalledCase(PackageCase):
    """The prefix that the build was installed to is not the one it is used from."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.first_prefix, cls.prefix = cls.scratch / "first", cls.scratch / "moved" / "deeper"
        code, output = run("cmake", "--install", BUILD, "--prefix", cls.first_prefix)
        if code != 0:
            raise AssertionError(f"cmake --install:\n{output[-6000:]}")
        cls.prefix.parent.mkdir()
        cls.first_prefix.rename(cls.prefix)
        cls.library_dir = next(cls.prefix.rglob("libtessera.so")).parent
        cls.package_dir = next(cls.prefix.rglob("tesseraConfig.cmake")).parent

    def find_script(self, arguments, package_dir=None):
        """A script that asks for the package; enough for what is refused before there are targets."""
        script = self.scratch / "find.cmake"
        script.write_text("cmake_policy(VERSION 3.20)\n"
                          f'set(tessera_DIR "{package_dir or self.package_dir}")\nfind_package(tessera {arguments})\n')
        return ["cmake", "-P", script]

    def project(self, text, *options):
        """Configures a project of one file."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.scratch))
        (folder / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.20)\n" + text)
        return ["cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={self.prefix}",
                *options]


class Installed(InstalledCase):
    def test_every_public_header_and_no_other_is_there(self):
        def headers(folder):
            return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        self.assertEqual(headers(self.prefix / "include"), headers(ROOT / "include"))

    def test_the_command_runs(self):
        self.assertIn(VERSION, self.succeed(self.prefix / "bin" / "tessera", "--version"))

    def test_no_text_file_names_a_place_of_the_machine_that_built_it(self):
        machine = [str(ROOT), str(BUILD), str(self.scratch), "/usr/", "/opt/", str(pathlib.Path.home()) + "/"]
        num_files = 0
        for path in self.prefix.rglob("*"):
            if path.suffix in (".cmake", ".pc", ".h", ".cuh"):
                num_files += 1
                text = path.read_text()
                self.assertEqual([place for place in machine if place in text], [], path)
        self.assertGreater(num_files, 30)

    def test_nothing_private_is_in_the_targets(self):
        text = "".join(p.read_text() for p in self.package_dir.glob("tesseraTargets*.cmake"))
        self.assertIn("tessera::classifier", text)
        for private in ("tessera_flags", "nlohmann", "xxhash", "ccache", "-Werror", "-Wall", "-ffp-contract", "-fPIC",
                        "as-needed"):
            self.assertNotIn(private, text)

    def test_components_part_the_command_from_what_developers_need(self):
        parts = {}
        for component in ("runtime", "development"):
            prefix = self.scratch / component
            self.succeed("cmake", "--install", BUILD, "--prefix", prefix, "--component", component)
            parts[component] = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if not p.is_dir()}
        library = self.library_dir.relative_to(self.prefix)
        model = {f"share/tessera/models/movie-reviews/{name}"
                 for name in ("README.md", "config.json", "model.safetensors", "vocab.txt")}
        shells = {"share/man/man1/tessera.1", "share/bash-completion/completions/tessera",
                  "share/fish/vendor_completions.d/tessera.fish", "share/zsh/site-functions/_tessera"}
        self.assertEqual(parts["runtime"], {"bin/tessera", f"{library}/libtessera.so.0", "share/doc/tessera/LICENSE",
                                            f"{library}/libtessera.so.{VERSION}"} | model | shells)
        self.assertIn(f"{library}/libtessera.so", parts["development"])
        everything = {str(p.relative_to(self.prefix)) for p in self.prefix.rglob("*") if not p.is_dir()}
        self.assertEqual(parts["runtime"] | parts["development"], everything)


class Headers(InstalledCase):
    def compile_each(self, headers, compiler, language):
        """Every header must be all that a source file includes."""
        def compile_alone(header):
            source = self.scratch / f"{header.name}.{language}.{'cu' if language == 'cu' else 'c'}"
            source.write_text(f'#include "{header.relative_to(self.prefix / "include")}"\n')
            return header, *run(*compiler, f"-I{self.prefix / 'include'}", source)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(compile_alone, headers))
        self.assertGreater(len(results), 0)
        self.assertEqual([(str(header), output) for header, code, output in results if code != 0], [])

    def headers(self, pattern):
        return sorted((self.prefix / "include").rglob(pattern))

    def test_each_compiles_alone_as_cpp20(self):
        self.compile_each(self.headers("*.h"), ["c++", "-std=c++20", "-x", "c++", "-fsyntax-only", "-Wall", "-Wextra",
                                                "-Wpedantic", "-Werror"], "c++20")

    def test_the_c_headers_compile_alone_as_c11_and_cpp17(self):
        warnings = ["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        for language, compiler in (("c11", ["cc", "-std=c11"]), ("c++17", ["c++", "-std=c++17", "-x", "c++"])):
            self.compile_each(self.headers("tessera*.h"), [*compiler, *warnings], language)

    @unittest.skipUnless(HAS_CUDA, "this build has no CUDA")
    def test_device_headers_compile_alone(self):
        nvcc = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.+)$", (BUILD / "CMakeCache.txt").read_text(), re.M)[1]
        self.compile_each(self.headers("*.cuh"), [nvcc, "-std=c++20", "-arch=sm_90a", "--expt-relaxed-constexpr",
                                                  "-Werror=all-warnings", "-ptx", "-o", os.devnull], "cu")


class Package(InstalledCase):
    def build_and_run(self, project):
        build = self.scratch / f"build-{project}"
        self.succeed("cmake", "-G", "Ninja", "-S", CONSUMER / project, "-B", build,
                     f"-DCMAKE_PREFIX_PATH={self.prefix}", "-DCMAKE_BUILD_TYPE=Release")
        self.succeed("cmake", "--build", build)
        return self.succeed(build / "program", MODEL)

    def test_a_cpp_project_builds_and_runs(self):
        output = self.build_and_run("package")
        self.check_program_output(output)
        self.assertIn("batching: 20 tiles of 5 rows, right", output)

    def test_a_c_project_builds_and_runs_without_cpp(self):
        self.check_program_output(self.build_and_run("c"))

    def test_a_program_says_what_is_wrong_with_its_argument(self):
        self.build_and_run("package")
        self.assertIn("config.json", self.refuse(self.scratch / "build-package" / "program", self.scratch / "empty"))

    def test_pkg_config_is_enough_for_a_c_compiler(self):
        env = {"PKG_CONFIG_PATH": str(self.library_dir / "pkgconfig")}
        self.assertEqual(self.succeed("pkg-config", "--modversion", "tessera", env=env).strip(), VERSION)
        flags = shlex.split(self.succeed("pkg-config", "--cflags", "--libs", "tessera", env=env))
        program = self.scratch / "program_c"
        self.succeed("cc", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", CONSUMER / "c" / "program.c",
                     *flags, "-lm", "-o", program)
        output = self.succeed(program, MODEL, env={"LD_LIBRARY_PATH": str(self.library_dir)})
        self.check_program_output(output)
        self.assertIn(f"tessera {VERSION}", output)

    def test_another_minor_version_is_refused(self):
        major, minor, patch = (int(part) for part in VERSION.split("."))
        older = f"{major}.{minor - 1}" if minor else f"{major - 1}.0"
        for wanted in (older, f"{major}.{minor + 1}", f"{major + 1}.0", f"{major}.{minor}.{patch + 1}"):
            message = self.refuse(*self.find_script(f"{wanted} CONFIG REQUIRED"))
            self.assertIn(f'compatible with requested version "{wanted}"', message)
            self.assertIn(f"version: {VERSION}", message)

    def test_an_unknown_component_is_named(self):
        message = self.refuse(*self.find_script("CONFIG REQUIRED COMPONENTS moe router"))
        self.assertIn("component 'router' is unknown; this installation has: core, batching, moe, checkpoint, classifier, c", message)
        self.succeed(*self.project("project(optional LANGUAGES NONE)\n"
                                   "find_package(tessera CONFIG REQUIRED COMPONENTS c OPTIONAL_COMPONENTS router)\n"
                                   "if(tessera_router_FOUND OR NOT tessera_c_FOUND OR NOT TARGET tessera::c)\n"
                                   '  message(FATAL_ERROR "wrong answers about components")\nendif()\n'))

    def test_a_project_without_cpp_is_told_of_the_c_part(self):
        message = self.refuse(*self.project("project(plain C)\nfind_package(tessera CONFIG REQUIRED)\n"))
        self.assertIn("this project does not have the language CXX, which every part but 'c' needs: "
                      "find_package(tessera COMPONENTS c) finds the C interface alone", message)
        self.assertNotIn("oneDNN", message)
        for text in ("project(plain C)\nfind_package(tessera CONFIG REQUIRED COMPONENTS c)\n",
                     "project(both C CXX)\nfind_package(tessera CONFIG REQUIRED)\n"):
            self.succeed(*self.project(text + 'if(NOT TARGET tessera::c)\n  message(FATAL_ERROR "no target")\nendif()\n'))

    def test_an_installation_without_cuda_says_so(self):
        without = self.scratch / "without_cuda"
        shutil.copytree(self.package_dir, without)
        config = without / "tesseraConfig.cmake"
        config.write_text(config.read_text().replace("set(tessera_CUDA ON)", "set(tessera_CUDA OFF)"))
        message = self.refuse(*self.find_script("CONFIG REQUIRED COMPONENTS cuda", without))
        self.assertIn("component 'cuda' needs an installation built with CUDA", message)

    def test_a_missing_onednn_is_named(self):
        if "set(tessera_ONEDNN ON)" not in (self.package_dir / "tesseraConfig.cmake").read_text():
            self.skipTest("this build has no oneDNN")
        asks = "project(asks LANGUAGES CXX)\nfind_package(tessera CONFIG REQUIRED COMPONENTS {})\n"
        hidden = ["-DCMAKE_DISABLE_FIND_PACKAGE_TesseraOneDNN=ON"]
        self.assertIn("oneDNN (libdnnl-dev) with OpenMP for C++ was not found",
                      self.refuse(*self.project(asks.format("moe"), *hidden)))
        self.succeed(*self.project(asks.format("batching"), *hidden))  # needs none


class Subdirectory(PackageCase):
    def configure(self, name, *options):
        build = self.scratch / name
        self.succeed("cmake", "-G", "Ninja", "-S", CONSUMER / "subdirectory", "-B", build,
                     "-DCMAKE_BUILD_TYPE=Release", *options)
        database = self.succeed("ninja", "-C", build, "-t", "compdb")
        compilations = [c for c in json.loads(database[database.index("["):]) if " -c " in c["command"]]
        return build, {pathlib.Path(c["file"]).name: c["command"] for c in compilations}

    def check_own_flags(self, commands):
        """What compiles the consumer's sources has nothing of ours but the headers and the language."""
        for source in ("program.cc", "careless.cc"):
            self.assertNotRegex(commands[source], r" -W| -ffp-contract| -fPIC|/src\b")
            self.assertIn("-std=gnu++20", commands[source])
        self.assertNotRegex(commands["seventeen.cc"], rf" -W|c\+\+20|-I{ROOT}")
        for flag in ("-Wconversion", "-std=c++20", "-fPIC"):  # as ours are compiled
            self.assertIn(flag, commands["thread_pool.cc"])

    def test_builds_and_runs_as_a_part_of_another_project(self):
        # The flags of the test builds, so that the objects come from the compiler cache that they filled.
        launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
        build, commands = self.configure("cpu", "-DTESSERA_CUDA=OFF", "-DTESSERA_WARNINGS_AS_ERRORS=ON", *launcher)
        self.check_own_flags(commands)
        self.succeed("cmake", "--build", build, "--target", "program", "seventeen")
        output = self.succeed(build / "program", MODEL)
        self.check_program_output(output)
        self.assertIn("batching: 20 tiles of 5 rows, right", output)
        self.succeed(build / "seventeen")
        self.assertFalse((build / "compile_commands.json").exists())
        self.succeed("cmake", "--install", build, "--prefix", self.scratch / "nothing")
        self.assertFalse((self.scratch / "nothing").exists(), "a part of another project installs nothing unasked")

    def test_by_default_the_warnings_of_another_compiler_are_no_errors(self):
        _, commands = self.configure("defaults")
        self.check_own_flags(commands)
        self.assertEqual([c for c in commands.values() if "-Werror" in c], [])
        if HAS_CUDA:
            kernel = next(c for name, c in commands.items() if name.endswith(".cu"))
            self.assertIn("arch=compute_90a", kernel)
            self.assertEqual(re.findall(r"-std=\S+", kernel)[-1], "-std=c++20")


if __name__ == "__main__":
    unittest.main()
