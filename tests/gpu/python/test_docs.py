"""Every Python block of the documents, those that need torch, transformers or a GPU as well. Nothing is skipped here: a
machine that lacks something fails.

  python3 -m unittest discover -s tests/gpu/python -p test_docs.py     with the package tessera installed
"""
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "docs"))

import blocks
import runners

SETTING = runners.setting_of_environment()._replace(python=sys.executable)


def python_blocks(page):
    return [b for b in blocks.read_blocks(page) if blocks.classify(b) in ("python", "python elsewhere")]


class Documents(unittest.TestCase):
    def test_there_is_something_to_run(self):
        needs = set().union(*(blocks.needs_of(b) for page in blocks.pages() for b in python_blocks(page)))
        self.assertEqual(needs, blocks.NEEDS)


def page_test(page):
    def test(self):
        problems, ran = runners.run_python(page, SETTING, frozenset(blocks.NEEDS))
        self.assertEqual(problems, [], "\n" + "\n".join(problems))
        self.assertEqual([block.place for block in ran], [block.place for block in python_blocks(page)])
    return test


for _page in blocks.pages():
    if python_blocks(_page):
        setattr(Documents, "test_" + _page.removesuffix(".md").replace("/", "_").replace("-", "_"), page_test(_page))

if __name__ == "__main__":
    unittest.main()
