"""Every fenced block of README and docs, run or checked; every relative link of every Markdown file, followed.

What is not run, and why:
- `make ...`, `cmake ...`, `pip ...`, `python3 ...`, `mpirun ...`: their targets, presets, options and files must exist.
- `tessera ...` on a GPU, and blocks marked `checked`: command, options and presets must exist.
- Python that needs torch, transformers or a GPU: tests/gpu/python/test_docs.py runs it, without a skip.
"""
import collections
import json
import pathlib
import unittest
from concurrent.futures import ThreadPoolExecutor

import blocks
import links
import runners

ROOT = blocks.ROOT
SETTING = runners.setting_of_environment()
PAGES = blocks.pages()
ALL = [block for page in PAGES for block in blocks.read_blocks(page)]


def of_class(*classes):
    return [block for block in ALL if blocks.classify(block) in classes]


class DocsCase(unittest.TestCase):
    def none(self, problems):
        self.assertEqual(problems, [], "\n" + "\n".join(problems))


class Blocks(DocsCase):
    def test_each_is_of_one_class(self):
        problems = []
        for block in ALL:
            try:
                blocks.classify(block)
                blocks.needs_of(block)
            except blocks.Unclassified as error:
                problems.append(str(error))
        self.none(problems)
        counts = collections.Counter((block.language or "nameless", blocks.classify(block)) for block in ALL)
        self.assertGreater(sum(counts.values()), 0)
        print("\n" + "\n".join(f"  {number:3d} {language}: {kind}" for (language, kind), number in sorted(counts.items())))

    def test_what_a_block_prints_stands_behind_a_block_that_runs(self):
        for page in PAGES:
            before = None
            for block in blocks.read_blocks(page):
                if blocks.classify(block) == "output":
                    self.assertIn(before and blocks.classify(before), ("program", "python", "python elsewhere"), block.place)
                before = block

    def test_quoted_lines_stand_where_they_are_quoted_from(self):
        quoted = of_class("quoted")
        self.assertGreaterEqual({block.language for block in quoted}, {"cpp", "cmake"})
        self.none([p for p in map(blocks.quote_problem, quoted) if p])

    def test_programs_compile_and_run(self):
        programs = of_class("program")
        self.assertEqual({block.language for block in programs}, {"cpp", "c"})
        libraries = runners.link_line(SETTING)
        on_page = {page: blocks.read_blocks(page) for page in PAGES}
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda b: runners.run_program(b, on_page[b.page], SETTING, libraries), programs))
        self.none([p for problems in found for p in problems])

    def test_data_can_be_read(self):
        data = of_class("data")
        self.assertGreater(len(data), 0)
        for block in data:
            json.loads(block.text)

    def test_commands_run_or_name_what_exists(self):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda page: runners.run_shell(page, SETTING), PAGES))
        self.none([p for problems, _, _ in found for p in problems])
        ran, checked = sum(ran for _, ran, _ in found), sum(checked for _, _, checked in found)
        print(f"\n  commands: {ran} run, {checked} checked by name")
        self.assertGreater(ran, 0)
        self.assertGreater(checked, 0)


class Python(DocsCase):
    def test_blocks_run(self):
        self.assertTrue(SETTING.python, "TESSERA_PYTHON: got nothing, expected an interpreter with the package tessera; "
                                          "the stage python makes one")
        pages = sorted({block.page for block in of_class("python")})
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda page: runners.run_python(page, SETTING), pages))
        self.none([p for problems, _ in found for p in problems])
        self.assertEqual(sum(len(ran) for _, ran in found), len(of_class("python")))
        self.assertGreater(len(of_class("python")), 0)


class PythonElsewhere(DocsCase):
    """One test a block, so that each is counted as skipped with its reason."""


def skipped_test(block):
    needs = ", ".join(sorted(blocks.needs_of(block)))

    def test(self):
        self.skipTest(f"{block.place} needs {needs}: run by tests/gpu/python/test_docs.py")
    return test


for _number, _block in enumerate(block for block in ALL if "needs" in block.directives):
    setattr(PythonElsewhere, f"test_{_number:02d}_{pathlib.Path(_block.page).stem}_{_block.line}", skipped_test(_block))


class Links(DocsCase):
    def test_relative_links_and_anchors_resolve(self):
        found = [links.link_problems(page) for page in links.markdown_files()]
        self.none([p for problems, _ in found for p in problems])
        self.assertGreater(sum(followed for _, followed in found), 50)

    def test_the_index_names_every_page(self):
        index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
        targets = {(ROOT / "docs" / t.partition("#")[0]).resolve() for t in links.LINK.findall(index) if ":" not in t}
        missing = [page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"
                   and (ROOT / page).resolve() not in targets]
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
