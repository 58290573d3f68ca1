#!/usr/bin/env python3
"""Prints docs/reference/support.md: what was tested where, with which versions and when, out of the records of the tests.

  support_matrix.py > docs/reference/support.md
  support_matrix.py --serve                        writes the table of docs/how-to/serve.md between its markers

Rows come from what the tests run on (the model zoo of the GPU suite, the battery of the layer, the peers' comparison), versions
and dates from the record of their last run on a GPU. What stands in no record stands in no row.
"""
import ast
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORD = json.loads((ROOT / "tests" / "gpu" / "RECORD.json").read_text())
CASES = json.loads((ROOT / "tests" / "moe" / "cases.json").read_text())
RESULTS = ROOT / "bench" / "results"
FAMILIES = {"qwen3_moe": "Qwen3 MoE", "mixtral": "Mixtral", "olmoe": "OLMoE", "deepseek_v3": "DeepSeek-V3, R1",
            "gpt_oss": "gpt-oss (16-bit weights)"}
TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
HEAD = """# What was tested

Made by `scripts/support_matrix.py` from the records of the tests and of the measurements; the tests compare. A cell that is not here was
not tested. What the layer takes in general: [supported](supported.md), words: [glossary](../glossary.md).

"""


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines) + "\n"


def functions(path):
    """Names of the module's functions, without importing it."""
    return [node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)]


def fp8_families():
    return set(ast.literal_eval(assigned("tests/gpu/python/fp8_zoo.py", "WIDTHS")))


def assigned(path, name):
    """What a module assigns to the name, as a syntax tree."""
    return next(node.value for node in ast.parse((ROOT / path).read_text()).body
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name)


def types_by_device():
    """Device -> types of torch that the suite runs every family in there: its tests go through this table of the package."""
    table = assigned("python/tessera/transformers.py", "DTYPES")
    return {key.value: {element.attr for element in value.elts} for key, value in zip(table.keys, table.values)}


def models():
    """Real Transformers classes with random weights, compared with eager experts: the zoo of the GPU suite."""
    entry = RECORD["python"]
    versions = entry["packages"]
    fp8 = fp8_families()
    rows = []
    for name in functions("tests/gpu/python/model_zoo.py"):
        if name not in FAMILIES:
            continue
        for form in ["of the model's type", *(["FP8, blocks of 128 x 128"] if name in fp8 else [])]:
            for device, types in types_by_device().items():
                rows.append([FAMILIES[name], form, {"cpu": "CPU", "cuda": entry["gpu"]}[device],
                             *("yes" if dtype in types else "no" for dtype in TYPES),
                             f"Transformers {versions['transformers']}, PyTorch {versions['torch']}", entry["date"]])
    return ("## Model families in Transformers\n\nThe types are the model's: of its activations. On a GPU layers are bf16 or f16.\n\n" +
            table(["model family", "weights", "device", *TYPES.values(), "tested with", "date"], rows))


def layers():
    """The battery: every case on every back end that its types allow."""
    rows = []
    record = RECORD["moe"]
    for form in sorted({case["format"] for case in CASES}):
        for dtype, short in TYPES.items():
            count = sum(dtype in case["dtypes"] for case in CASES if case["format"] == form)
            if not count:
                continue
            rows.append([form, short, "CPU", count, "every run of the tests", ""])
            if dtype != "float32":
                rows.append([form, short, record["gpu"], count, record["toolkit"] + ", driver " + record["driver"],
                             record["date"]])
    return ("## The layer by itself\n\nCases of the battery against an fp64 oracle, each with its bound.\n\n" +
            table(["weight format", "type", "device", "cases", "tested with", "date"], rows))


def shapes():
    """Full-size layers of published models, checked against fp64 while they were timed."""
    rows = []
    for path in sorted(RESULTS.glob("peers_h*.json")):
        content = json.loads(path.read_text())
        if content.get("schema") != 2:
            continue
        cells = content["cells"]
        machine = content["meta"]["machine"]
        device = machine if isinstance(machine, str) else machine.get("gpu") or machine.get("GPU") or next(iter(machine.values()))
        for preset in dict.fromkeys(cell["preset"] for cell in cells):
            mine = [cell for cell in cells if cell["preset"] == preset]
            tokens = sorted({cell["tokens"] for cell in mine})
            forms = sorted({form for cell in mine for form in cell["floors"]})
            rows.append([preset, ", ".join(forms), device, f"{tokens[0]:,} to {tokens[-1]:,} tokens",
                         str(content["meta"]["date"])[:10]])
    return "## Shapes of published models\n\n" + table(["shape", "weights", "device", "checked for", "date"], rows)


def suites():
    rows = [[name, entry["gpu"], entry["passed"], entry.get("toolkit") or
             ", ".join(f"{package} {version}" for package, version in entry["packages"].items()), entry["date"]]
            for name, entry in RECORD.items()]
    return "## GPU suites\n\n" + table(["suite", "device", "tests passed", "tested with", "date"], rows)


def engines():
    """Whole models in engines: the zoo of the GPU suite, and what bench/engines measured with the plug-in in the engine."""
    entry = RECORD["python"]
    tested = f"Transformers {entry['packages']['transformers']}"
    fp8 = fp8_families()
    types = ", ".join(short for dtype, short in TYPES.items() if dtype in types_by_device()["cuda"])
    rows = [[FAMILIES[name], types + (", FP8" if name in fp8 else ""), tested, "a few layers",
             "logits within their bound of eager experts'", entry["gpu"], entry["date"]]
            for name in functions("tests/gpu/python/model_zoo.py") if name in FAMILIES]
    for path in sorted(RESULTS.glob("vllm_*.json")):
        for row in json.loads(path.read_text())["rows"]:
            side = row["sides"]["tessera"]
            ours = sum(count for name, count in (side.get("experts") or {}).items() if name.startswith("Tessera"))
            rows.append([row["model"], row["format"], f"vLLM {side['vllm']}",
                         f"{row['layers']} layers, {row['start']}; experts of {ours} layers Tessera's",
                         compared(row), side["gpu"], row["date"]])
    return table(["model", "weights", "engine", "what ran", "against the engine's own experts", "device", "date"], rows)


def compared(row):
    """What the record has of both sides, and why it has no more."""
    found, tokens = [], row.get("tokens")
    if tokens:
        apart = tokens["ties"] + len(tokens["no_ties"])
        where = "all of them" if not tokens["no_ties"] else f"{tokens['ties']} of them"
        found.append(f"greedy tokens of {tokens['requests']} requests: {apart} part somewhere, {where} where both sides give the two "
                     f"tokens log-probabilities within {row['tie']}")
    if row["sides"]["tessera"].get("throughput"):
        found.append("[how fast](../performance/models.md#in-vllm)")
    return "; ".join([*found, *(f"no {what}: {why}" for what, why in (row.get("left_out") or {}).items())])


def write_serve():
    page = ROOT / "docs" / "how-to" / "serve.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(SERVE.sub(lambda found: found[1] + engines() + found[2], text), encoding="utf-8")


SERVE = re.compile(r"(<!-- made by scripts/support_matrix.py --serve -->\n).*?(<!-- end -->)", re.DOTALL)

if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        sys.exit(write_serve())
    sys.stdout.write((HEAD + models() + layers() + shapes() + suites()).rstrip() + "\n")
