"""Layers loaded from checkpoints of every family and format: the same bits as layers of the same arrays, and a corpus of
broken checkpoints, each refused by file and tensor."""
import ctypes
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import checkpoint_support as support
import numpy
import tessera
from checkpoint_support import EXPERTS, FAMILIES, HIDDEN, TOP_K, WIDTH, Checkpoint

TOKENS = 13


def inputs(first=0, count=EXPERTS, seed=5):
    random = numpy.random.default_rng(seed)
    ids = random.permuted(numpy.tile(numpy.arange(first, first + count), (TOKENS, 1)), axis=1)[:, :TOP_K].copy()
    return random.standard_normal((TOKENS, HIDDEN)).astype(numpy.float32), ids, random.random((TOKENS, TOP_K), numpy.float32)


def layer_of(made, gpt_oss=False, **options):
    """A layer of the arrays that a checkpoint was made of, in float32 or e4m3."""
    arrays = {name: numpy.ascontiguousarray(array if array.dtype == numpy.uint8 else array.astype(numpy.float32))
              for name, array in made.items() if isinstance(array, numpy.ndarray)}
    if "gate_up_scale" in arrays:
        options.setdefault("weight_format", "fp8-block")
        options["scale_offsets"] = made.get("scale_offsets", (0, 0, 0))
    if gpt_oss:
        options.update(activation="clamped_swiglu", alpha=1.702, beta=1.0, limit=7.0, gate_up_order="interleaved")
    return tessera.MoELayer(**arrays, top_k=TOP_K, dtype="float32", **options)


