"""Tests of what is added for the peers of a pack, without torch or a GPU: the judgement of FP8 layers with planted errors, block
quantisation, what the notes say, tuning, the engines' modules, the pack's scripts. Part of run.py --self-test.

Where torch is there, the parts in torch are compared with the plain ones on the CPU too; else that is said.
"""
import contextlib
import itertools
import json
import lzma
import math
import operator
import pathlib
import random
import re
import sys
import tarfile
import tempfile
import types

import cases
import check
import children
import engine_modules
import fp8
import peer_site
import tactics
import theirs

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "pack"))
import lay  # noqa: E402
import unpack  # noqa: E402

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, TOKENS = 256, 256, 4, 2, 4
SAMPLED = (0, 1, 3)


def product(matrix, vector):
    return [sum(map(operator.mul, row, vector)) for row in matrix]


def swiglu(gate_up):
    half = len(gate_up) // 2
    return [gate / (1.0 + math.exp(-gate)) * up for gate, up in zip(gate_up[:half], gate_up[half:])]


class Layer:
    """A small MoE layer in plain Python, with normal weights as the benchmark's; exact, or quantised as the FP8 peers do it."""

    def __init__(self):
        chance = random.Random(11)

        def matrix(rows, columns, deviation):
            return [[chance.gauss(0, deviation) for _ in range(columns)] for _ in range(rows)]
        self.x = matrix(TOKENS, HIDDEN, 1.0)
        # The gate's deviation is that of H = 2048 and weights of 0.02.
        self.gate_up = [matrix(2 * INTERMEDIATE, HIDDEN, 0.905 / math.sqrt(HIDDEN)) for _ in range(EXPERTS)]
        self.down = [matrix(HIDDEN, INTERMEDIATE, 0.02) for _ in range(EXPERTS)]
        self.ids = [[token % EXPERTS, (token + 1 + token // 2) % EXPERTS] for token in range(TOKENS)]
        self.weights = [[0.8, 0.2], [0.5, 0.5], [0.7, 0.3], [0.3, 0.7]]
        self.quantised = {"gate_up": [fp8.quantised_matrix(part) for part in self.gate_up],
                          "down": [fp8.quantised_matrix(part) for part in self.down]}

    def restored(self, name, change=lambda scales: scales):
        return [fp8.restored_matrix(values, change(scales)) for values, scales in self.quantised[name]]

    def slots(self, gate_up, down, quantise, ids=None):
        """Weighted rows [T][k][H]."""
        rows = []
        for x, experts, weights in zip(self.x, ids or self.ids, self.weights):
            x = quantise(x)
            rows.append([])
            for expert, weight in zip(experts, weights):
                hidden = quantise(swiglu(product(gate_up[expert], x)))
                rows[-1].append([weight * value for value in product(down[expert], hidden)])
        return rows


def summed(slots):
    return [[sum(column) for column in zip(*rows)] for rows in slots]


def through_fp8(row):
    return fp8.restored_row(*fp8.quantised_row(row))


def neighbours(row):
    """An activation row whose groups have each other's scales."""
    values, scales = fp8.quantised_row(row)
    return fp8.restored_row(values, scales[1:] + scales[:1])


def along_k(scales):
    return [row[1:] + row[:1] for row in scales]


def along_n(scales):
    return scales[1:] + scales[:1]


def projected(rows):
    chance = random.Random(7)
    signs = [[chance.choice((-1, 1)) for _ in range(HIDDEN)] for _ in range(check.NUM_PROBES)]
    return [sum(map(operator.mul, sign, row)) for row in rows for sign in signs]


def output(rows):
    return {"rows": check.to_text("f", [value for token in SAMPLED for value in rows[token]]),
            "projections": check.to_text("f", projected(rows))}


def reference_of(exact_slots):
    """As the judge's answer."""
    exact = summed(exact_slots)
    coded = {"tokens": list(SAMPLED), "exact": check.to_text("d", [value for t in SAMPLED for value in exact[t]]),
             "allowed": check.to_text("d", [1e-3] * (HIDDEN * len(SAMPLED))),
             "slots": check.to_text("f", [value for t in SAMPLED for slot in exact_slots[t] for value in slot]),
             "projections": check.to_text("f", projected(exact)),
             "norms": check.to_text("f", [math.hypot(*row) for row in exact])}
    return check.decoded_reference(coded)


def planted_results(layer, gate_up, down):
    """(what is wrong, rows [T][H], words of the judgement) of FP8 layers that are wrong in one thing."""
    good = layer.slots(gate_up, down, through_fp8)

    def changed(change):
        rows = [list(row) for row in summed(good)]
        change(rows)
        return rows
    swapped = [list(experts) for experts in layer.ids]
    swapped[1][1] = next(expert for expert in range(EXPERTS) if expert not in swapped[1])
    light = [list(experts) for experts in layer.ids]
    light[0][1] = next(expert for expert in range(EXPERTS) if expert not in light[0])
    halves = [part[INTERMEDIATE:] + part[:INTERMEDIATE] for part in gate_up]
    dropped = [[slot for k, slot in enumerate(rows) if (token, k) != (0, 1)] for token, rows in enumerate(good)]
    heavier = [[[value * (1.3 if (token, k) == (3, 1) else 1.0) for value in slot] for k, slot in enumerate(rows)]
               for token, rows in enumerate(good)]
    row, any_sampled = "relative error|element", r"token \d+[,:]"
    yield "swapped expert", summed(layer.slots(gate_up, down, through_fp8, swapped)), "token 1"
    yield "swapped light expert", summed(layer.slots(gate_up, down, through_fp8, light)), "token 0"
    yield "dropped slot", summed(dropped), "token 0"
    yield "wrong routing weight", summed(heavier), "token 3"
    yield "gate and up swapped", summed(layer.slots(halves, down, through_fp8)), row
    yield "scales of the next block along K, down", summed(layer.slots(gate_up, layer.restored("down", along_k), through_fp8)), row
    yield "scales of the next block along N, down", summed(layer.slots(gate_up, layer.restored("down", along_n), through_fp8)), row
    yield "scales of the next block, gate and up", summed(layer.slots(layer.restored("gate_up", along_k), down, through_fp8)), row
    yield "scales of the next group, activations", summed(layer.slots(gate_up, down, neighbours)), row
    yield "row not written", changed(lambda rows: rows[2].__setitem__(slice(None), [math.nan] * HIDDEN)), "token 2: a projection"
    yield "row of zeros", changed(lambda rows: rows[2].__setitem__(slice(None), [0.0] * HIDDEN)), "token 2: a projection"
    yield "rows swapped", changed(lambda rows: rows.__setitem__(slice(None), [rows[1], rows[0], *rows[2:]])), any_sampled
    yield "one element", changed(lambda rows: rows[3].__setitem__(5, rows[3][5] + 0.7 * math.hypot(*rows[3]) / 16)), "token 3, element 5"


def check_fp8_judgement():
    """An FP8 layer is right within its own limits and wrong within those of 16 bits; every planted error is refused."""
    layer = Layer()
    exact = layer.slots(layer.gate_up, layer.down, list)
    reference = reference_of(exact)
    gate_up, down = layer.restored("gate_up"), layer.restored("down")
    good = output(summed(layer.slots(gate_up, down, through_fp8)))
    found = check.judged(good, reference, check.PEER_SLACK, "fp8-block")
    assert found["problem"] == "" and 0.8 < found["row_error"] / check.FP8_ERROR < 1.25, found
    wrong = list(planted_results(layer, gate_up, down))
    for what, rows, words in wrong:
        found = check.judged(output(rows), reference, check.PEER_SLACK, "fp8-block")
        assert re.search(words, found["problem"]), (what, found)
    for name, parts in theirs.LAYERS.items():  # each layer is judged by its own format's limits
        inexact, right = check.judged(good, reference, check.PEER_SLACK, parts.format), parts.format == "fp8-block"
        assert (inexact["problem"] == "") == right, (name, inexact)
        assert check.judged(output(summed(exact)), reference, check.PEER_SLACK, parts.format)["problem"] == "", name
        for what, rows, _ in wrong[:3] + wrong[-4:]:
            assert check.judged(output(rows), reference, check.PEER_SLACK, parts.format)["problem"], (name, what)
    short = {**good, "rows": check.to_text("f", [1.0])}
    assert "expected 768" in check.judged(short, reference, 1.0, "fp8-block")["problem"]
    with expected(ValueError, "got format 'fp4'"):
        check.judged(good, reference, 1.0, "fp4")


@contextlib.contextmanager
def expected(kind, words):
    try:
        yield
    except kind as error:
        assert words in str(error), (words, str(error))
    else:
        raise AssertionError(f"no {kind.__name__}, expected {words}")


def check_quantisation():
    codes = sorted({math.ldexp(1 + m / 8, e) for e in range(-6, 9) for m in range(8)} | {math.ldexp(m, -9) for m in range(8)})
    codes = [code for code in codes if code <= fp8.LARGEST]
    assert len(codes) == 127 and all(fp8.e4m3(sign * code) == sign * code for code in codes for sign in (1, -1))
    for low, high in itertools.pairwise(codes):  # nearest, a tie to the even neighbour
        assert fp8.e4m3(low + 0.49 * (high - low)) == low and fp8.e4m3(low + 0.51 * (high - low)) == high
    assert [fp8.e4m3(value) for value in (17.0, 19.0, 2.0**-10, 3 * 2.0**-10, 500.0, -1e9)] == [16.0, 20.0, 0.0, 2.0**-8, 448.0, -448.0]
    chance = random.Random(3)
    values = [math.exp(chance.uniform(0, 5 * math.log(2))) for _ in range(40000)]
    rms = math.sqrt(sum((fp8.e4m3(v) / v - 1) ** 2 for v in values) / len(values))
    weighted = math.sqrt(sum((fp8.e4m3(v) - v) ** 2 for v in values) / sum(v * v for v in values))
    assert abs(weighted / check.E4M3_ERROR - 1) < 0.03 and rms < 2.0**-4, (weighted, rms)
    row = [chance.gauss(0, 1) * (100 if column >= 128 else 1) for column in range(130)]
    quantised, scales = fp8.quantised_row(row)
    assert len(scales) == 2 and max(map(abs, quantised[:128])) == max(map(abs, quantised[128:])) == 448.0
    assert all(abs(got - value) <= 2.0**-4 * abs(value) + 2.0**-10 * scales[column // 128]
               for column, (got, value) in enumerate(zip(fp8.restored_row(quantised, scales), row)))
    matrix = [[chance.gauss(0, 10.0 ** (n // 128)) for _ in range(140)] for n in range(129)]
    quantised, scales = fp8.quantised_matrix(matrix)
    assert [len(part) for part in scales] == [2, 2] and scales[1][0] > scales[0][0]
    assert fp8.quantised_row([0.0] * 4) == ([0.0] * 4, [1e-10 / 448.0])
    return matrix, quantised, scales


def check_torch_parts(matrix, quantised, scales):
    """The rule in torch is the plain one."""
    try:
        import torch
    except ImportError:
        return "skipped: no torch: the quantisation in torch"
    values, got = fp8.quantised_weights(torch, torch.tensor([matrix, matrix], dtype=torch.float32), chunk=1)
    assert torch.allclose(got[1], torch.tensor(scales), rtol=1e-6, atol=0)
    differing = (values[0].float() != torch.tensor(quantised)).sum().item()
    assert differing <= 3, differing  # fp32's division may fall on the other side of a tie
    return ""


def check_notes(folder):
    assert all(parts.format in check.FORMATS for parts in theirs.LAYERS.values())
    assert {library: theirs.layers(library) for library in cases.LAYERS} == cases.LAYERS
    assert {layer: cases.format_of(layer) for layer in theirs.LAYERS} == {
        layer: parts.format for layer, parts in theirs.LAYERS.items()}
    readme = (HERE / "README.md").read_text()
    assert theirs.markdown_table() in readme, "README.md: theirs and ours: expected theirs.markdown_table()"
    for layer in ("sglang triton fp8", "vllm triton fp8"):
        assert "intermediate size 2880" in theirs.does_not_take(layer, 2880, 2880) and not theirs.does_not_take(layer, 4096, 14336)
        assert theirs.does_not_take(layer, 2816, 704) and not theirs.does_not_take(layer, 4096, 1408)
    assert not theirs.does_not_take("deepgemm fp8", 2880, 2880) and not theirs.does_not_take("sglang triton", 2880, 2880)
    for version in ("3_1_0", "3_10_0", "3_9_1"):
        (folder / f"triton_{version}").mkdir()
        (folder / f"triton_{version}" / "E=8.json").write_text("{}")
    (folder / "triton_3_1_0" / "E=9.json").write_text("{}")
    (folder / "E=8.json").write_text("{}")
    for name, version, found in (("E=8.json", "3.9.1", "triton_3_9_1/E=8.json"), ("E=8.json", "3.6.0", "triton_3_10_0/E=8.json"),
                                 ("E=9.json", "3.6.0", "triton_3_1_0/E=9.json"), ("E=7.json", "3.6.0", ""),
                                 ("E=8.json", None, "E=8.json"), ("E=7.json", None, "")):
        assert peer_site.tuned_file(folder, name, version) == found, (name, version)
    assert peer_site.tuning_text("", "E=7.json") == "none (E=7.json): the engine's default for this number of tokens"
    assert theirs.note("deepgemm", rows=3) == {"theirs": theirs.LAYERS["deepgemm"].theirs,
                                               "ours": theirs.LAYERS["deepgemm"].ours, "rows": 3}


def check_tactics(folder):
    second = [((tile, n), (1, 1), False) for tile in (64, 128) for n in (64, 128)]
    offered = [(tile, ((tile, n), swizzle), other) for tile in (64, 128) for n in (64, 128) for swizzle in (1, 2)
               for other in second if other[0][0] == tile]
    wanted = (128, ((128, 64), 2), ((128, 64), (1, 1), False))
    asked = []

    def cost(tactic):
        asked.append(tactic)
        return sum(a != b for a, b in zip(tactic, wanted))
    assert tactics.best_by_parts(offered, cost) == (wanted, len(asked)) and len(asked) == len(set(asked)) < len(offered)
    tuned, runs = tactics.Tuned(), []

    def tune():
        runs.append(1)
        return f"tactic {len(runs)}", "words"
    first, other = object(), object()
    assert tuned.tactic("cell", first, [0], tune)[0] == tuned.tactic("cell", first, [0], tune)[0] == "tactic 1"
    assert tuned.tactic("cell", other, [1], tune)[0] == "tactic 1"  # a chain's layers take the first one's
    assert tuned.tactic("cell", first, [1], tune)[0] == tuned.tactic("cell", other, [2], tune)[0] == "tactic 2"
    assert tuned.tactic("cell 2", other, [1], tune)[0] == "tactic 3" and len(runs) == 3
    (folder / "index_2.json").write_text(json.dumps([["g2", {"tile": [128, 64], "topk": 2}, "g2_a"]]))
    cache = tactics.Ahead("g2", peer_site.compiled_index(folder), folder, lambda key: key and {"topk": key, "tile": [128, 64]})
    cache.load = str.upper
    assert cache.get(2) == cache.get(2) == "G2_A" and cache.get(4, "no") == "no" and cache.get(0) is None
    assert (cache.loaded, cache.missed) == (1, 2)
    key = ("b", "b", (128, 64), (1, 1), 2, True, False, 132, True)
    assert tactics.finalize_key(key, "b") == {"tile": [128, 64], "cluster": [1, 1], "topk": 2, "finalize": True,
                                              "raster": False, "mac": 132, "pdl": True}
    assert tactics.finalize_key(key, "half") is None
    key = ("b", "b", (128, 64), (1, 1), 2, 1, False, 132, True, tactics.SWIGLU, 1.0)
    assert tactics.gather_key(key, "b", (1.0,))["swizzle"] == 1 and tactics.gather_key(key, "b", (2.0,)) is None
    (folder / "cpuinfo").write_text("processor: 0\nflags : " + " ".join(tactics.CPU_FLAGS) + " sse\n")
    assert tactics.cpu_fits(folder / "cpuinfo") and not tactics.cpu_fits(folder / "none")
    (folder / "cpuinfo").write_text("flags : avx2 fma\n")
    assert not tactics.cpu_fits(folder / "cpuinfo")


SGLANG_FILE = """from sgl_kernel import moe_sum_reduce
from sglang.kernels.ops.moe import moe_align_block_size
from sglang.kernels.ops.moe.here import HERE
from sglang.srt.environ import envs
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.runtime_context import get_exec
from sglang.srt.utils import get_device_name, is_cuda, is_hip
from sglang.srt.utils.custom_op import register_custom_op
@register_custom_op(mutates_args=["x"])
def answer(): return [get_device_name(), is_cuda(), is_hip(), envs.ANY_SWITCH.get(), HERE]
"""
VLLM_FILE = """import vllm.envs as envs
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm import _custom_ops as ops
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import get_config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm.model_executor.layers.fused_moe.utils import enable_swap_ab, moe_kernel_quantize_input
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton
from vllm.utils.math_utils import round_up
from vllm.utils.platform_utils import get_device_name_as_file_name
init_logger("x").warning_once("%s", "said", scope="global")
def answer(): return [get_device_name_as_file_name(), enable_swap_ab(16, 64), enable_swap_ab(64, 64), round_up(5, 4), get_config()]
def quantised(dtype, shape):
    return moe_kernel_quantize_input(A="rows", A_scale=None, quant_dtype=dtype, per_act_token_quant=False, block_shape=shape)
"""


def check_engine_modules(folder):
    """Files that import as the engines' do find all they name; what lies beside them is found too."""
    before = set(sys.modules)
    names = ("moe_sum_reduce", "silu_and_mul", "moe_align_block_size", "per_token_group_quant_fp8", "per_token_group_quant",
             "moe_sum", "vllm_moe_align_block_size")
    kernels = types.SimpleNamespace(SM90=True, DEVICE_NAME="NVIDIA H200", **dict.fromkeys(names, lambda *given, **_: given))
    for path, text in (("sglang/srt/layers/moe/moe_runner/triton_utils/file.py", SGLANG_FILE),
                       ("sglang/srt/layers/moe/moe_runner/triton_utils/__init__.py", ""),
                       ("sglang/kernels/ops/moe/here.py", "HERE = 7\n"), ("vllm/model_executor/layers/fused_moe/file.py", VLLM_FILE)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    try:
        engine_modules.sglang(folder, kernels)
        engine_modules.vllm(folder, kernels, types.SimpleNamespace(language=None, next_power_of_2=None), "e4m3")
        import sglang.srt.layers.moe.moe_runner.triton_utils.file as of_sglang
        import vllm.model_executor.layers.fused_moe.file as of_vllm
        assert of_sglang.answer() == ["NVIDIA H200", True, False, False, 7]
        assert of_vllm.answer() == ["NVIDIA_H200", True, False, 8, None]
        assert of_vllm.quantised(None, None) == ("rows", None) and of_vllm.quantised("e4m3", [128, 128]) == ("rows", 128)
        with expected(ValueError, "expected [128, 128]"):
            of_vllm.quantised("e4m3", [64, 128])
        with expected(ValueError, "expected silu"):
            of_vllm.apply_moe_activation("gelu", None, None)
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def check_absence(folder):
    """What no pack brings says why; as a worker's answer, that is the reason listed."""
    was, peer_site.ENGINES = peer_site.ENGINES, folder / "none"
    try:
        with expected(FileNotFoundError, "no files of vllm; bench/peers/pack/build.sh"):
            peer_site.need_engine("vllm")
        assert peer_site.engine_version("vllm") == "unknown"
        peer_site.ENGINES = folder
        (folder / "versions.json").write_text('{"vllm": "0.1"}')
        assert peer_site.engine_version("vllm") == "0.1" and peer_site.engine_version("sglang") == "unknown"
    finally:
        peer_site.ENGINES = was
    program = "import peer_site, worker, sys; worker.serve(lambda: peer_site.need_engine('vllm'), int(sys.argv[-1]))"
    command = ["env", f"PYTHONPATH={HERE}", f"PEER_SITE={folder / 'none'}", sys.executable, "-c", program]
    child = children.Child("vllm", command, folder / "vllm.log")
    with expected(children.Failed, "FileNotFoundError: "):
        child.ask({"do": "hello"}, 60)


def check_pack(folder):
    """What is packed is laid out, once, in two calls as in one; only what was carried."""
    lay.self_test()
    made, pack, site = folder / "made" / "site", folder / "pack", folder / "site"
    for part in ("partA", "partB", "src/engines/vllm"):
        (pack / part).mkdir(parents=True)
    (made / "package").mkdir(parents=True)
    (made / "package" / "file.py").write_text("content")
    with tarfile.open(pack / "partB" / "site.tar.xz", "w:xz") as packed:
        packed.add(made, "site")
    (pack / "src" / "engines" / "vllm" / "fused_moe.py").write_text("engine")
    for name in unpack.SINGLE:
        (pack / name).write_bytes(lzma.compress(name.encode()))
    library = pack / "partA" / "cutlass_ir.xz"
    library.rename(folder / "later.xz")
    unpack.unpack(pack, site)
    assert list(unpack.found(site).values()) == [True, False, True] and (site / "package" / "file.py").read_text() == "content"
    (site / "package" / "file.py").write_text("changed")
    (folder / "later.xz").rename(library)
    unpack.unpack(pack, site)
    assert all(unpack.found(site).values()) and (site / "package" / "file.py").read_text() == "changed"
    assert (site / unpack.SINGLE["partA/cutlass_ir.xz"]).read_bytes() == b"partA/cutlass_ir.xz"
    assert (site / "engines" / "vllm" / "fused_moe.py").read_text() == "engine"


def run():
    check_fp8_judgement()
    skipped = check_torch_parts(*check_quantisation())
    for test in (check_notes, check_tactics, check_engine_modules, check_absence, check_pack):
        with tempfile.TemporaryDirectory() as name:
            test(pathlib.Path(name))
    if skipped:
        print(f"self_test_adapters.py: {skipped}")


if __name__ == "__main__":
    run()
    print("self_test_adapters.py: passed")
