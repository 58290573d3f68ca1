"""scripts/demo_preset.sh: which build `make demo` makes, on machines that are made of a PATH."""
import glob
import os
import pathlib
import stat
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = ("bash", "env", "sed", "sort", "head")


class DemoPreset(unittest.TestCase):
    def preset(self, gpu=True, nvcc_release=None):
        """(preset, message) where nvidia-smi finds a GPU or not, and nvcc has a release or is missing."""
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for tool in TOOLS:
                path = next(p for p in (pathlib.Path(d) / tool for d in ("/usr/bin", "/bin")) if p.exists())
                (folder / tool).symlink_to(path)
            self.script(folder / "nvidia-smi", f"exit {0 if gpu else 9}")
            if nvcc_release:
                self.script(folder / "nvcc", f'echo "Cuda compilation tools, release {nvcc_release}, V{nvcc_release}.9"')
            env = {name: value for name, value in os.environ.items() if name != "CUDACXX"} | {"PATH": str(folder)}
            done = subprocess.run([ROOT / "scripts" / "demo_preset.sh"], env=env, text=True, capture_output=True, check=True)
        return done.stdout.strip(), done.stderr

    def script(self, path, body):
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def test_without_a_gpu(self):
        if glob.glob("/dev/nvidia[0-9]*"):
            self.skipTest("this machine has a GPU")
        self.assertEqual(self.preset(gpu=False, nvcc_release="13.0"), ("cpu", ""))

    def test_gpu_and_nvcc(self):
        for release in ("12.8", "12.10", "13.0"):
            self.assertEqual(self.preset(nvcc_release=release), ("demo", ""))

    def test_gpu_without_nvcc_or_with_an_old_one(self):
        preset, message = self.preset()
        self.assertEqual(preset, "cpu")
        self.assertIn("nvcc (of the CUDA toolkit, 12.8 or newer) is missing: the CPU is used", message)
        preset, message = self.preset(nvcc_release="12.4")
        self.assertEqual(preset, "cpu")
        self.assertIn("nvcc is release 12.4, older than 12.8: the CPU is used", message)


if __name__ == "__main__":
    unittest.main()
