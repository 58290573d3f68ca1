"""The Debian packages that cpack makes of a build: what is in them, what they need, and that the command runs from there."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("TESSERA_BUILD_DIR", ROOT / "build" / "test"))


@unittest.skipIf(shutil.which("cpack") is None or shutil.which("dpkg-deb") is None, "no cpack or dpkg-deb on this machine")
class DebianPackages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory(prefix="tessera-deb-")
        cls.addClassCleanup(scratch.cleanup)
        cls.folder = pathlib.Path(scratch.name)
        done = subprocess.run(["cpack", "--config", BUILD / "CPackConfig.cmake", "-G", "DEB", "-B", cls.folder], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-4000:]
        cls.command, = cls.folder.glob("tessera_*_amd64.deb")
        cls.development, = cls.folder.glob("libtessera-dev_*_amd64.deb")

    def field(self, package, name):
        return subprocess.run(["dpkg-deb", "-f", package, name], text=True, stdout=subprocess.PIPE, check=True).stdout.strip()

    def test_what_they_need(self):
        needs = self.field(self.command, "Depends")
        for library in ("libc6", "libstdc++6", "zlib1g", "libzstd1", "liblzma5"):
            self.assertIn(library, needs)
        self.assertRegex(self.field(self.development, "Depends"), r"^tessera \(= [\d.]+\)")

    def test_the_command_runs_from_where_it_is_unpacked(self):
        root = self.folder / "root"
        subprocess.run(["dpkg", "-x", self.command, root], check=True)
        usr = root / "usr"
        for path in ("bin/tessera", "share/man/man1/tessera.1", "share/bash-completion/completions/tessera",
                     "share/fish/vendor_completions.d/tessera.fish", "share/tessera/models/movie-reviews/model.safetensors"):
            self.assertTrue((usr / path).is_file() or (usr / f"{path}.gz").is_file(), path)
        done = subprocess.run([usr / "bin" / "tessera", "classify", "-q", "--output-format", "jsonl", "--text",
                               "Tender, funny and beautifully acted."], cwd="/", text=True, stdout=subprocess.PIPE, check=True)
        self.assertEqual(json.loads(done.stdout)["label"], "positive")

    def test_headers_and_the_cmake_package_are_in_the_other(self):
        listing = subprocess.run(["dpkg-deb", "-c", self.development], text=True, stdout=subprocess.PIPE, check=True).stdout
        for path in ("usr/include/tessera/tessera.h", "cmake/tessera/tesseraConfig.cmake", "pkgconfig/tessera.pc"):
            self.assertIn(path, listing)


if __name__ == "__main__":
    unittest.main()
