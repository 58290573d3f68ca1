"""The shipped model: its card's accuracy, and the agreement of the C++ tokenizer with its Python twin on real sentences."""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TESSERA = os.environ["TESSERA_BIN"]
SHARED = pathlib.Path(os.environ.get("TESSERA_SHARED", ROOT.parent / "shared"))
MODEL = ROOT / "models" / "movie-reviews"
REVIEWS = ROOT / "examples" / "data" / "reviews.tsv"

sys.path.insert(0, str(ROOT / "training"))
import tokenizer  # noqa: E402  (found through the line above)


def accuracy(path, text_column, label_column):
    """(correct, sentences) as `tessera evaluate` counts them."""
    done = subprocess.run([TESSERA, "evaluate", "--model", MODEL, "--input", path, "--text-column", str(text_column),
                           "--label-column", str(label_column)], text=True, capture_output=True, check=True)
    correct, sentences = re.search(r"\((\d+) of (\d+)\)", done.stdout).groups()
    return int(correct), int(sentences)


class ShippedModel(unittest.TestCase):
    def setUp(self):
        self.card = json.loads((ROOT / "bench" / "results" / "movie_reviews_accuracy.json").read_text())

    def test_development_accuracy_is_the_cards(self):
        dev = SHARED / "data" / "sst2" / "dev.tsv"
        if not dev.exists():
            self.skipTest("the development sentences are not part of the repository; put them beside it to check")
        self.assertEqual(accuracy(dev, 1, 2), (self.card["correct"], self.card["sentences"]))

    def test_demo_accuracy_is_the_cards(self):
        correct, sentences = accuracy(REVIEWS, 2, 1)
        self.assertAlmostEqual(100 * correct / sentences, self.card["demo_accuracy_percent"], places=2)

    def test_folder_is_small(self):
        self.assertLess(sum(f.stat().st_size for f in MODEL.iterdir()), 8 << 20)


class TokenizerTwin(unittest.TestCase):
    """Sentences split by the Python twin, joined by blanks, must get the logits of the raw sentence."""

    def logits(self, lines):
        with tempfile.TemporaryDirectory() as folder:
            source, output = pathlib.Path(folder) / "in.txt", pathlib.Path(folder) / "out.bin"
            source.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            subprocess.run([TESSERA, "classify", "--quiet", "--model", MODEL, "--input", source, "--output", output],
                           check=True)
            data = output.read_bytes()
        return [data[8 * i:8 * i + 8] for i in range(len(lines))]

    def setUp(self):
        self.sentences = [line.split("\t")[1] for line in REVIEWS.read_text(encoding="utf-8").splitlines()]

    def test_same_words_on_every_demo_sentence(self):
        split = [" ".join(tokenizer.tokenize(sentence, "reviews")) for sentence in self.sentences]
        self.assertEqual(self.logits(self.sentences), self.logits(split))

    def test_a_planted_difference_is_seen(self):
        split = [" ".join(tokenizer.tokenize(sentence, "reviews")[1:]) for sentence in self.sentences]
        differing = sum(a != b for a, b in zip(self.logits(self.sentences), self.logits(split)))
        self.assertGreater(differing, len(self.sentences) // 2)


if __name__ == "__main__":
    unittest.main()
