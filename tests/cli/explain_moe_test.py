"""tessera explain moe: the plan in words, as JSON and as a picture."""
import json
import unittest
import xml.etree.ElementTree

from cli_support import CommandTest, tessera

SVG = "{http://www.w3.org/2000/svg}"


def explain(*arguments):
    return tessera("explain", "moe", *arguments)


class ExplainMoeTest(CommandTest):
    def plans(self, *arguments):
        result = explain(*arguments, "--json", self.folder / "plan.json")
        self.assert_code(result, 0)
        return json.loads((self.folder / "plan.json").read_text())

    def test_words_name_tiles_floors_and_limits_within_100_columns(self):
        result = explain("--preset", "qwen3-30b", "--tokens", 4096)
        self.assert_code(result, 0)
        self.assertRegex(result.out, r"32768 on 128 of 128 experts; 256 to 256 an expert, median 256; 0 experts empty")
        self.assertRegex(result.out, r"(?s)GEMM 1 +\d+ tiles = [\d.]+ waves of 66 clusters; the last wave leaves")
        self.assertRegex(result.out, r"(?m)^kernels +expert_gemm, chosen: \w+")
        self.assertRegex(result.out, r"(?m)^ +expert_gemm: tile 128x256x64, 4 stages, cluster 2, 3 gather warps")
        self.assertRegex(result.out, r"(?m)^order +heavy-first over 132 CTAs in clusters of 2; 1 of every 6 clusters")
        for kernel in ("plan", "GEMM 1", "GEMM 2", "combine"):
            self.assertRegex(result.out, rf"(?m)^{kernel} .* %  (memory|tensor cores|latency)$")
        self.assertLessEqual(max(map(len, result.lines)), 100)

    def test_a_small_batch_takes_another_kernel_and_each_can_be_asked_for(self):
        small = explain("--preset", "qwen3-30b", "--tokens", 1)
        self.assert_code(small, 0)
        self.assertRegex(small.out, r"(?m)^kernels +expert_gemm_rows, chosen: \w+")
        self.assertRegex(small.out, r"(?m)^order +natural over 264 CTAs")
        asked = explain("--preset", "qwen3-30b", "--tokens", 1, "--kernel", "expert_gemm")
        self.assertRegex(asked.out, r"(?m)^kernels +expert_gemm, chosen: \w+")
        self.assertRegex(asked.out, r"(?m)^ +expert_gemm_rows, refused: another kernel was asked for")
        many = explain("--preset", "qwen3-30b", "--tokens", 4096, "--kernel", "expert_gemm_rows")
        self.assert_code(many, 2)
        self.assertIn("more (token, slot) pairs than a CTA sorts for itself", many.err)
        unknown = explain("--preset", "qwen3-30b", "--tokens", 1, "--kernel", "fastest")
        self.assert_code(unknown, 2)
        self.assertIn("--kernel: got 'fastest', expected expert_gemm_rows, expert_gemm, expert_gemm_rows_fp8, "
                      "expert_gemm_fp8, expert_gemm_rows_fp8_channel, expert_gemm_fp8_channel", unknown.err)

    def test_every_preset_and_routing_can_be_explained(self):
        names = explain("--help").out.partition("Presets:")[2].replace("\n", " ").split(",")
        self.assertGreater(len(names), 12)
        for name in names:
            result = explain("--preset", name.strip(), "--tokens", 64, "--routing", "balanced,best,random,zipf,one")
            self.assert_code(result, 0)
            self.assertEqual(result.out.count("GEMM 2  "), 2 * 5, name)
            self.assertLessEqual(max(map(len, result.lines)), 100)

    def test_json_adds_up(self):
        plans = self.plans("--preset", "olmoe", "--tokens", "1,512", "--routing", "random,zipf")
        self.assertEqual(plans["shape"]["experts"], 64)
        self.assertEqual([(p["tokens"], p["routing"]) for p in plans["cases"]],
                         [(1, "random"), (1, "zipf"), (512, "random"), (512, "zipf")])
        for plan in plans["cases"]:
            self.assertEqual(plan["rows"], plan["tokens"] * 8)
            self.assertAlmostEqual(plan["gemm1"]["flops"], 4 * plan["rows"] * 2048 * 1024)
            kernels = [plan[name] for name in ("plan", "gemm1", "gemm2", "combine")]
            self.assertAlmostEqual(plan["floor_us"], sum(k["floor_us"] for k in kernels))
            self.assertAlmostEqual(plan["predicted_us"], sum(k["predicted_us"] for k in kernels))
            for kernel in kernels:
                self.assertGreaterEqual(kernel["predicted_us"], kernel["floor_us"] * (1 - 1e-6))
            self.assertAlmostEqual(plan["gemm1"]["waves"], plan["gemm1"]["tiles"] / plan["gemm1"]["lanes"])

    def test_weights_of_8_bits_halve_the_bytes(self):
        shape = ("--preset", "qwen3-30b", "--tokens", 64, "--routing", "worst")
        dense, narrow = self.plans(*shape), self.plans(*shape, "--format", "fp8-block")
        self.assertEqual((dense["format"], narrow["format"]), ("dense", "fp8-block"))
        dense, narrow = dense["cases"][0], narrow["cases"][0]
        self.assertEqual(narrow["kernel"], "expert_gemm_fp8")
        for kernel in ("gemm1", "gemm2"):
            self.assertEqual(narrow[kernel]["flops"], dense[kernel]["flops"])
            self.assertTrue(narrow[kernel]["memory_binds"])
            self.assertAlmostEqual(narrow[kernel]["floor_us"] / dense[kernel]["floor_us"], 0.5, delta=0.02)
        self.assertEqual(self.plans(*shape, "--format", "fp8-channel")["cases"][0]["kernel"], "expert_gemm_fp8_channel")
        words = explain(*shape, "--format", "fp8-block")
        self.assertRegex(words.out, r"(?m)^layer .*, fp8-block weights; 64 tokens")
        self.assertRegex(words.out, r"dense 1400 TFLOP/s")
        self.assertRegex(words.out, r"(?m)^ +expert_gemm, refused: its weights have another format")
        self.assertLessEqual(max(map(len, words.lines)), 100)

    def test_rates_and_ctas_are_what_the_options_say(self):
        shape = ("--hidden", 1024, "--intermediate", 512, "--experts", 8, "--top-k", 2, "--tokens", 4096)
        usual, slow = self.plans(*shape), self.plans(*shape, "--hbm-tb-s", 0.295, "--dense-tflops", 70)
        self.assertAlmostEqual(slow["cases"][0]["gemm1"]["floor_us"], 10 * usual["cases"][0]["gemm1"]["floor_us"])
        one = self.plans(*shape, "--ctas", 1)["cases"][0]
        self.assertEqual((one["kernel"], one["ctas"], one["cluster_size"]), ("expert_gemm", 1, 1))
        self.assertEqual(one["gemm1"]["lanes"], 1)
        self.assertGreater(one["gemm1"]["predicted_us"], 50 * usual["cases"][0]["gemm1"]["predicted_us"])

    def test_the_picture_has_one_rectangle_a_tile(self):
        picture = self.folder / "tiles.svg"
        plan = self.plans("--preset", "gpt-oss-20b", "--tokens", 300, "--routing", "zipf", "--svg", picture)["cases"][0]
        root = xml.etree.ElementTree.parse(picture).getroot()
        self.assertEqual(root.tag, SVG + "svg")
        rectangles = root.findall(SVG + "rect")
        self.assertEqual(len(rectangles), plan["gemm1"]["tiles"] + plan["gemm2"]["tiles"])
        width = float(root.get("viewBox").split()[2])
        for rectangle in rectangles:
            self.assertGreaterEqual(float(rectangle.get("x")), 0)
            self.assertLessEqual(float(rectangle.get("x")) + float(rectangle.get("width")), width)
            self.assertRegex(rectangle.find(SVG + "title").text, r"^expert \d+, tile \d+: [\d.]+ to [\d.]+ us$")
        lanes = {rectangle.get("y") for rectangle in rectangles}
        self.assertLessEqual(len(lanes), plan["gemm1"]["lanes"])
        self.assertGreater(len({rectangle.get("fill") for rectangle in rectangles}), plan["experts_with_rows"])

    def test_orders_draw_different_pictures(self):
        drawn = set()
        for order in ("natural", "heavy-first", "interleaved"):
            picture = self.folder / f"{order}.svg"
            self.assert_code(explain("--preset", "olmoe", "--tokens", 512, "--routing", "zipf", "--order", order,
                                     "--svg", picture), 0)
            drawn.add(picture.read_text().partition("GEMM 1")[0].split("</text>", 1)[1])
        self.assertEqual(len(drawn), 3)


