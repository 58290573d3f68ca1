"""tessera explain moe: the plan in words, as JSON and as a picture."""
import json
import re
import shutil
import struct
import subprocess
import unittest
import xml.etree.ElementTree
import zlib

from cli_support import ROOT, CommandTest, tessera

SVG = "{http://www.w3.org/2000/svg}"


# As much of a browser as the page's script asks for.
PAGE_STUBS = """
const element = () => ({style: {}, listeners: {}, clientWidth: 1000, textContent: "", value: 0,
  addEventListener(name, call) { this.listeners[name] = call; },
  getBoundingClientRect: () => ({left: 0, top: 0}),
  getContext: () => new Proxy({}, {get: () => () => {}, set: () => true})});
const elements = {};
globalThis.document = {getElementById: id => elements[id] ??= element(), documentElement: {}};
globalThis.getComputedStyle = () => ({getPropertyValue: () => "#000000"});
globalThis.devicePixelRatio = 1;
globalThis.innerWidth = 1000;
globalThis.addEventListener = () => {};
globalThis.matchMedia = () => ({addEventListener() {}});
"""
PAGE_USE = """
slider.value = 3;
slider.listeners.input();
console.log(elements.which.textContent);
const middle = boxes[boxes.length >> 1];
map.listeners.mousemove({clientX: middle.x + middle.width / 2, clientY: middle.y + middle.height / 2});
console.log(tip.textContent);
"""


