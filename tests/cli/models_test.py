"""tessera synth and tessera convert: models from a seed, and the school's format there and back."""
import json
import math
import struct
import unittest

from cli_support import CliTest, SHARED, floats, tessera


class SynthTest(CliTest):
    def synth(self, name, *arguments):
        result = tessera("synth", "--output", self.folder / name, *arguments)
        self.assert_code(result, 0)
        return self.folder / name

    def files_of(self, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_same_seed_same_bytes_whatever_the_threads(self):
        options = ("--preset", "small", "--inputs", 20, "--embeddings")
        first = self.files_of(self.synth("a", *options, "--seed", 5, "--threads", 1))
        self.assertEqual(sorted(first), ["config.json", "input_embeddings.bin", "inputs.bin", "inputs.txt",
                                         "model.safetensors", "vocab.txt"])
        self.assertEqual(self.files_of(self.synth("b", *options, "--seed", 5, "--threads", 2)), first)
        other = self.files_of(self.synth("c", *options, "--seed", 6))
        self.assertEqual(sorted(name for name in first if other[name] == first[name]), ["config.json", "vocab.txt"])

    def test_logits_have_the_mean_and_deviation_of_a_trained_model(self):
        for seed in (1, 2):
            model = self.synth(f"m{seed}", "--preset", "small", "--inputs", 4000, "--seed", seed)
            logits = floats(self.classify("--input", model / "inputs.bin", "--format", "ids", "--output-format", "bin",
                                          model=model).out_bytes)
            mean = sum(logits) / len(logits)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in logits) / len(logits))
            self.assertAlmostEqual(mean, 1.8, delta=0.25)
            self.assertAlmostEqual(deviation, 1.1, delta=0.25)

    def test_dtypes(self):
        sizes = {}
        for dtype in ("f32", "f16", "bf16"):
            model = self.synth(dtype, "--preset", "small", "--dtype", dtype, "--inputs", 10)
            sizes[dtype] = (model / "model.safetensors").stat().st_size
            self.assert_code(self.classify("--input", model / "inputs.bin", "--format", "ids", model=model), 0)
        self.assertLess(sizes["f16"], 0.75 * sizes["f32"])
        self.assertEqual(sizes["f16"] // 64, sizes["bf16"] // 64)

    def test_own_sizes_and_words(self):
        words = ["<unk>", "<pad>"] + [f"w{i}" for i in range(40)]
        vocabulary = self.write("words.txt", "\n".join(words) + "\n")
        sizes = json.loads((self.model / "config.json").read_text()) | {"filter_widths": [1, 16], "num_experts": 5}
        config = self.write("sizes.json", json.dumps(sizes))
        model = self.synth("m", "--config", config, "--vocab", vocabulary, "--inputs", 50)
        self.assertEqual((model / "vocab.txt").read_text(), vocabulary.read_text())
        made = json.loads((model / "config.json").read_text())
        self.assertEqual((made["vocab_size"], made["num_experts"], made["filter_widths"]), (42, 5, [1, 16]))
        self.assertLessEqual(set((model / "inputs.txt").read_text().split()), set(words))
        self.assert_code(self.classify("--input", model / "inputs.txt", model=model), 0)

    def test_errors(self):
        out = ("--output", self.folder / "m")
        self.assert_error(tessera("synth", *out), 2, "neither --preset nor --config")
        self.assert_error(tessera("synth", *out, "--preset", "huge"), 2, "'huge'", "apws25")
        self.assert_error(tessera("synth", *out, "--preset", "small", "--dtype", "f8"), 2, "'f8'", "f32, f16 or bf16")
        self.assert_error(tessera("synth", *out, "--preset", "small", "--embeddings"), 2, "--inputs")
        self.assert_error(tessera("synth", *out, "--preset", "small", "--seed", "-1"), 2, "--seed")
        self.assert_error(tessera("synth", "--preset", "small"), 2, "--output")
        wide = json.loads((self.model / "config.json").read_text()) | {"sequence_length": 4}
        self.assert_error(tessera("synth", *out, "--config", self.write("wide.json", json.dumps(wide))), 2, "wide.json")
        self.assert_error(tessera("synth", "--preset", "small", "--output", self.write("file", "") / "m"), 2, "file/m")


class ConvertTest(CliTest):
    def setUp(self):
        super().setUp()
        self.school = self.folder / "school"
        self.assert_code(tessera("convert", "--model", self.model, "--to-school", self.school), 0)

    def back(self, *arguments, params=None):
        return tessera("convert", "--params", params or self.school / "params.bin", "--config",
                       self.model / "config.json", "--output", self.folder / "back", *arguments)

    def test_there_and_back_is_the_same_checkpoint(self):
        result = self.back("--embedding", self.school / "embedding.bin", "--vocab", self.school / "vocab.txt")
        self.assert_code(result, 0)
        for name in ("config.json", "vocab.txt", "model.safetensors"):
            self.assertEqual((self.folder / "back" / name).read_bytes(), (self.model / name).read_bytes(), name)

    def test_sizes_of_the_files(self):
        c = json.loads((self.model / "config.json").read_text())
        features = c["num_filters"] * len(c["filter_widths"])
        count = sum(c["num_filters"] * (c["embedding_size"] * width + 1) for width in c["filter_widths"])
        count += c["num_experts"] * c["expert_size"] * (features + 1) + c["num_experts"] * (features + 1)
        sizes = [c["expert_size"], *c["head_sizes"], c["num_classes"]]
        count += sum(out * (into + 1) for into, out in zip(sizes, sizes[1:]))
        self.assertEqual((self.school / "params.bin").stat().st_size, 4 * count)
        self.assertEqual((self.school / "embedding.bin").stat().st_size, 4 * c["vocab_size"] * c["embedding_size"])

    def test_without_an_embedding_table_only_embeddings_go_in(self):
        self.assert_code(self.back(), 0)
        model = self.folder / "back"
        expected = self.classify("--input", self.embeddings, "--format", "embeddings", "--output-format", "bin")
        result = self.classify("--input", self.embeddings, "--format", "embeddings", "--output-format", "bin",
                               model=model)
        self.assertEqual(result.out_bytes, expected.out_bytes)
        self.assert_error(self.classify("--input", self.ids, "--format", "ids", model=model), 2, "embedding.weight")

    def test_embeddings_of_ids(self):
        out = self.folder / "e.bin"
        self.assert_code(tessera("convert", "--model", self.model, "--ids", self.ids, "--to-embeddings", out), 0)
        self.assertEqual(out.read_bytes(), self.embeddings.read_bytes())
        table = floats((self.school / "embedding.bin").read_bytes())
        ids = struct.unpack(f"<{self.sequence_length}i", self.ids.read_bytes()[:4 * self.sequence_length])
        values = floats(out.read_bytes())
        for channel in range(8):
            for position, word in enumerate(ids):
                self.assertEqual(values[channel * self.sequence_length + position], table[8 * word + channel])

    def test_a_bad_id_is_named_and_nothing_is_written(self):
        ids = bytearray(self.ids.read_bytes())
        struct.pack_into("<i", ids, 4 * (9 * self.sequence_length + 2), 100)
        path = self.write("ids.bin", bytes(ids))
        result = tessera("convert", "--model", self.model, "--ids", path, "--to-embeddings", self.folder / "e.bin")
        self.assert_error(result, 2, "ids.bin: record 9, position 2: got token id 100, expected an id in [0, 100)")
        self.assert_nothing_left("ids.bin", "school")

    def test_files_of_wrong_sizes(self):
        whole = (self.school / "params.bin").read_bytes()
        for content in (whole[:-1], whole[:-4], whole + b"\0\0\0\0", b""):
            result = self.back(params=self.write("params.bin", content))
            self.assert_error(result, 2, "params.bin", f"got {len(content)} bytes", f"expected {len(whole)} bytes")
        table = self.write("embedding.bin", (self.school / "embedding.bin").read_bytes()[:-4])
        self.assert_error(self.back("--embedding", table), 2, "embedding.bin", "the embedding table")
        vocabulary = self.write("vocab.txt", "<unk>\n<pad>\nbaba\n")
        self.assert_error(self.back("--vocab", vocabulary), 2, "vocab.txt", "3 words", "100 words")
        self.assertFalse((self.folder / "back").exists())

    def test_full_size_parameters_are_checked_to_the_byte(self):
        result = tessera("convert", "--params", self.school / "params.bin", "--preset", "apws25", "--output",
                         self.folder / "back")
        self.assert_error(result, 2, "expected 547481624 bytes")

    def test_weights_that_are_not_finite(self):
        content = bytearray((self.school / "params.bin").read_bytes())
        struct.pack_into("<f", content, 8, math.nan)
        result = self.back(params=self.write("params.bin", bytes(content)))
        self.assert_error(result, 2, "params.bin: offset 8", "'conv.0.weight' element 2", "nan", "a finite number")

    def test_combinations_of_options(self):
        for arguments in ([], ["--params", "p"], ["--params", "p", "--output", "o"], ["--model", self.model],
                          ["--model", self.model, "--to-embeddings", "e"],
                          ["--model", self.model, "--params", "p", "--to-school", "s"],
                          ["--params", "p", "--output", "o", "--preset", "small", "--config", "c"]):
            with self.subTest(arguments=arguments):
                self.assert_error(tessera("convert", *arguments), 2)

    def test_options_that_would_have_no_effect(self):
        from_checkpoint = ["--model", self.model, "--to-school", self.folder / "s"]
        for option, value in (("--dtype", "f16"), ("--preset", "small"), ("--config", "c"), ("--output", "o"),
                              ("--embedding", "e"), ("--vocab", "v")):
            self.assert_error(tessera("convert", *from_checkpoint, option, value), 2, f"{option}: got --model",
                              "expected --params FILE with it")
        self.assert_error(tessera("convert", *from_checkpoint, "--ids", self.ids), 2, "--ids: got no --to-embeddings")
        self.assert_error(tessera("convert", "--params", "p", "--output", "o", "--preset", "small", "--ids", self.ids),
                          2, "--ids: got --params")
        self.assert_nothing_left("school")


class FullSizeDataTest(CliTest):
    def test_the_real_token_ids_fit_the_preset(self):
        data = SHARED / "data" / "apws25"
        if not data.exists():
            self.skipTest("the school's data is not part of the repository")
        words = (data / "vocab.txt").read_text(encoding="utf-8").splitlines()
        sizes = json.loads((self.model / "config.json").read_text()) | {"vocab_size": len(words)}
        config = self.write("sizes.json", json.dumps(sizes))
        made = tessera("synth", "--config", config, "--vocab", data / "vocab.txt", "--output", self.folder / "m")
        self.assert_code(made, 0)
        result = self.classify("--input", data / "inputs.bin", "--format", "ids", "--output-format", "bin",
                               model=self.folder / "m")
        self.assert_code(result, 0)
        self.assertEqual(len(result.out_bytes), (data / "answers.bin").stat().st_size)


if __name__ == "__main__":
    unittest.main()
