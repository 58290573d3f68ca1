"""tessera inspect: what a checkpoint holds and how its layers would run here."""
import json
import pathlib
import re
import shutil
import unittest

from cli_support import CliTest, tessera

TINY = pathlib.Path(__file__).resolve().parents[2] / "examples" / "data" / "tiny-qwen3-moe"


class InspectTest(CliTest):
    def test_text(self):
        result = tessera("inspect", TINY)
        self.assert_code(result, 0)
        self.assertEqual(result.lines[0], "Qwen3-MoE, 1 layers, hidden size 64")
        self.assertIn("experts     4, 2 a token, intermediate size 32", result.lines)
        self.assertIn("layer 0     BF16, tensors of each expert, 0.00 GB on disk", result.lines)
        self.assertRegex(result.out, r"Hopper GPU: dense, BF16 tokens, \S+ GB a layer; expert_gemm_rows from 1 tokens")
        self.assertRegex(result.out, r"(?m)^GPU +\S")

    def test_json(self):
        result = tessera("inspect", "--json", TINY)
        self.assert_code(result, 0)
        found = json.loads(result.out)
        self.assertEqual((found["family"], found["num_experts"], found["num_bytes"]),
                         ("Qwen3-MoE", 4, (TINY / "model.safetensors").stat().st_size))
        self.assertEqual(found["layers"][0]["cpu"]["weight_bytes"], 4 * 3 * 64 * 32 * 2)

    def copy(self):
        folder = self.folder / "copy"
        shutil.copytree(TINY, folder)
        return folder

    def test_a_layer_that_cannot_run(self):
        folder = self.copy()
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_experts": 5}))
        result = tessera("inspect", folder)
        self.assert_code(result, 1)
        self.assertRegex(result.out, r"layer 0 +cannot run: .*experts.4.gate_proj.weight': got no such tensor")

    def test_what_is_no_checkpoint(self):
        folder = self.copy()
        for break_it, message in ((lambda: (folder / "model.safetensors").write_bytes(b"\0" * 9), "model.safetensors"),
                                  (lambda: (folder / "model.safetensors").unlink(), "got no weights, expected model.safetensors"),
                                  (lambda: (folder / "config.json").write_text("{}"), "'model_type'"),
                                  (lambda: shutil.rmtree(folder), "got nothing, expected a folder")):
            break_it()
            result = tessera("inspect", folder)
            self.assert_code(result, 2)
            self.assertRegex(result.err, "tessera: error: .*" + re.escape(message))


if __name__ == "__main__":
    unittest.main()
