"""Where the package finds its library: beside its sources, and where an editable install puts it."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import tessera
from tessera import _native

PACKAGE = pathlib.Path(tessera.__file__).parent


class Layouts(unittest.TestCase):
    """The sources in one folder, the library in another, as `pip install -e .` leaves them."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.sources, self.site = pathlib.Path(folder.name, "checkout"), pathlib.Path(folder.name, "site")
        shutil.copytree(PACKAGE, self.sources / "tessera", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
        (self.site / "tessera").mkdir(parents=True)
        shutil.copy(_native.PATH, self.site / "tessera" / "libtessera.so")

    def load(self, prepare=""):
        """(exit code, path of the library or messages) of a fresh interpreter."""
        program = f"{prepare}\nimport tessera\nfrom tessera import _native\nprint(tessera.__file__, _native.PATH)"
        env = {name: value for name, value in os.environ.items() if name != "TESSERA_LIBRARY"}
        paths = [str(self.sources), str(self.site), *(path for path in sys.path if path and path != str(PACKAGE.parent))]
        env["PYTHONPATH"] = os.pathsep.join(paths)
        done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, env=env, check=False)
        return done.returncode, done.stdout + done.stderr

    def expect_found(self, outcome):
        code, output = outcome
        self.assertEqual(code, 0, output)
        self.assertEqual(output.split(), [str(self.sources / "tessera" / "__init__.py"),
                                          str(self.site / "tessera" / "libtessera.so")])

    def test_the_distribution_lists_it(self):
        info = self.site / "tessera-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tessera\nVersion: 0.1.0\n")
        (info / "RECORD").write_text("tessera-0.1.0.dist-info/METADATA,,\ntessera/libtessera.so,,\n")
        self.expect_found(self.load())

    def test_the_package_has_two_folders(self):
        """An import hook that knows both, as scikit-build-core's."""
        hook = (f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('tessera', "
                f"{str(self.sources / 'tessera' / '__init__.py')!r}, submodule_search_locations=["
                f"{str(self.sources / 'tessera')!r}, {str(self.site / 'tessera')!r}])\n"
                "module = importlib.util.module_from_spec(spec)\nsys.modules['tessera'] = module\n"
                "spec.loader.exec_module(module)")
        self.expect_found(self.load(hook))

    def test_nowhere_is_an_error_that_says_where_it_was_looked_for(self):
        shutil.rmtree(self.site / "tessera")
        code, output = self.load("import importlib.metadata\nimportlib.metadata.files = lambda name: None")
        self.assertNotEqual(code, 0)
        self.assertIn(f"ImportError: tessera: cannot load its shared library {self.sources / 'tessera'}", output)
        self.assertIn("TESSERA_LIBRARY", output)


if __name__ == "__main__":
    unittest.main()
