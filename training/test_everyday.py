"""Everyday sentences are made from patterns that are whole, and none that is near to a judged one gets through."""

import pathlib
import re
import unittest

import everyday
from tokenizer import tokenize

FOLDER = pathlib.Path(__file__).resolve().parent
REVIEWS = FOLDER.parent / "examples" / "data" / "reviews.tsv"


def sentences_of(path):
    return [tokenize(line.split("\t", 1)[1]) for line in path.read_text("utf-8").splitlines()]


class Patterns(unittest.TestCase):
    def test_every_slot_has_words_and_every_list_is_used(self):
        words, patterns = everyday.parse()
        self.assertGreater(len(patterns), 700)
        texts = [pattern for _, pattern in patterns] + [word for each in words.values() for word in each]
        slots = {slot for text in texts for slot in re.findall(r"\{(\w+)\}", text)}
        self.assertEqual(slots, set(words))
        self.assertTrue(all(word for each in words.values() for word in each))

    def test_a_seed_makes_the_same_sentences_and_fills_them(self):
        made = everyday.sentences(300, 5)
        self.assertEqual(made, everyday.sentences(300, 5))
        self.assertNotEqual(made, everyday.sentences(300, 6))
        for text, probability in made:
            self.assertNotIn("{", text)
            self.assertTrue(0 < probability < 1, text)


class Leaks(unittest.TestCase):
    JUDGED = [tokenize("The animation is stunning and the story is just as good."), tokenize("It put me to sleep.")]

    def test_copies_and_near_copies_are_found(self):
        copies = ["the animation is stunning and the story is just as good !", "i say the story is just as good as ever",
                  "it put me right to sleep", "the story is good and the animation is just as stunning"]
        self.assertEqual(everyday.leaks([tokenize(text) for text in copies], self.JUDGED), [0, 1, 2, 3])

    def test_other_sentences_pass(self):
        others = ["the animation is poor", "it sent me to bed smiling", "good"]
        self.assertEqual(everyday.leaks([tokenize(text) for text in others], self.JUDGED), [])

    def test_the_held_out_sentences_are_not_the_judged_ones(self):
        held = sentences_of(FOLDER / "everyday_held_out.tsv")
        self.assertEqual(len(held), 120)
        self.assertEqual(everyday.leaks(held, sentences_of(REVIEWS)), [])


if __name__ == "__main__":
    unittest.main()
