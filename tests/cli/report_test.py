"""tessera report: one page that needs nothing else, of this machine, a measurement, pictures and the peers' data."""
import html.parser
import json
import re
import shutil
import struct
import subprocess
import unittest
import zlib

from cli_support import ROOT, CommandTest, tessera

PEERS = ROOT / "bench" / "results" / "peers_h200.json"


def pixels(data):
    """Rows of (red, green, blue[, alpha]) of a PNG with 8 bits a channel, by the filters of the format."""
    place, chunks, header = 8, b"", None
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place:place + 8])
        body = data[place + 8:place + 8 + length]
        header = body if kind == b"IHDR" else header
        chunks += body if kind == b"IDAT" else b""
        place += length + 12
    width, height, depth, color = struct.unpack(">IIBB", header[:10])
    channels = {2: 3, 6: 4}[color]
    assert depth == 8
    raw, stride, before, rows = zlib.decompress(chunks), width * channels, bytearray(width * channels), []
    for y in range(height):
        how, row = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride) if how else ():
            left = row[i - channels] if i >= channels else 0
            corner = before[i - channels] if i >= channels else 0
            if how == 4:
                near = min((abs(before[i] - corner), 0, left), (abs(left - corner), 1, before[i]),
                           (abs(left + before[i] - 2 * corner), 2, corner))[2]
            else:
                near = {1: left, 2: before[i], 3: (left + before[i]) // 2}[how]
            row[i] = (row[i] + near) & 255
        rows.append([tuple(row[i:i + channels]) for i in range(0, stride, channels)])
        before = row
    return rows


class Page(html.parser.HTMLParser):
    VOID = {"meta", "br", "path", "line", "rect"}

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.counts = [], "", {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID and self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes something else")

    def handle_data(self, data):
        self.text += data


class Report(CommandTest):
    def report(self, *arguments):
        out = self.folder / "report.html"
        self.assert_code(tessera("report", "--out", out, *arguments), 0)
        text = out.read_text()
        page = Page(text)
        self.assertEqual(page.open, [])
        self.assertNotRegex(text, r"(src|href)=|@import|url\(http")  # self-contained
        return page

    def test_a_page_of_everything(self):
        page = self.report("--explain", "olmoe", "--tokens", "64,512", "--peers", PEERS)
        self.assertEqual(page.counts["svg"], 2)
        self.assertGreater(page.counts["rect"], 500)
        self.assertIn("healthy", page.text)
        self.assertRegex(page.text, r"olmoe: .*; 512 tokens, balanced")
        for row in json.loads(PEERS.read_text())["peers_table"]["rows"]:
            self.assertIn(row[0], page.text)
        self.draw()

    def draw(self):
        """Headless Chromium draws the page, and the two schemes differ where they should: in the paper's colour."""
        chromium = shutil.which("chromium")
        if chromium is None:
            self.skipTest("no Chromium on this machine to draw the page with")
        papers = []
        for scheme in (1, 0):  # light, dark
            picture = self.folder / f"page{scheme}.png"
            subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--blink-settings=preferredColorScheme={scheme}",
                            "--hide-scrollbars", f"--screenshot={picture}", "--window-size=800,500",
                            f"file://{self.folder}/report.html"], check=True, timeout=300, stderr=subprocess.DEVNULL)
            rows = pixels(picture.read_bytes())
            papers.append(rows[-1][2])
            self.assertGreater(len({tuple(row) for row in rows}), 100)  # lines that say something
            # Nothing touches the page's edges, and nothing is wider than the page.
            for row in rows:
                self.assertEqual({*row[:8], *row[-8:]}, {papers[-1]})
        self.assertGreater(min(papers[0][:3]), 200)
        self.assertLess(max(papers[1][:3]), 60)

    def test_what_is_measured_is_checked(self):
        page = self.report("--explain", "olmoe", "--bench", "olmoe", "--tokens", "4", "--seconds", "0", "--device", "cpu")
        self.assertIn("Measured here", page.text)
        self.assertRegex(page.text, r"\d+ us")
        self.assertNotIn("WRONG", page.text)

    def test_wrong_calls(self):
        out = self.folder / "r.html"
        (self.folder / "bad.json").write_text("{}")
        for arguments, parts in ((("--explain", "nope"), ("nope",)), (("--tokens", "x"), ("--tokens",)),
                                 (("--peers", self.folder / "none"), ("none",)),
                                 (("--peers", self.folder / "bad.json"), ("--peers", "bench/peers/run.py"))):
            self.assert_error(tessera("report", "--out", out, *arguments), 2, *parts)
            self.assertFalse(out.exists())
        self.assert_error(tessera("report"), 2, "--out: got nothing")


if __name__ == "__main__":
    unittest.main()
