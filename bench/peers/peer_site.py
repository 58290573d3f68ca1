"""Where the peers that a pack brings are found (pack/build.sh, pack/unpack.py), and what their processes are told. Plain Python.

    PEER_SITE      folder that pack/unpack.py filled: packages, engines' files, what was compiled ahead; default /tmp/site
    PEER_CACHE     what Triton, DeepGEMM and FlashInfer compile; default /tmp/peer_cache
    PEER_AHEAD=0   FlashInfer compiles its CuTe-DSL kernels on the spot, though the pack has them
    PEER_GLUE=own  between the engines' GEMMs our Triton kernels in place of SGLang's CUDA kernels
"""
import json
import os
import pathlib
import sys

SITE = pathlib.Path(os.environ.get("PEER_SITE", "/tmp/site"))
CACHE = pathlib.Path(os.environ.get("PEER_CACHE", "/tmp/peer_cache"))
ENGINES, COMPILED, ENGINE_KERNELS = SITE / "engines", SITE / "fi_aot", SITE / "sgl_cuda"
HOW = "bench/peers/pack/build.sh collects it, bench/peers/pack/unpack.py lays it out"
DEFAULTS = {
    "TRITON_CACHE_DIR": CACHE / "triton", "DG_JIT_CACHE_DIR": CACHE / "deep_gemm", "CUDA_HOME": "/usr/local/cuda",
    "FLASHINFER_WORKSPACE_BASE": CACHE / "flashinfer", "FLASHINFER_CUDA_ARCH_LIST": "9.0a", "CUTE_DSL_ARCH": "sm_90a",
    "FLASHINFER_DISABLE_VERSION_CHECK": "1",  # the pack holds its Python alone: its kernels' packages are of no use here
    "USER": "root"}  # torch asks for a name, which a container may not have


def enter():
    """Sets what is not set yet and puts the pack's packages in front of what is installed. May be called again."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, str(value))
    for folder in (SITE / "nvidia_cutlass_dsl" / "dsl_packages", SITE):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(1, str(folder))  # behind the script's own folder


def engine_version(name):
    """Of the wheel that an engine's files came from."""
    record = ENGINES / "versions.json"
    return json.loads(record.read_text()).get(name, "unknown") if record.is_file() else "unknown"


def need_engine(name):
    """Raises FileNotFoundError where an engine's files are not there."""
    folder = ENGINES / name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no files of {name}; {HOW}")
    return folder


def compiled_index(folder):
    """[kind, key, name] of each CuTe-DSL kernel that was compiled ahead."""
    return [entry for path in sorted(folder.glob("index*.json")) for entry in json.loads(path.read_text())]


def tuned_file(configs, name, triton_version=None):
    """The tuned file that an engine reads, relative to its folder `configs`, or "".

    vLLM keeps them in one folder; SGLang in one for each Triton version (`triton_version`: the one that runs), and takes the
    newest other where its own has no such file.
    """
    if triton_version is None:
        return name if (configs / name).is_file() else ""
    own = f"triton_{triton_version.replace('.', '_')}"
    others = [path.name for path in configs.glob("triton_*") if path.name != own]
    others.sort(key=lambda folder: [int(word) for word in folder.split("_")[1:]], reverse=True)
    return next((f"{folder}/{name}" for folder in [own, *others] if (configs / folder / name).is_file()), "")


def tuning_text(found, wanted):
    return found or f"none ({wanted}): the engine's default for this number of tokens"
