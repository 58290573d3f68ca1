"""scripts/install.sh on machines that are made of a PATH: it asks a person at a terminal, and nobody else."""
import os
import pathlib
import pty
import re
import stat
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = ("bash", "env", "mktemp", "rm", "cat", "id")


class InstallScript(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for tool in TOOLS:
            path = next(p for p in (pathlib.Path(d) / tool for d in ("/usr/bin", "/bin")) if p.exists())
            (self.folder / tool).symlink_to(path)
        self.script("dpkg-query", 'case "$*" in *" g++"|*" cmake") echo installed ;; esac')
        self.script("apt-get", f'echo "$*" >> {self.folder}/calls')
        self.script("sudo", '"$@"')

    def script(self, name, body):
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self):
        path = self.folder / "calls"
        return path.read_text() if path.exists() else ""

    def run_at_a_terminal(self, answer):
        """(exit code, what the terminal showed)."""
        master, slave = pty.openpty()
        process = subprocess.Popen([ROOT / "scripts" / "install.sh", "demo"], env={"PATH": str(self.folder)}, stdin=slave,
                                   stdout=slave, stderr=slave)
        os.close(slave)
        os.write(master, answer.encode())
        shown = b""
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
        os.close(master)
        return process.wait(30), shown.decode()

    def test_a_person_is_asked_and_sees_the_list(self):
        for answer in ("\n", "y\n", "Yes\n"):
            (self.folder / "calls").unlink(missing_ok=True)
            code, shown = self.run_at_a_terminal(answer)
            self.assertEqual(code, 0, shown)
            self.assertRegex(shown, r"Debian packages are missing[^\n]*\n  ninja-build\r?\n(.*\n)*  libzstd-dev")
            self.assertIn("Install them? [Y/n]", shown)
            self.assertNotIn("  cmake", shown)
            self.assertRegex(self.calls(), r"install .* ninja-build .*zlib1g-dev")

    def test_no_means_no(self):
        for answer in ("n\n", "what?\n", "\x04"):
            code, shown = self.run_at_a_terminal(answer)
            self.assertEqual((code, self.calls()), (1, ""), shown)
            self.assertIn("nothing was installed", shown)

    def test_without_a_terminal_nobody_is_asked(self):
        done = subprocess.run([ROOT / "scripts" / "install.sh", "demo"], env={"PATH": str(self.folder)}, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
        self.assertNotIn("?", done.stdout)
        self.assertIn("ninja-build", self.calls())

    def test_the_container_uses_what_is_there(self):
        """The file cannot be built where no base image can be had; what it names exists."""
        text = (ROOT / "Containerfile").read_text()
        for name in re.findall(r"scripts/[\w.]+", text):
            self.assertTrue((ROOT / name).exists(), name)
        for target in re.findall(r"make (\w+)", text):
            self.assertRegex((ROOT / "Makefile").read_text(), rf"(?m)^{target}:")
        self.assertEqual(re.findall(r"(?m)^FROM (\S+)", text), ["docker.io/library/debian:12", "docker.io/library/debian:12-slim"])


if __name__ == "__main__":
    unittest.main()
