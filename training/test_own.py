"""One command from a labelled table of three made-up classes to a checkpoint that the command runs."""
import csv
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESSERA = pathlib.Path(os.environ.get("TESSERA_BIN") or ROOT / "build" / "test" / "tools" / "tessera" / "tessera")
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "safetensors"))
WORDS = {"sport": "match goal team coach league striker referee score".split(),
         "kitchen": "oven butter recipe flour simmer onion garlic whisk".split(),
         "weather, sea": "storm rain tide wind cloud forecast gale thunder".split()}
FRAMES = ("the {} and the {} again", "we saw a {} near the {}", "no {} without {} , they said", "so much {} , so little {}",
          "{} first , then {}")


def sentence(random_, name):
    return random_.choice(FRAMES).format(*random_.sample(WORDS[name], 2))


@unittest.skipUnless(HAS_TORCH, "torch and safetensors are not installed (training/requirements.txt)")
class OwnLabels(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, name, rows, columns=("id", "body", "topic")):
        path = self.folder / name
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        return path

    def train(self, path, *arguments):
        return subprocess.run([sys.executable, ROOT / "training" / "own.py", "--input", path, "--text-column", "body",
                               "--label-column", "topic", "--output", self.folder / "model", "--device", "cpu", *arguments],
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # small products: threads cost more than they do

    def test_three_classes(self):
        random_ = random.Random(5)
        rows = [(i, sentence(random_, name), name) for i in range(60) for name in WORDS] + [(999, "", "sport")]
        done = self.train(self.write("in.csv", rows))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1 of 181 rows have no text or no label", done.stderr)
        result = json.loads(done.stdout)
        self.assertEqual(result["classes"], sorted(WORDS))
        self.assertGreater(result["accuracy_percent"], 90)
        self.assertLess(result["largest_class_percent"], 40)
        if not TESSERA.exists():
            self.skipTest(f"{TESSERA} is not built: the checkpoint was written and not run")
        new = [(i, sentence(random_, name), name) for i in range(50) for name in WORDS]
        labelled = subprocess.run([TESSERA, "classify", "-q", "-m", self.folder / "model", "-i", self.write("new.csv", new),
                                   "--field", "body", "--keep", "topic", "--probabilities", "--output-format", "csv"],
                                  text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines()
        table = list(csv.DictReader(labelled))
        self.assertEqual([name for name in table[0] if name.startswith("probability_")],
                         [f"probability_{name}" for name in sorted(WORDS)])
        self.assertGreater(sum(row["label"] == row["topic"] for row in table), 135)

    def test_wrong_tables(self):
        good = [(i, "a goal", "sport") for i in range(5)]
        for rows, arguments, part in ((good, (), "got 1 classes in column 'topic'"),
                                      ([*good, (9, "rain", "weather")], (), "one row of class 'weather'"),
                                      (good, ("--label-column", "label"), "got columns 'id', 'body', 'topic'"),
                                      (good, ("--held-out", "1"), "--held-out: got 1.0")):
            done = self.train(self.write("in.csv", rows), *arguments)
            self.assertEqual(done.returncode, 1)
            self.assertIn("own.py: error: ", done.stderr)
            self.assertIn(part, done.stderr)
            self.assertFalse((self.folder / "model").exists())


if __name__ == "__main__":
    unittest.main()
