#!/usr/bin/env python3
"""Lays the contents of the downloaded wheels out in the pack's folder; nothing of them belongs to this repository.

  lay.py PACK             all of it, from PACK/build/wheels
  lay.py PACK --engines   the engines' files alone
  lay.py --self-test

PACK/build/site        what goes to the GPU machine: tvm-ffi, DeepGEMM, cutlass-dsl (whole wheels) and FlashInfer, trimmed
PACK/build/flashinfer  FlashInfer's package with the sources that nvcc compiles, and two headers it would fetch
PACK/build/sglang_jit  SGLang's CUDA sources
PACK/src/engines       SGLang's and vLLM's files and tuned configurations for Hopper GPUs, unmodified; versions.json
"""
import argparse
import fnmatch
import hashlib
import json
import pathlib
import shutil
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
WHOLE = ("apache_tvm_ffi", "sgl_deep_gemm", "nvidia_cutlass_dsl", "nvidia_cutlass_dsl_libs_base", "nvidia_cutlass_dsl_libs_core",
         "nvidia_cutlass_dsl_libs_cu13")
NEEDLESS = ("nvidia_cutlass_dsl/cu13/lib/libcuda_dialect_runtime_static.a", "nvidia_cutlass_dsl/cu13/lib/stubs/*")  # for linking
TRITON_UTILS = "sglang/srt/layers/moe/moe_runner/triton_utils"
FUSED_MOE = "vllm/model_executor/layers/fused_moe"
TUNED = ("configs/*NVIDIA_H200*.json", "configs/*NVIDIA_H100_80GB_HBM3*.json")
ENGINES = {
    "sglang": ("sglang/kernels/ops/moe/moe_align_small_numel.py", "sglang/kernels/ops/moe/fused_moe_triton_kernels.py",
               *(f"{TRITON_UTILS}/{name}.py" for name in ("__init__", "moe_align_block_size", "fused_moe",
                                                          "fused_moe_triton_config")),
               *(f"{TRITON_UTILS}/{pattern}" for pattern in TUNED)),
    "vllm": (f"{FUSED_MOE}/fused_moe.py", f"{FUSED_MOE}/moe_align_block_size.py",
             *(f"{FUSED_MOE}/{pattern}" for pattern in TUNED))}

# What cute_dsl_fused_moe_bf16 imports. Files are unmodified, except package __init__ files: the originals import every kernel
# family, and with them packages that are not here.
FLASHINFER = """version.py _build_meta.py api_logging.py tllm_enums.py utils.py compilation_context.py autotune_cache.py tllm_utils.py
tactics_blocklist.py artifacts.py py.typed
autotuner/__init__.py autotuner/_graph_timing.py autotuner/autotuner.py autotuner/initializers.py autotuner/protocol.py
jit/env.py jit/core.py jit/cpp_ext.py jit/utils.py jit/spdlog.py jit/moe_utils.py jit/_cuda_architecture.py jit/cute_dsl_core.py
jit/_cute_dsl_source.py jit/tllm_utils.py jit/cubin_loader.py
cute_dsl/utils.py cute_dsl/availability.py
fused_moe/utils.py fused_moe/cute_dsl/moe_utils.py fused_moe/cute_dsl/sm90_fused_moe.py fused_moe/cute_dsl/sm90_tuner.py
fused_moe/cute_dsl/sm90_contiguous_gather_grouped_gemm_act_fusion.py
fused_moe/cute_dsl/sm90_contiguous_grouped_gemm_finalize_fusion.py
fused_moe/cute_dsl/hopper/__init__.py fused_moe/cute_dsl/hopper/utils.py
fused_moe/cute_dsl/hopper/contiguous_gather_grouped_gemm_act_fusion.py
fused_moe/cute_dsl/hopper/contiguous_grouped_gemm_finalize_fusion.py
fused_moe/cute_dsl/common/__init__.py fused_moe/cute_dsl/common/kernel_utils.py
trace/template.py trace/templates/moe.py trace/templates/_init_helpers.py trace/templates/gemm.py
trace/templates/quantize.py""".split()
FLASHINFER_INIT = {
    "": "from .version import __version__ as __version__\nfrom . import jit as jit\nfrom .autotuner import autotune as autotune\n",
    "jit": "from . import env as env\n",
    "cute_dsl": "from .availability import is_cute_dsl_available as is_cute_dsl_available\n",
    "fused_moe": "", "fused_moe/cute_dsl": "", "trace": "", "trace/templates": ""}

