"""The judges of whole models in engines: what is a tie, and what is a wrong token."""
import pathlib
import sys
import unittest

ENGINES = pathlib.Path(__file__).resolve().parents[2] / "bench" / "engines"


class Tokens(unittest.TestCase):
    """[[token, {token: log-probability}] a position] of one request."""

    @classmethod
    def setUpClass(cls):
        sys.path.insert(0, str(ENGINES))
        cls.addClassCleanup(sys.path.remove, str(ENGINES))
        import vllm_h200
        cls.judge = vllm_h200

    def setUp(self):
        self.same = [[5, {"5": -1.0, "6": -1.1, "7": -4.0}]] * 3

    def compare(self, ours, theirs):
        return self.judge.compare([ours], [theirs])

    def test_equal(self):
        found = self.compare(self.same, self.same)
        self.assertEqual((found["before_difference"], found["ties"], found["checked"]), (3, 0, True))

    def test_a_tie_ends_the_comparison(self):
        other = [self.same[0], [6, self.same[0][1]], [9, {"9": 0.0}]]  # behind it the contexts differ
        found = self.compare(self.same, other)
        self.assertEqual((found["before_difference"], found["ties"], found["largest_tie"], found["checked"]), (1, 1, 0.1, True))

    def test_no_tie(self):
        far = [self.same[0], [7, self.same[0][1]], self.same[0]]
        found = self.compare(self.same, far)
        self.assertEqual((found["ties"], found["checked"]), (0, False))
        self.assertEqual(found["no_ties"], [[0, 1, 3.0, 3.0]])

    def test_a_tie_must_be_one_on_both_sides(self):
        sure = [self.same[0], [6, {"5": -3.0, "6": -0.1}], self.same[0]]
        self.assertFalse(self.compare(self.same, sure)["checked"])

    def test_a_token_that_the_other_side_does_not_know(self):
        strange = [[9, {"9": -1.0, "5": -1.0}], *self.same[:2]]
        self.assertFalse(self.compare(self.same, strange)["checked"])

    def test_a_difference_of_the_same_token_is_told(self):
        shifted = [[5, {"5": -1.5, "6": -1.6}], *self.same[:2]]
        self.assertEqual(self.compare(self.same, shifted)["largest_difference"], 0.5)


if __name__ == "__main__":
    unittest.main()