def reference(made, x, ids, weights, gpt_oss=False):
    """The layer in float64."""
    out = numpy.zeros((TOKENS, HIDDEN))

    def expert(row, gate_up, down, gate_up_bias=0.0, down_bias=0.0):
        h = gate_up @ row + gate_up_bias
        if gpt_oss:
            gate, up = numpy.minimum(h[0::2], 7.0), numpy.clip(h[1::2], -7.0, 7.0)
            act = (up + 1) * gate / (1 + numpy.exp(-1.702 * gate))
        else:
            gate, up = h[:len(h) // 2], h[len(h) // 2:]
            act = gate / (1 + numpy.exp(-gate)) * up
        return down @ act + down_bias

    for token, slot in numpy.ndindex(TOKENS, TOP_K):
        names = ("gate_up", "down", "gate_up_bias", "down_bias")
        arrays = {name: made[name][ids[token, slot]] for name in names if name in made}
        out[token] += weights[token, slot] * expert(x[token].astype(numpy.float64), **arrays)
    if "shared_gate_up" in made:
        for token in range(TOKENS):
            out[token] += expert(x[token].astype(numpy.float64), made["shared_gate_up"], made["shared_down"])
    return out


class Folders(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name) / "model"


class Layouts(Folders):
    def check(self, made, layer=1, **options):
        """Loaded, it computes what a layer of the same arrays does, to the bit."""
        gpt_oss = made.family == "gpt_oss"
        loaded = tessera.load_layer(made.write(), layer=layer, dtype="float32", **options)
        arguments = inputs()
        numpy.testing.assert_array_equal(loaded(*arguments), layer_of(made.layers[layer], gpt_oss)(*arguments))
        return loaded, arguments

    def test_dense_tensors_of_every_family(self):
        for family in FAMILIES:
            for form, num_files in (("BF16", 1), ("F32", 3), ("F16", 2)):
                with self.subTest(family=family, form=form), tempfile.TemporaryDirectory() as folder:
                    made = Checkpoint(pathlib.Path(folder) / "model", family, form, num_files=num_files)
                    if form == "F16":  # the numbers that it holds
                        for tensor in made.tensors.values():
                            tensor.array = numpy.nan_to_num(tensor.array) if tensor.dtype == "F16" else tensor.array
                        for arrays in made.layers.values():
                            for name, array in arrays.items():
                                if "bias" not in name:
                                    arrays[name] = array.astype(numpy.float16).astype(numpy.float64)
                    loaded, arguments = self.check(made)
                    exact = reference(made.layers[1], *arguments, gpt_oss=family == "gpt_oss")
                    self.assertLess(numpy.abs(loaded(*arguments) - exact).max(), 1e-4 * numpy.abs(exact).max())
                    self.assertEqual(loaded.loaded.weight_format, "dense")

    def test_fused_tensors(self):
        for family in ("qwen3_moe", "mixtral", "deepseek_v3"):
            with self.subTest(family=family), tempfile.TemporaryDirectory() as folder:
                self.check(Checkpoint(pathlib.Path(folder) / "model", family, fused=True))

    def test_blocks_of_e4m3(self):
        for family in set(FAMILIES) - {"gpt_oss"}:
            for scale_type in ("F32", "BF16", "F8_E8M0"):
                with self.subTest(family=family, scales=scale_type), tempfile.TemporaryDirectory() as folder:
                    made = Checkpoint(pathlib.Path(folder) / "model", family, "fp8-block", scale_type=scale_type, num_files=2)
                    self.assertEqual(self.check(made)[0].loaded.weight_format, "fp8-block")

    def test_blocks_that_count_through_gate_and_up(self):
        self.assertNotEqual(WIDTH % 128, 0)
        self.check(Checkpoint(self.folder, form="fp8-block", fused=True))

    def test_rows_of_e4m3(self):
        for form, scale_type in itertools.product(("fp8-channel", "fp8-tensor"), ("F32", "F8_E8M0")):
            with self.subTest(form, scales=scale_type), tempfile.TemporaryDirectory() as folder:
                made = Checkpoint(pathlib.Path(folder) / "model", form=form, scale_type=scale_type)
                arrays = made.layers[1]
                gate_up, down = arrays["gate_up_scale"], arrays["down_scale"]
                arrays["gate_up_scale"] = numpy.broadcast_to(gate_up.reshape(EXPERTS, 2, -1), (EXPERTS, 2, WIDTH)).reshape(EXPERTS, -1)
                arrays["down_scale"] = numpy.broadcast_to(down.reshape(EXPERTS, -1), (EXPERTS, HIDDEN))
                loaded = tessera.load_layer(made.write(), layer=1, dtype="float32")
                arguments = inputs()
                expected = layer_of(arrays, weight_format="fp8-channel")(*arguments)
                numpy.testing.assert_array_equal(loaded(*arguments), expected)

    def test_mxfp4_becomes_blocks_of_e4m3_to_the_bit(self):
        made = Checkpoint(self.folder, "gpt_oss", "mxfp4", exponents=lambda shape: made_exponents(shape, 118, 132))
        loaded = tessera.load_layer(made.write(), layer=0)
        facts = loaded.loaded
        self.assertEqual(facts.weight_format, "fp8-block")
        blocks = EXPERTS * (2 * support.blocks(WIDTH) * support.blocks(HIDDEN) + support.blocks(HIDDEN) * support.blocks(WIDTH))
        self.assertEqual((facts.num_blocks, facts.num_exact_blocks), (blocks, blocks))
        for name, rows, columns in (("gate_up", 2 * WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)):
            codes, scales = array_of(loaded, name, numpy.uint8), array_of(loaded, f"{name}_scale", numpy.float32)
            values = support.e4m3_values()[codes]
            for row in range(rows):
                gate_or_up, block = (row % 2, row // 2 // 128) if name == "gate_up" else (None, row // 128)
                scale = scales[:, gate_or_up, block] if name == "gate_up" else scales[:, block]
                values[:, row] *= numpy.repeat(scale, 128, 1)[:, :columns]
            numpy.testing.assert_array_equal(values, made.layers[0][name])

    def test_mxfp4_whose_exponents_lie_too_far_apart_becomes_dense(self):
        made = Checkpoint(self.folder, "gpt_oss", "mxfp4", exponents=lambda shape: made_exponents(shape, 110, 127))
        loaded = tessera.load_layer(made.write(), layer=1, dtype="float32")
        self.assertEqual(loaded.loaded.weight_format, "dense")
        self.assertLess(loaded.loaded.num_exact_blocks, loaded.loaded.num_blocks)
        arguments = inputs()
        numpy.testing.assert_array_equal(loaded(*arguments), layer_of(made.layers[1], True)(*arguments))
        with self.assertRaisesRegex(ValueError, r"gate_up_proj_blocks': got \d+ of \d+ blocks whose numbers lie too far apart"):
            tessera.load_layer(made.folder, layer=1, weight_format="fp8-block")

    def test_mxfp4_is_judged_by_its_numbers_not_by_its_exponents(self):
        made = Checkpoint(self.folder, "gpt_oss", "mxfp4", exponents=lambda shape: made_exponents(shape, 120, 123))
        for name in ("gate_up", "down"):  # a group of zeros may have any exponent
            made.tensors[f"{made.prefix(0)}{name}_proj_blocks"].array[:, 0, 0] = 0
            made.tensors[f"{made.prefix(0)}{name}_proj_scales"].array[:, 0, 0] = 3
        facts = tessera.load_layer(made.write(), layer=0).loaded
        self.assertEqual((facts.weight_format, facts.num_exact_blocks), ("fp8-block", facts.num_blocks))

    def test_mxfp4_as_dense_where_it_is_asked_for(self):
        made = Checkpoint(self.folder, "gpt_oss", "mxfp4")
        loaded = tessera.load_layer(made.write(), layer=1, dtype="float32", weight_format="dense")
        arguments = inputs()
        numpy.testing.assert_array_equal(loaded(*arguments), layer_of(made.layers[1], True)(*arguments))

    def test_shards_add_up(self):
        for family in ("qwen3_moe", "deepseek_v3", "gpt_oss"):
            for num_shards in (2, 4):
                with self.subTest(family=family, of=num_shards), tempfile.TemporaryDirectory() as folder:
                    made = Checkpoint(pathlib.Path(folder) / "model", family, num_files=2)
                    path, arguments = made.write(), inputs()
                    parts = [tessera.load_layer(path, layer=1, shard=(i, num_shards), dtype="float32") for i in range(num_shards)]
                    self.assertEqual(sum(part.num_experts for part in parts), EXPERTS)
                    whole = tessera.load_layer(path, layer=1, dtype="float32")(*arguments)
                    numpy.testing.assert_allclose(sum(part(*arguments) for part in parts), whole, rtol=1e-4, atol=1e-5)

    def test_without_the_shared_expert(self):
        made = Checkpoint(self.folder, "qwen3_next")
        loaded = tessera.load_layer(made.write(), layer=0, shared_expert=False, dtype="float32")
        without = {name: array for name, array in made.layers[0].items() if "shared" not in name}
        arguments = inputs()
        numpy.testing.assert_array_equal(loaded(*arguments), layer_of(without)(*arguments))
        with self.assertRaisesRegex(ValueError, "shared_expert: got true, expected false"):
            tessera.load_layer(Checkpoint(self.folder.with_name("none")).write(), layer=0, shared_expert=True)

    def test_layers_that_predict_further_tokens(self):
        made = Checkpoint(self.folder, "glm4_moe", num_layers=3)
        made.config["num_hidden_layers"] = 2  # the third is the one behind
        self.check(made, layer=2)

    def test_progress_is_told(self):
        made, told = Checkpoint(self.folder), []
        loaded = tessera.load_layer(made.write(), layer=0, progress=lambda done, total: told.append((done, total)))
        self.assertEqual(told[-1], (loaded.loaded.read_bytes, loaded.loaded.read_bytes))
        self.assertEqual(told, sorted(told))

        def stop(done, total):
            raise KeyError("enough")

        with self.assertRaisesRegex(KeyError, "enough"):
            tessera.load_layer(made.folder, layer=0, progress=stop)


def made_exponents(shape, low, high):
    return numpy.random.default_rng(11).integers(low, high + 1, shape)


def array_of(layer, name, dtype):
    """A copy of what a loaded layer's array holds."""
    given = layer._views[name]
    text = ctypes.string_at(given.pointer, given.num_bytes)
    return numpy.frombuffer(text, dtype).reshape(given.shape)


class Memory(Folders):
    def test_no_more_than_the_weights_and_one_tensor(self):
        program = ("import resource, sys, tessera\n"
                   "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
                   "layer = tessera.load_layer(sys.argv[1], layer=0)\n"
                   "grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024\n"
                   "print(layer.loaded.weight_bytes, grown)")
        for family, form in (("qwen3_moe", "BF16"), ("gpt_oss", "BF16"), ("gpt_oss", "mxfp4")):
            with self.subTest(family=family, form=form), tempfile.TemporaryDirectory() as folder:
                sizes = {"HIDDEN": 512, "WIDTH": 512, "EXPERTS": 24}
                with unittest.mock.patch.multiple(support, **sizes):
                    made = Checkpoint(pathlib.Path(folder) / "model", family, form, num_layers=1)
                for key, value in made.config.items():
                    replaced = {WIDTH: 512, EXPERTS: 24}.get(value) if key != "num_experts_per_tok" else None
                    made.config[key] = replaced if replaced and isinstance(value, int) else value
                path = made.write()
                text = subprocess.run([sys.executable, "-c", program, path], text=True, check=True, capture_output=True).stdout
                weights, grown = map(int, text.split())
                one_tensor = 2 * 512 * 512 * (1 if form == "mxfp4" else 2)
                self.assertLess(grown, weights + 2 * one_tensor + (6 << 20), (weights, grown))


class Broken(Folders):
    """Each entry breaks a good checkpoint in one way; the message names what and where."""

    def refuse(self, made, message, layer=1, **options):
        with self.assertRaisesRegex(ValueError, message) as caught:
            tessera.load_layer(made.write(), layer=layer, **options)
        return str(caught.exception)

    def test_missing(self):
        for family, name, shape in (("qwen3_moe", "3.up_proj.weight", [WIDTH, HIDDEN]),
                                    ("mixtral", "5.w2.weight", [HIDDEN, WIDTH]),
                                    ("gpt_oss", "down_proj_bias", [EXPERTS, HIDDEN])):
            made = Checkpoint(self.folder, family)
            del made.tensors[made.prefix(1) + name]
            self.refuse(made, re.escape(f"tensor '{made.prefix(1)}{name}': got no such tensor, expected shape {shape}"))

    def test_missing_scale(self):
        made = Checkpoint(self.folder, form="fp8-block")
        del made.tensors[made.prefix(1) + "2.gate_proj.weight_scale_inv"]
        self.refuse(made, r"model.safetensors: tensor '.*2.gate_proj.weight': got dtype F8_E4M3 without scales")

    def test_all_experts_missing(self):
        made = Checkpoint(self.folder)
        for name in [name for name in made.tensors if name.startswith(made.prefix(1))]:
            del made.tensors[name]
        self.refuse(made, f"layer 1: got no tensor under '{re.escape(made.prefix(1))}', expected {EXPERTS} experts")

    def test_shared_expert_missing(self):
        made = Checkpoint(self.folder, "deepseek_v3")
        del made.tensors["model.layers.1.mlp.shared_experts.up_proj.weight"]
        self.refuse(made, r"mlp.shared_experts.up_proj.weight': got no such tensor")

    def test_extra(self):
        made = Checkpoint(self.folder)
        made.tensors[f"{made.prefix(1)}{EXPERTS}.up_proj.weight"] = made.tensors[f"{made.prefix(1)}0.up_proj.weight"]
        self.refuse(made, f"tensor '.*experts.{EXPERTS}.up_proj.weight': got expert {EXPERTS}, expected experts 0 to 5")

    def test_experts_of_a_layer_that_has_none(self):
        made = Checkpoint(self.folder, "deepseek_v3")
        made.config["first_k_dense_replace"] = 2
        self.refuse(made, "tensor '.*': got experts, expected none: by config.json this layer has no experts")

    def test_misnamed(self):
        for name in ("00.up_proj.weight", "+1.up_proj.weight", "1.w1.weight", "1.up_proj.bias", "one.up_proj.weight",
                     "1.up_proj.weight.extra", "gate_proj", "1.up_proj", "gate_up_proj_bias"):
            made = Checkpoint(self.folder)
            made.tensors[made.prefix(1) + name] = made.tensors[f"{made.prefix(1)}0.up_proj.weight"]
            self.refuse(made, re.escape(made.prefix(1) + name) + "': got a name that no tensor of Qwen3-MoE experts has")

    def test_doubled_forms(self):
        made = Checkpoint(self.folder)
        made.tensors[made.prefix(1) + "gate_up_proj"] = made.tensors[f"{made.prefix(1)}0.up_proj.weight"]
        self.refuse(made, "got a tensor of one expert beside '.*gate_up_proj', expected the experts once")

    def test_doubled_scales(self):
        made = Checkpoint(self.folder, form="fp8-block")
        scale = made.tensors[f"{made.prefix(1)}0.up_proj.weight_scale_inv"]
        made.tensors[f"{made.prefix(1)}0.up_proj.weight_scale"] = scale
        self.refuse(made, "got a second scale beside '.*', expected one")

    def test_doubled_in_two_files(self):
        made = Checkpoint(self.folder, num_files=2)
        path = made.write()
        files = sorted(path.glob("*.safetensors"))
        support.write_safetensors(files[1], {name: made.tensors[name] for name in made.tensors})
        with self.assertRaisesRegex(ValueError, "model-00002-of-00002.safetensors: tensor '.*': got the tensor a second time: "
                                                "it is in .*model-00001-of-00002.safetensors, expected it once"):
            tessera.load_layer(path, layer=0)

    def test_shapes(self):
        for family, name in (("qwen3_moe", "4.down_proj.weight"), ("gpt_oss", "gate_up_proj"), ("gpt_oss", "gate_up_proj_bias")):
            made = Checkpoint(self.folder, family)
            tensor = made.tensors[made.prefix(1) + name]
            expected = list(tensor.shape)
            tensor.array = tensor.array[..., :-8].copy()
            tensor.shape = list(tensor.array.shape)
            self.refuse(made, re.escape(f"{name}': got shape {tensor.shape}, expected shape {expected}"))

    def test_shapes_of_scales(self):
        made = Checkpoint(self.folder, form="fp8-block")
        tensor = made.tensors[made.prefix(1) + "4.down_proj.weight_scale_inv"]
        tensor.array = numpy.tile(tensor.array, (2, 1))
        tensor.shape = list(tensor.array.shape)
        self.refuse(made, re.escape("4.down_proj.weight_scale_inv': got shape [4, 2], expected shape [2, 2], [192, 1] or [1]"))

    def test_types(self):
        made = Checkpoint(self.folder)
        made.tensors[made.prefix(1) + "4.down_proj.weight"].dtype = "F16"
        self.refuse(made, "4.down_proj.weight': got dtype F16, expected dtype BF16, as ")
        made = Checkpoint(self.folder)
        made.tensors[made.prefix(1) + "4.down_proj.weight"].dtype = "I16"
        self.refuse(made, "4.down_proj.weight': got dtype I16, expected dtype BF16, as ")

    def test_scales_that_cannot_be(self):
        for value in (numpy.nan, numpy.inf, -1.0):
            made = Checkpoint(self.folder, form="fp8-block")
            made.tensors[made.prefix(1) + "4.down_proj.weight_scale_inv"].array[1, 0] = value
            self.refuse(made, "4.down_proj.weight_scale_inv': .*expected a finite number that is not negative")

    def test_scales_of_powers_of_two_that_are_nan(self):
        for form, name in (("fp8-block", "weight_scale_inv"), ("fp8-channel", "weight_scale")):
            made = Checkpoint(self.folder, form=form, scale_type="F8_E8M0")
            made.tensors[f"{made.prefix(1)}4.down_proj.{name}"].array[1, 0] = 255
            self.refuse(made, f"4.down_proj.{name}': .*expected a finite number that is not negative")

    def test_exponents_that_are_nan(self):
        made = Checkpoint(self.folder, "gpt_oss", "mxfp4")
        made.tensors[made.prefix(1) + "down_proj_scales"].array[2, 7, 1] = 255
        for form in ("fp8-block", "dense", None):
            self.refuse(made, "down_proj_blocks', expert 2, row 7, columns from 32: got an exponent that is NaN", weight_format=form)

    def test_unknown_quantization(self):
        made = Checkpoint(self.folder)
        made.config["quantization_config"] = {"quant_method": "awq"}
        made.tensors[made.prefix(1) + "0.up_proj.qweight"] = made.tensors[made.prefix(1) + "0.up_proj.weight"]
        self.refuse(made, r"0.up_proj.qweight': got tensors of kind qweight \(quant_method 'awq'\), expected BF16, F16, F32")

    def test_other_blocks(self):
        made = Checkpoint(self.folder, form="fp8-block")
        made.config["quantization_config"]["weight_block_size"] = [64, 64]
        self.refuse(made, "config.json: 'weight_block_size': got 64 x 64, expected 128 x 128")

    def test_static_scales(self):
        made = Checkpoint(self.folder, form="fp8-block")
        made.tensors[made.prefix(1) + "0.up_proj.input_scale"] = support.Tensor("F32", numpy.ones(1))
        self.refuse(made, "input_scale': got a static scale of activations")

    def test_a_shared_expert_of_another_type(self):
        made = Checkpoint(self.folder, "qwen3_next", "fp8-block")
        for name in ("gate_proj", "up_proj", "down_proj"):
            prefix = f"model.layers.1.mlp.shared_expert.{name}."
            del made.tensors[prefix + "weight_scale_inv"]
            shape = made.tensors[prefix + "weight"].shape
            made.tensors[prefix + "weight"] = support.bf16(numpy.ones(shape))
        self.refuse(made, "shared_expert.gate_proj.weight': got a shared expert of dtype BF16, expected F8_E4M3, as the others, or "
                          "shared_expert = false")
        tessera.load_layer(made.folder, layer=1, shared_expert=False)

    def test_files_that_are_cut_off(self):
        path = Checkpoint(self.folder, num_files=3).write()
        file = sorted(path.glob("*.safetensors"))[1]
        os.truncate(file, file.stat().st_size - 7)
        with self.assertRaisesRegex(ValueError, "model-00002-of-00003.safetensors: tensor '.*': data_offsets|model-00002-of-00003"):
            tessera.load_layer(path, layer=0)

    def test_an_index_that_is_wrong(self):
        good = Checkpoint(self.folder, num_files=2)
        path = good.write()
        index = path / "model.safetensors.index.json"
        where = json.loads(index.read_text())["weight_map"]
        name, file = next(iter(where.items()))
        for change, message in (
                ({name: "../evil.safetensors"}, "got the file '../evil.safetensors', expected the name of a .safetensors file"),
                ({name: "/etc/evil.safetensors"}, "got the file '/etc/evil.safetensors'"),
                ({name: "absent.safetensors"}, "got the file 'absent.safetensors', which is not there"),
                ({name: "config.json"}, "got the file 'config.json', expected the name of a .safetensors file"),
                ({name: 5}, "got 5, expected the name of its file"),
                ({name: "model-00002-of-00002.safetensors"}, f"got it in '{file}', expected it in 'model-00002"),
                ({"model.layers.9.extra": file}, "tensor 'model.layers.9.extra': got no such tensor in any file")):
            index.write_text(json.dumps({"weight_map": where | change}))
            with self.subTest(change), self.assertRaisesRegex(ValueError, re.escape(message)):
                tessera.load_layer(path, layer=0)
        index.write_text(json.dumps({"weight_map": {other: file for other, file in where.items() if other != name}}))
        with self.assertRaisesRegex(ValueError, re.escape(f"tensor '{name}': got a tensor that is not in the index")):
            tessera.load_layer(path, layer=0)
        for text, message in (("{}", "got no weight_map"), ('{"weight_map": {}}', "got no tensors"), ("[1]", "JSON object"),
                              ('{"weight_map": []}', "got an array, expected an object"), ("", "got nothing")):
            index.write_text(text)
            with self.subTest(text), self.assertRaisesRegex(ValueError, re.escape(message)):
                tessera.load_layer(path, layer=0)

    def test_folders(self):
        with self.assertRaisesRegex(ValueError, "model: got nothing, expected a folder with config.json"):
            tessera.load_layer(self.folder, layer=0)
        made = Checkpoint(self.folder)
        path = made.write()
        (path / "model.safetensors.index.json").write_text("{}")
        with self.assertRaisesRegex(ValueError, "got both model.safetensors and model.safetensors.index.json"):
            tessera.load_layer(path, layer=0)
        for file in path.glob("model.*"):
            file.unlink()
        with self.assertRaisesRegex(ValueError, "model: got no weights, expected model.safetensors or"):
            tessera.load_layer(path, layer=0)

    def test_configurations(self):
        for change, message in (({"model_type": "llama"}, "'model_type': got 'llama', expected one of qwen3_moe, "),
                                ({"num_experts_per_tok": 7}, "'num_experts_per_tok': got 7, expected an integer from 1 to 6"),
                                ({"hidden_act": "xielu"}, "'hidden_act': got 'xielu', expected silu, gelu"),
                                ({"moe_intermediate_size": None}, "'moe_intermediate_size'"),
                                ({"num_experts": 0}, "'num_experts': got 0"),
                                ({"num_experts": "8"}, "'num_experts': got '8'")):
            made = Checkpoint(self.folder)
            made.config.update(change)
            with self.subTest(change):
                self.refuse(made, message)

    def test_arguments(self):
        path = Checkpoint(self.folder).write()
        for options, error, message in (
                ({"layer": 2}, ValueError, "layer: got 2, expected 0 to 1"), ({"layer": -1}, ValueError, "layer: got -1"),
                ({"layer": 1.0}, TypeError, "layer: got float"), ({"shard": (2, 2)}, ValueError, "shard: got 2, expected 0..1"),
                ({"shard": (0, 7)}, ValueError, "num_shards: got 7, expected 1..6"), ({"shard": 1}, TypeError, "shard: got 1"),
                ({"dtype": "int8"}, ValueError, "dtype: got 'int8'"), ({"device": "tpu"}, ValueError, "device: got 'tpu'"),
                ({"weight_format": "fp8-block"}, ValueError, "weight_format: got fp8-block, expected dense, as the checkpoint"),
                ({"shared_expert": 1}, TypeError, "shared_expert: got int"), ({"progress": 3}, TypeError, "progress: got int")):
            with self.subTest(options), self.assertRaisesRegex(error, re.escape(message)):
                tessera.load_layer(path, **{"layer": 0, **options})
        with self.assertRaisesRegex(TypeError, "path: got int"):
            tessera.load_layer(3, layer=0)


class Inspect(Folders):
    def test_every_layer_is_there_with_what_is_wrong(self):
        made = Checkpoint(self.folder, "deepseek_v3", "fp8-block", num_files=2, num_layers=4)
        del made.tensors[made.prefix(2) + "3.up_proj.weight"]
        found = tessera.inspect_checkpoint(made.write())
        self.assertEqual((found["family"], found["num_files"], found["router"]["kind"]), ("DeepSeek-V3", 2, "sigmoid_grouped"))
        self.assertEqual([layer["layer"] for layer in found["layers"]], [1, 2, 3])
        good, broken = found["layers"][0], found["layers"][1]
        self.assertEqual((good["format"], good["cpu"]["runs"], good["cpu"]["weight_format"]), ("fp8-block", True, "fp8-block"))
        self.assertEqual(good["cpu"]["weight_bytes"], tessera.load_layer(made.folder, layer=1).loaded.weight_bytes)
        self.assertEqual(good["hopper_gpu"]["kernels"][0], {"from_tokens": 1, "kernel": "expert_gemm_rows_fp8"})
        self.assertFalse(broken["cpu"]["runs"])
        self.assertIn("3.up_proj.weight': got no such tensor", broken["cpu"]["problem"])

    def test_a_gpu_may_not_run_what_the_cpu_does(self):
        made = Checkpoint(self.folder, form="F32")
        layer = tessera.inspect_checkpoint(made.write())["layers"][0]
        self.assertTrue(layer["cpu"]["runs"])
        self.assertIn("got dtype F32, expected bf16 or f16 on a GPU", layer["hopper_gpu"]["problem"])


if __name__ == "__main__":
    unittest.main()