# FlashInfer's moe_utils names types of two headers that its JIT fetches from the network: an enum of element types, a tag inside
# the library and no part of any binary interface, and one of scale layouts. (block format, signed, integer, bits, number).
HEADERS = "flashinfer/trtllm/batched_gemm/trtllmGen_bmm_export/trtllm/gen"
TYPES = {"Bfloat16": (0, 1, 0, 16, 0), "Bool": (0, 0, 1, 1, 1), "E2m1": (1, 1, 0, 4, 2), "E2m3": (1, 1, 0, 6, 3),
         "E3m2": (1, 1, 0, 6, 4), "E4m3": (0, 1, 0, 8, 5), "E5m2": (0, 1, 0, 8, 6), "Fp16": (0, 1, 0, 16, 7),
         "Fp32": (0, 1, 0, 32, 8), "Int8": (0, 1, 1, 8, 9), "Int32": (0, 1, 1, 32, 10), "Int64": (0, 1, 1, 64, 11),
         "MxE2m1": (1, 1, 0, 4, 12), "MxE4m3": (1, 1, 0, 8, 13), "MxInt4": (1, 1, 1, 4, 14), "UE8m0": (0, 0, 0, 8, 15),
         "UInt8": (0, 0, 1, 8, 16), "UInt16": (0, 0, 1, 16, 17), "UInt32": (0, 0, 1, 32, 18), "UInt64": (0, 0, 1, 64, 19),
         "UInt128": (0, 0, 1, 128, 20), "Void": (0, 1, 0, 0, 21)}
LAYOUTS = ("Linear", "R8c4", "R8c16", "R128c4", "Unswizzled")


def enum_header(name, entries, base=""):
    return ("#pragma once\n#include <cassert>\n#include <cstdint>\n#include <string>\n#include <vector>\n"
            "namespace batchedGemm { namespace trtllm { namespace gen {\n"
            f"enum class {name}{base} {{ {', '.join(entries)} }};\n}}}}}}\n")


def write_headers(target):
    (target / HEADERS).mkdir(parents=True, exist_ok=True)
    codes = [f"{name} = {block << 24 | signed << 20 | integer << 16 | bits << 8 | number}u"
             for name, (block, signed, integer, bits, number) in TYPES.items()]
    (target / HEADERS / "DtypeDecl.h").write_text(enum_header("Dtype", codes, " : uint32_t"))
    (target / HEADERS / "SfLayoutDecl.h").write_text(enum_header("SfLayout", LAYOUTS))


def wheel(folder, package):
    found = sorted(folder.glob(f"{package}-*.whl"))
    if len(found) != 1:
        sys.exit(f"lay.py: {folder}: {len(found)} wheels of {package}, expected one")
    return zipfile.ZipFile(found[0])


def fitting(packed, patterns):
    """Names of the files that fit; each pattern must fit something."""
    names, found = [name for name in packed.namelist() if not name.endswith("/")], []
    for pattern in patterns:
        chosen = fnmatch.filter(names, pattern)
        if not chosen:
            sys.exit(f"lay.py: {packed.filename}: nothing fits {pattern}")
        found += chosen
    return found


def extract(packed, target, names, strip=""):
    """`strip` is taken off the front of the names."""
    for name in names:
        path = target / name[len(strip):]
        path.parent.mkdir(parents=True, exist_ok=True)
        with packed.open(name) as content, open(path, "wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)


def trim_flashinfer(source, target):
    for name in FLASHINFER:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)
    for name, text in FLASHINFER_INIT.items():
        (target / name / "__init__.py").write_text('"""Trimmed: the original imports every kernel family."""\n' + text)


def version_in(packed):
    """Of a wheel, from its file name NAME-VERSION-..."""
    return pathlib.PurePath(packed.filename).name.split("-")[1]


