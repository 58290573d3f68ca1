"""The pictures of docs/figures: of the present results, in both themes; an old one is found without matplotlib."""
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

from blocks import ROOT
from links import markdown_files

sys.path.insert(0, str(ROOT / "scripts"))

import figures  # noqa: E402  after the path to it

charts = figures.charts
NO_MATPLOTLIB = "import sys; sys.modules['matplotlib'] = None; sys.argv = ['figures.py', '--check']; sys.path.insert(0, 'scripts'); "


class Pictures(unittest.TestCase):
    def test_an_old_picture_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, _, _, stamp in figures.pictures():
                for theme in charts.THEMES:
                    (pathlib.Path(folder) / f"{name}{theme.suffix}.svg").write_text(stamp)
            modules = list(figures.pictures())
            with mock.patch.object(figures, "FIGURES", pathlib.Path(folder)), mock.patch.object(figures, "pictures", lambda: modules):
                self.assertEqual(list(figures.picture_problems()), [])
                (pathlib.Path(folder) / "moe_speed-dark.svg").write_text(charts.stamp(["charts.py"], {"other": 1}))
                (pathlib.Path(folder) / "peers_ratio.svg").unlink()
                self.assertEqual([problem.partition(":")[0] for problem in figures.picture_problems()],
                                 ["docs/figures/moe_speed-dark.svg", "docs/figures/peers_ratio.svg"])

    def test_the_stamp_is_of_content_and_scripts(self):
        stamps = {charts.stamp(scripts, content) for scripts in (["charts.py"], ["charts.py", "peers.py"])
                  for content in ({"a": [1, 2]}, {"a": [1, 3]})}
        self.assertEqual(len(stamps), 4)
        self.assertEqual(charts.stamp(["charts.py"], {"a": 1, "b": 2}), charts.stamp(["charts.py"], {"b": 2, "a": 1}))

    def test_checking_needs_no_matplotlib(self):
        done = subprocess.run([sys.executable, "-c", NO_MATPLOTLIB + "import figures; sys.exit(len(list(figures.picture_problems())))"],
                              cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_every_picture_stands_in_a_document_for_light_and_dark(self):
        text = "".join((ROOT / page).read_text(encoding="utf-8") for page in markdown_files())
        for name, *_ in figures.pictures():
            self.assertRegex(text, rf'prefers-color-scheme: dark\)" srcset="[^"]*{name}-dark\.svg"><img alt="[^"]+" src="[^"]*{name}\.svg"')

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "no matplotlib on this machine to draw with")
    def test_what_is_drawn_is_the_content(self):
        names = {name: (module, content) for name, module, content, _ in figures.pictures()}
        module, content = names["classifier_speed"]
        for theme in charts.THEMES:
            drawn = charts.svg(module.draw(content, theme), charts.stamp(["charts.py"], content))
            self.assertRegex(drawn, r"<text [^>]*>Tessera's text classifier")
            for _, rows in content:
                for _, rate, *_ in rows:
                    self.assertIn(f">{rate:,.0f}<", drawn)
            self.assertIn(theme.paper, drawn)


if __name__ == "__main__":
    unittest.main()
