#!/usr/bin/env python3
"""Lays out what build.sh packed where the peers are looked for (PEER_SITE, default /tmp/site; ../peer_site.py).

  unpack.py [PACK]     default: .peers at the repository's root

partA and partB may be unpacked in one call or in two; what lies there already is left as it is. Says what is there.
"""
import lzma
import pathlib
import shutil
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import peer_site  # noqa: E402

PACK = HERE.parent.parent.parent / ".peers"
SINGLE = {
    "partA/cutlass_ir.xz":
        "nvidia_cutlass_dsl/dsl_packages/cutlass/_mlir/_mlir_libs/_cutlass_ir.cu13.cpython-312-x86_64-linux-gnu.so",
    "partB/cute_runtime.xz": "nvidia_cutlass_dsl/cu13/lib/libcute_dsl_runtime.so"}


def unpack_site(archive, site):
    """The archive's top folder is site/."""
    site.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r:xz") as packed:
        for member in packed:
            member.name = str(pathlib.PurePosixPath(member.name).relative_to("site"))
            packed.extract(member, site, filter="tar")
    (site / ".partB").touch()


def unpack_library(source, target):
    """In full or not at all: another process may be about to load it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with lzma.open(source) as packed, open(part, "wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    part.chmod(0o755)
    part.rename(target)


def unpack(pack, site):
    archive, engines = pack / "partB" / "site.tar.xz", pack / "src" / "engines"
    if archive.exists() and not (site / ".partB").exists():
        unpack_site(archive, site)
    for source, name in SINGLE.items():
        if (pack / source).exists() and not (site / name).exists():
            unpack_library(pack / source, site / name)
    if engines.is_dir() and not (site / "engines").exists():
        shutil.copytree(engines, site / "engines")


def found(site):
    return {"DeepGEMM, FlashInfer, SGLang's CUDA kernels (partB)": (site / ".partB").exists(),
            "the CuTe-DSL compiler, which FlashInfer needs (partA)": (site / SINGLE["partA/cutlass_ir.xz"]).exists(),
            "SGLang's and vLLM's files (src)": (site / "engines").is_dir()}


def main():
    begin, pack = time.monotonic(), pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else PACK
    if not pack.is_dir():
        sys.exit(f"unpack.py: {pack}: no such folder; build.sh makes it")
    unpack(pack, peer_site.SITE)
    print(f"{peer_site.SITE} in {time.monotonic() - begin:.1f} s: " + "; ".join(
        f"{name}: {'yes' if there else 'NO'}" for name, there in found(peer_site.SITE).items()), flush=True)


if __name__ == "__main__":
    main()
