"""The encoder over a small made-up model: padding does not matter, it learns, and words come back in the order they were given."""

import importlib.util
import unittest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("safetensors") is None:
    raise unittest.SkipTest("torch and safetensors are not installed (training/requirements.txt)")

import torch

import encoder
import pool
import unpack_encoder

CONFIG = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 30,
          "max_position_embeddings": 40, "relative_attention_num_buckets": 8, "layer_norm_eps": 1e-5}


class Letters:
    """A tokenizer of one letter a token, in the shape of the real one."""

    class Encoding:
        def __init__(self, ids):
            self.ids = ids

    def encode_batch(self, texts):
        return [self.Encoding([2 + ord(c) - ord("a") for c in text if c.isalpha()]) for text in texts]


def small(seed=0):
    torch.manual_seed(seed)
    return encoder.Encoder(CONFIG, Letters())


class Teacher(unittest.TestCase):
    def test_padding_changes_nothing_and_order_is_kept(self):
        model, texts = small(), ["abcdef", "z", "zy", "fedcba", "q"]
        together = encoder.apply(model, encoder.like_length(model.encode(texts), 5), model)
        alone = torch.cat([encoder.apply(model, encoder.like_length(model.encode([text])), model) for text in texts])
        torch.testing.assert_close(together, alone)
        self.assertGreater((together[0] - together[3]).abs().item(), 1e-4)

    def test_it_learns(self):
        model, generator = small(), torch.Generator().manual_seed(1)
        texts = [first + second for first in "abcdefgh" for second in "uvwxyz"]
        targets = [float(text[0] < "e") for text in texts]
        encoder.fine_tune(model, model.encode(texts), targets, 30, generator, learning_rate=3e-3, batch_size=8, log=lambda line: None)
        logits = encoder.apply(model, encoder.like_length(model.encode(texts)), model)
        self.assertTrue(((logits > 0) == torch.tensor(targets).bool()).all())

    def test_distances_have_a_side_and_far_ones_share(self):
        bucket = encoder.distance_buckets(200, 32, "cpu")
        self.assertEqual(bucket[5, 5], 0)
        self.assertEqual((bucket[5, 2], bucket[2, 5]), (3, 19))
        self.assertEqual(bucket[199, 0], 15)
        self.assertEqual(bucket[150, 0], bucket[140, 0])


class Text(unittest.TestCase):
    def test_written_as_a_person_would(self):
        tokens = ["it", "wasn", "'", "t", "bad", ",", "(", "really", ")", "!"]
        self.assertEqual(pool.written(tokens), "it wasn't bad, (really)!")


class FourBits(unittest.TestCase):
    def test_few_levels_and_a_small_error(self):
        weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(3))
        rounded = unpack_encoder.round_to_four_bits(weight)
        self.assertTrue(all(len(group.unique()) <= 16 for group in rounded.reshape(-1, 64)))
        error = ((rounded - weight).norm() / weight.norm()).item()
        self.assertTrue(0.01 < error < 0.12, error)


if __name__ == "__main__":
    unittest.main()
