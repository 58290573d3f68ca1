"""tessera.Classifier on the shipped model, and tessera.route."""
import pathlib
import shutil
import tempfile
import unittest

import numpy
import tessera

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "models" / "movie-reviews"
POSITIVE = ("A wonderful, moving film with superb acting.", "I loved every minute of this brilliant movie!")
NEGATIVE = ("A terrible, boring mess; a waste of time.", "Dull, badly written and awful from start to finish.")


class Reviews(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tessera.Classifier(MODEL, device="cpu")

    def test_clear_sentences(self):
        for label, texts in (("positive", POSITIVE), ("negative", NEGATIVE)):
            for text in texts:
                prediction = self.model(text)
                self.assertIsInstance(prediction, tessera.Prediction)
                self.assertEqual(prediction.label, label, text)
                self.assertGreater(prediction.score, 0.9)

    def test_negated_sentences(self):
        for label, texts in (("positive", ("It isn't bad.", "I was never bored.", "Not a dull scene in it.")),
                             ("negative", ("Not good.", "It isn't funny.", "I can't recommend it."))):
            self.assertEqual([prediction.label for prediction in self.model(texts)], [label] * len(texts), texts)

    def test_one_text_and_many(self):
        texts = [*POSITIVE, *NEGATIVE]
        many = self.model(texts)
        self.assertEqual(many, [self.model(text) for text in texts])
        self.assertEqual(self.model(tuple(texts)), many)
        self.assertEqual(self.model([]), [])

    def test_probabilities(self):
        self.assertEqual(self.model("").label, "empty")
        for prediction in self.model([*POSITIVE, *NEGATIVE]):
            self.assertAlmostEqual(sum(prediction.probabilities), 1, places=12)
            self.assertEqual(prediction.score, max(prediction.probabilities))
            self.assertEqual(prediction.label, self.model.class_names[numpy.argmax(prediction.probabilities)])

    def test_sizes_and_names(self):
        model = self.model
        self.assertEqual(model.class_names, ("negative", "positive"))
        self.assertEqual(model.num_classes, 2)
        for name in ("vocab_size", "sequence_length", "embedding_size", "num_experts"):
            self.assertGreater(getattr(model, name), 0, name)
        self.assertIn("CPU", model.description)

    def test_labelled_reviews(self):
        lines = (ROOT / "examples" / "data" / "reviews.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [line.split("\t") for line in lines]
        predictions = self.model([text for _, text in pairs])
        right = sum(prediction.label == label for prediction, (label, _) in zip(predictions, pairs))
        self.assertGreater(right, 0.8 * len(pairs))

    def test_ids_and_texts_agree(self):
        texts = [*POSITIVE, *NEGATIVE, "naïve café 🎬 and a film"]
        ids = self.model.tokenize(texts)
        self.assertEqual((ids.dtype, ids.shape), (numpy.dtype(numpy.int32), (5, self.model.sequence_length)))
        self.assertTrue(((ids >= 0) & (ids < self.model.vocab_size)).all())
        logits = self.model.logits(ids)
        self.assertEqual((logits.dtype, logits.shape), (numpy.dtype(numpy.float32), (5, 2)))
        scores = numpy.exp(logits[:, 1].astype(float)) / numpy.exp(logits.astype(float)).sum(axis=1)
        self.assertTrue(numpy.allclose(scores, [p.probabilities[1] for p in self.model(texts)]))
        self.assertTrue(numpy.array_equal(self.model.logits(ids[1:2])[0], logits[1]))

    def test_the_oracle_agrees(self):
        ids = self.model.tokenize([*POSITIVE, *NEGATIVE])
        oracle = tessera.Classifier(MODEL, device="cpu", precision="fp64").logits(ids)
        self.assertTrue((abs(self.model.logits(ids) - oracle) <= 1e-3 * numpy.maximum(1, abs(oracle))).all())

    def test_embeddings(self):
        model = tessera.Classifier(str(MODEL), device="cpu", input="embeddings", num_threads=1)
        shape = model.embedding_size, model.sequence_length
        numbers = numpy.random.default_rng(3).standard_normal((3, *shape)).astype(numpy.float32)
        logits = model.logits(numbers)
        self.assertTrue(numpy.isfinite(logits).all())
        self.assertTrue(numpy.array_equal(model.logits(numbers[2:])[0], logits[2]))
        numbers[1, 0, 0] = numpy.nan
        with self.assertRaisesRegex(ValueError, r"embeddings\[1\]"):
            model.logits(numbers)
        with self.assertRaisesRegex(ValueError, "texts"):
            model("a text")


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = tessera.Classifier(MODEL, device="cpu")

    def refused(self, kind, pattern, call, /, *arguments, **named):
        with self.assertRaisesRegex(kind, pattern) as raised:
            call(*arguments, **named)
        self.assertIs(type(raised.exception), kind)

    def test_texts(self):
        self.refused(TypeError, "^texts: ", self.model, 3)
        self.refused(TypeError, "^texts: ", self.model, b"bytes")
        self.refused(TypeError, "^texts: ", self.model, None)
        self.refused(TypeError, r"^texts\[1\]: ", self.model, ["a", 2])
        self.refused(TypeError, "^texts: ", self.model.tokenize, "one text")
        self.refused(ValueError, r"^texts\[1\]: ", self.model, ["a", "half \ud83d"])

    def test_ids(self):
        length = self.model.sequence_length
        ids = numpy.zeros((3, length), numpy.int32)
        self.refused(TypeError, "^ids: ", self.model.logits, ids.tolist())
        self.refused(TypeError, "^ids: ", self.model.logits, ids.astype(numpy.int64))
        self.refused(TypeError, "^ids: ", self.model.logits, numpy.ma.masked_array(ids))
        self.refused(ValueError, "^ids: ", self.model.logits, ids[:, :-1].copy())
        self.refused(ValueError, "^ids: ", self.model.logits, ids[0])
        self.refused(BufferError, "^ids: ", self.model.logits, numpy.zeros((3, 2 * length), numpy.int32)[:, ::2])
        for bad in (-1, self.model.vocab_size, 2**31 - 1):
            ids[2, 1] = bad
            self.refused(ValueError, r"^ids\[2\]: .*vocabulary", self.model.logits, ids)
        self.assertEqual(self.model.logits(ids[:0]).shape, (0, 2))

    def test_options(self):
        make = tessera.Classifier
        self.refused(TypeError, "^path: ", make, 7)
        self.refused(ValueError, "^device: ", make, MODEL, device="tpu")
        self.refused(ValueError, "^device: ", make, MODEL, device="cuda:-1")
        self.refused(TypeError, "^device: ", make, MODEL, device=0)
        self.refused(ValueError, "^precision: ", make, MODEL, device="cpu", precision="fp8")
        self.refused(ValueError, "^precision: ", make, MODEL, device="cpu", precision="fp16")
        self.refused(ValueError, "^input: ", make, MODEL, device="cpu", input="text")
        self.refused(ValueError, "^form: ", make, MODEL, device="cpu", form="dft")
        self.refused(TypeError, "^form: ", make, MODEL, device="cpu", form=None)
        self.refused(ValueError, "^micro_batch: ", make, MODEL, device="cpu", micro_batch=-1)
        self.refused(ValueError, "^micro_batch: ", make, MODEL, device="cpu", micro_batch=8)
        self.refused(TypeError, "^num_threads: ", make, MODEL, device="cpu", num_threads=1.0)
        self.refused(ValueError, "^expert_threshold: ", make, MODEL, device="cpu", expert_threshold=-0.5)
        self.refused(ValueError, "^expert_threshold: ", make, MODEL, device="cpu", expert_threshold=0.5)
        self.refused(ValueError, "^expert_threshold: ", make, MODEL, device="cpu", expert_threshold=float("nan"))

    def test_files(self):
        with tempfile.TemporaryDirectory() as folder:
            self.refused(ValueError, "config.json", tessera.Classifier, folder, device="cpu")
            broken = pathlib.Path(folder) / "broken"
            shutil.copytree(MODEL, broken)
            (broken / "config.json").write_text("{")
            self.refused(ValueError, "config.json", tessera.Classifier, broken, device="cpu")
            shutil.copy(MODEL / "config.json", broken)
            weights = (broken / "model.safetensors").read_bytes()
            (broken / "model.safetensors").write_bytes(weights[:-1])
            self.refused(ValueError, "model.safetensors", tessera.Classifier, broken, device="cpu")


class Router(unittest.TestCase):
    def test_topk_softmax(self):
        logits = numpy.random.default_rng(4).standard_normal((50, 16)).astype(numpy.float32)
        for dtype in (numpy.float32, numpy.float16):
            numbers = logits.astype(dtype)
            ids, weights = tessera.route(numbers, 4)
            self.assertEqual((ids.dtype, weights.dtype), (numpy.dtype(numpy.int32), numpy.dtype(numpy.float32)))
            expected = numpy.argsort(-numbers.astype(float), axis=1, kind="stable")[:, :4]
            self.assertTrue(numpy.array_equal(ids, expected))
            chosen = numpy.exp(numpy.take_along_axis(numbers.astype(float), expected, axis=1))
            self.assertTrue(numpy.allclose(weights, chosen / chosen.sum(axis=1, keepdims=True), rtol=1e-5))

    def test_other_kinds(self):
        logits = numpy.random.default_rng(5).standard_normal((20, 8)).astype(numpy.float32)
        all_shares = numpy.exp(logits.astype(float)) / numpy.exp(logits.astype(float)).sum(axis=1, keepdims=True)
        ids, weights = tessera.route(logits, 2, kind="softmax_topk", scale=2.0)
        self.assertTrue(numpy.allclose(weights, 2 * numpy.take_along_axis(all_shares, ids.astype(int), axis=1), rtol=1e-5))
        bias = numpy.zeros(8, numpy.float32)
        bias[6] = 100
        ids, weights = tessera.route(logits, 2, kind="sigmoid_grouped", bias=bias, num_groups=2, topk_groups=1)
        self.assertTrue((ids[:, 0] == 6).all() and (ids >= 4).all())
        self.assertTrue(numpy.allclose(weights.sum(axis=1), 1, rtol=1e-5))

    def test_no_tokens(self):
        ids, weights = tessera.route(numpy.zeros((0, 8), numpy.float32), 2)
        self.assertEqual((ids.shape, weights.shape), ((0, 2), (0, 2)))

    def test_what_it_chooses_is_what_the_layer_takes(self):
        random = numpy.random.default_rng(6)
        ids, weights = tessera.route(random.standard_normal((5, 4)).astype(numpy.float32), 2)
        x, gate_up, down = (random.standard_normal(shape).astype(numpy.float32)
                            for shape in ((5, 16), (4, 16, 16), (4, 16, 8)))
        self.assertTrue(numpy.isfinite(tessera.moe(x, gate_up, down, ids, weights)).all())


if __name__ == "__main__":
    unittest.main()
