"""tessera report: one page that needs nothing else, of this machine, a measurement, pictures and the peers' data."""
import html.parser
import json
import re
import shutil
import subprocess
import unittest

from cli_support import ROOT, CommandTest, tessera

PEERS = ROOT / "bench" / "results" / "peers_h200.json"


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
        if shutil.which("chromium") is None:
            self.skipTest("no Chromium on this machine to draw the page with")
        picture = self.folder / "page.png"
        subprocess.run(["chromium", "--headless", "--no-sandbox", f"--screenshot={picture}", "--window-size=1200,2000",
                        f"file://{self.folder}/report.html"], check=True, timeout=120, stderr=subprocess.DEVNULL)
        self.assertGreater(picture.stat().st_size, 20_000)

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