def lay_engines(wheels, target):
    shutil.rmtree(target, ignore_errors=True)
    versions = {}
    for package, patterns in ENGINES.items():
        packed = wheel(wheels, package)
        extract(packed, target, fitting(packed, patterns))
        versions[package] = version_in(packed)
    (target / "versions.json").write_text(json.dumps(versions) + "\n")
    return sum(path.is_file() for path in target.rglob("*"))


def mark_of(wheels):
    """Equal where laying out would make the same again."""
    content = [HERE.joinpath("lay.py").read_text(), *(f"{path.name} {path.stat().st_size}" for path in sorted(wheels.glob("*.whl")))]
    return hashlib.sha256("\n".join(content).encode()).hexdigest() + "\n"


def lay(pack):
    """How many files the site has. What an earlier call laid out is kept."""
    work, wheels = pack / "build", pack / "build" / "wheels"
    site, mark = work / "site", work / "laid"
    if not mark.is_file() or mark.read_text() != mark_of(wheels):
        mark.unlink(missing_ok=True)
        lay_anew(work, wheels, site)
        mark.write_text(mark_of(wheels))  # last: an interrupted call is done again
    return sum(path.is_file() for path in site.rglob("*"))


def lay_anew(work, wheels, site):
    for folder in (site, work / "flashinfer", work / "sglang_jit", work / "headers"):
        shutil.rmtree(folder, ignore_errors=True)
    for package in WHOLE:
        packed = wheel(wheels, package)
        needless = {name for pattern in NEEDLESS for name in fnmatch.filter(packed.namelist(), pattern)}
        extract(packed, site, [name for name in fitting(packed, ["*"]) if name not in needless])
    packed = wheel(wheels, "flashinfer_python")
    extract(packed, work, fitting(packed, ["flashinfer/*"]))
    trim_flashinfer(work / "flashinfer", site / "flashinfer")
    write_headers(work / "headers")
    packed = wheel(wheels, "sglang")
    extract(packed, work / "sglang_jit", fitting(packed, ["sglang/kernels/jit/include/*", "sglang/kernels/jit/csrc/*"]),
            strip="sglang/kernels/jit/")


def self_test():
    pins = [line.split("==") for line in (HERE / "wheels.txt").read_text().splitlines() if line and not line.startswith("#")]
    packages = {name.replace("-", "_") for name, _ in pins}
    assert set(WHOLE) | set(ENGINES) | {"flashinfer_python"} == packages and all(len(pin) == 2 for pin in pins)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for package, version in (("sglang", "1.2"), ("vllm", "3.4")):
            with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as packed:
                for pattern in ENGINES[package]:
                    packed.writestr(pattern.replace("*", "x"), "text")
                packed.writestr(f"{package}/other.py", "not wanted")
        assert lay_engines(folder, folder / "engines") == len(ENGINES["sglang"]) + len(ENGINES["vllm"]) + 1
        assert json.loads((folder / "engines" / "versions.json").read_text()) == {"sglang": "1.2", "vllm": "3.4"}
        assert not (folder / "engines" / "vllm" / "other.py").exists()
        mark = mark_of(folder)
        (folder / "another-1-none.whl").write_text("")
        assert mark_of(folder) != mark == mark.strip() + "\n"
        write_headers(folder)
        text = (folder / HEADERS / "DtypeDecl.h").read_text()
        assert "E4m3 = 1050629u" in text and "MxE4m3 = 17827853u" in text, text  # 0x100805, 0x1100d0d in part
        for call, words in ((lambda: wheel(folder, "absent"), "0 wheels"),
                            (lambda: fitting(wheel(folder, "vllm"), ["vllm/none*"]), "nothing fits")):
            try:
                call()
            except SystemExit as error:
                assert words in str(error)
            else:
                raise AssertionError(words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", nargs="?", type=pathlib.Path)
    parser.add_argument("--engines", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        self_test()
        print("lay.py: self-test passed")
        return
    if not options.pack:
        parser.error("PACK: expected the pack's folder")
    site = "" if options.engines else f"{lay(options.pack)} files of the site, "
    print(f"laid out: {site}{lay_engines(options.pack / 'build' / 'wheels', options.pack / 'src' / 'engines')} of the engines")


if __name__ == "__main__":
    main()