class BadInputTest(CommandTest):
    def test_what_cannot_be_explained_is_named(self):
        usual = ("--preset", "olmoe", "--tokens", 8)
        shape = ("--hidden", 64, "--intermediate", 32, "--tokens", 8)
        for arguments, parts in (
                (("--preset", "qwen9", "--tokens", 8), ("preset: got 'qwen9'", "mixtral-8x7b", "deepseek-v3-tp8")),
                (("--preset", "olmoe"), ("--tokens",)),
                (("--tokens", 8), ("sizes of the layer: got none",)),
                ((*usual, "--hidden", 64), ("sizes of the layer: got --preset and sizes",)),
                (("--preset", "olmoe", "--tokens", 0), ("--tokens: got '0'",)),
                (("--preset", "olmoe", "--tokens=-4"), ("--tokens: got '-4'",)),
                (("--preset", "olmoe", "--tokens", "8,"), ("--tokens: got ''",)),
                (("--preset", "olmoe", "--tokens", "1e3"), ("--tokens: got '1e3'",)),
                ((*shape, "--experts", 4, "--top-k", 5), ("--top-k: got 5", "1..4")),
                ((*shape, "--experts", 1025, "--top-k", 5), ("--experts: got 1025",)),
                (("--hidden", 60, *shape[2:], "--experts", 4, "--top-k", 1), ("--hidden: got 60", "multiple of 8")),
                ((*usual, "--routing", "even"), ("--routing: got 'even'", "balanced")),
                (("--preset", "olmoe", "--tokens", 7, "--routing", "worst"), ("routing worst: got 7 tokens x 8",)),
                ((*usual, "--format", "fp4"), ("--format: got 'fp4'", "dense, fp8-block, fp8-channel")),
                ((*usual, "--format", "fp8-block", "--kernel", "expert_gemm"),
                 ("kernel: got 'expert_gemm'", "its weights have another format")),
                (("--hidden", 72, *shape[2:], "--experts", 4, "--top-k", 1, "--format", "fp8-block"),
                 ("--hidden: got 72", "multiple of 16")),
                ((*usual, "--order", "light"), ("--order: got 'light'", "heavy-first")),
                ((*usual, "--ctas", 200), ("ctas: got 200", "1..132")),
                ((*usual, "--ctas=-1"), ("--ctas",)),
                ((*usual, "--hbm-tb-s", 0), ("--hbm-tb-s",)),
                (("--preset", "olmoe", "--tokens", "8,9", "--svg", "x.svg"), ("--svg: got 2 plans",)),
                ((*usual, "--json", "/nowhere/x.json"), ("/nowhere/x.json",)),
                ((*usual, "--svg", "/nowhere/x.svg"), ("/nowhere/x.svg",))):
            with self.subTest(arguments=arguments):
                self.assert_error(explain(*arguments), 2, *parts)


if __name__ == "__main__":
    unittest.main()