def png_colors(data):
    """The different colours of an 8-bit RGB or RGBA PNG, by its rows' filters undone."""
    position, packed, header = 8, b"", None
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8:position + 8 + size]
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        position += 12 + size
    width, height, _, color = struct.unpack_from(">IIBB", header)
    pixel = {2: 3, 6: 4}[color]
    raw, stride, above, colors = zlib.decompress(packed), width * pixel, bytearray(width * pixel), set()
    for row in range(height):
        kind = raw[row * (stride + 1)]
        line = bytearray(raw[row * (stride + 1) + 1:(row + 1) * (stride + 1)])
        for i in range(stride):
            left = line[i - pixel] if i >= pixel else 0
            corner = above[i - pixel] if i >= pixel else 0
            guess = left + above[i] - corner
            nearest = min((abs(guess - left), 0, left), (abs(guess - above[i]), 1, above[i]),
                          (abs(guess - corner), 2, corner))[2]
            line[i] = (line[i] + (0, left, above[i], (left + above[i]) // 2, nearest)[kind]) & 255
        colors |= {bytes(line[i:i + 3]) for i in range(0, stride, pixel)}
        above = line
    return colors


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
        self.assertRegex(result.out, r"(?m)^ +expert_gemm: tile 128x256x64 in parts of 128, 4 stages, cluster 2, 3 gather warps")
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
        names = explain("--help").out.partition("Presets:")[2].partition("Exit codes")[0].replace("\n", " ").split(",")
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
        shape = ("--preset", "qwen3-30b", "--tokens", 72, "--routing", "worst")
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
        self.assertRegex(words.out, r"(?m)^layer .*, fp8-block weights; 72 tokens")
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
            self.assertRegex(rectangle.find(SVG + "title").text, r"^expert \d+, tile \d+: [\d.]+ to [\d.]+ us, "
                             r"(waits for memory|tensor cores), \d+ % padding$")
        lanes = {rectangle.get("y") for rectangle in rectangles}
        self.assertLessEqual(len(lanes), plan["gemm1"]["lanes"])
        self.assertGreater(len({rectangle.get("fill") for rectangle in rectangles}), plan["experts_with_rows"])

    def test_pictures_are_in_colours_that_converters_know(self):
        picture = self.folder / "tiles.svg"
        self.assert_code(explain("--preset", "olmoe", "--tokens", 512, "--routing", "zipf", "--svg", picture), 0)
        text = picture.read_text()
        fills = set(re.findall(r'fill="([^"]*)"', text))
        self.assertTrue(all(re.fullmatch("#[0-9a-f]{6}|none|url\\(#padding\\)", fill) for fill in fills), fills)
        self.assertGreater(len(fills), 40)
        for words in ("cluster 0", "cluster 65", "GEMM 1", "GEMM 2", "plan, combine", "idle", "padding", "floor", "memory"):
            self.assertIn(words, text)
        self.assertNotIn("lane", text)
        ticks = [int(tick) for tick in re.findall(r">(\d+) us</text>", text)]
        self.assertEqual(ticks, [50 * i for i in range(len(ticks))])
        try:
            import cairosvg
        except ImportError:
            self.skipTest("cairosvg, the converter that pip has, is not installed")
        image = cairosvg.svg2png(bytestring=text.encode(), output_width=600)
        self.assertGreater(len(png_colors(image)), 30)

    def test_the_picture_of_the_documents_is_todays(self):
        picture = self.folder / "tiles.svg"
        self.assert_code(explain("--preset", "olmoe", "--tokens", 512, "--routing", "zipf", "--svg", picture), 0)
        self.assertEqual(picture.read_text(), (ROOT / "docs" / "figures" / "explain_moe.svg").read_text(),
                         "tessera explain moe --preset olmoe --tokens 512 --routing zipf --svg docs/figures/explain_moe.svg")

    def test_a_trace_for_perfetto(self):
        path = self.folder / "trace.json"
        plan = self.plans("--preset", "olmoe", "--tokens", 512, "--routing", "zipf", "--trace", path)["cases"][0]
        trace = json.loads(path.read_text())
        slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        self.assertEqual(len(slices), 4 + plan["gemm1"]["tiles"] + plan["gemm2"]["tiles"])
        end = max(event["ts"] + event["dur"] for event in slices)
        self.assertAlmostEqual(end, plan["predicted_us"], 3)
        tracks = {}
        for event in slices:
            tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
        for track in tracks.values():
            track.sort()
            for (_, before), (after, _) in zip(track, track[1:]):
                self.assertLessEqual(before, after + 1e-6)
        names = [event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"]
        self.assertEqual(len(names), 2 + plan["gemm1"]["lanes"])
        self.assertIn("cluster 65", names)

    def test_a_page_to_look_into(self):
        path = self.folder / "tiles.html"
        plans = self.plans("--preset", "olmoe", "--tokens", "64,512", "--routing", "balanced,zipf", "--html", path)["cases"]
        page = path.read_text()
        data = json.loads(re.search(r"const plans = (.*);\n", page)[1])
        self.assertEqual(len(data), 4)
        for plan, drawn in zip(plans, data):
            self.assertEqual(len(drawn["tiles"]), plan["gemm1"]["tiles"] + plan["gemm2"]["tiles"])
            self.assertAlmostEqual(drawn["end"], plan["predicted_us"], 3)
        self.assertNotRegex(page, r"(src|href)=")  # nothing else is needed
        if shutil.which("node") is None:
            self.skipTest("no node on this machine to run the page's script with")
        script = re.search(r"<script>\n(.*)</script>", page, re.S)[1]
        program = self.write("page.js", PAGE_STUBS + script + PAGE_USE)
        done = subprocess.run(["node", program], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, r"^4 of 4\nGEMM [12], expert \d+, tile \d+\ncluster \d+, [\d.]+ to [\d.]+ us\n")

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
                ((*usual, "--svg", "x.png"), ("--svg x.png: got a .png file", "expected a .svg file")),
                ((*usual, "--html", "x.svg"), ("--html x.svg: got a .svg file",)),
                ((*usual, "--svg", "/nowhere/x.svg"), ("/nowhere/x.svg",))):
            with self.subTest(arguments=arguments):
                self.assert_error(explain(*arguments), 2, *parts)


if __name__ == "__main__":
    unittest.main()
