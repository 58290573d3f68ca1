#!/usr/bin/env python3
"""vLLM for a machine without a network, small enough to be copied: one archive, thinned to what a Hopper GPU runs.

  python3 -m venv ENV && ENV/bin/pip install torch==2.11.0 transformers==5.17.0 vllm==0.26.0
  ENV/bin/python pack.py --have machine.txt --out vllm.tar.xz     run by the Python of that environment

machine.txt: the names of the packages that the machine has, one a line; of vLLM's needs the others go along, but for those that
serving text never imports (WITHOUT). Of the compiled parts FlashAttention 2 (Hopper takes 3), CUTLASS for Blackwell and
the Rust server stay behind; each fat binary keeps the code of sm_90 alone, the rest becomes zeros. 0.26.0: 42 MB, of 304.
On the machine: unpack.sh.
"""
import argparse
import importlib.metadata
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

WITHOUT = {"pip", "tzdata", "flashinfer-python", "tilelang", "nvidia-cutlass-dsl", "quack-kernels", "humming-kernels",
           "tokenspeed-mla", "torchcodec", "pynvvideocodec", "fastsafetensors", "anthropic", "mcp", "opentelemetry-sdk"}
OF_TORCH = ("nvidia-", "cuda-", "torch", "triton")
LEFT_BEHIND = re.compile(r"vllm/vllm-rs$|_vllm_fa2_C|_qutlass_C|third_party/fmha_sm100/|deep_gemm/_C\.cpython-(?!312)|"
                         r"/static/swagger|\.pyc$|(^|/)(tests?|locales)/|mistral_common/data/|\.a$|/bin/")
CONFIGS = re.compile(r"fused_moe/configs/(?!.*H[12]00)")  # tuned for other GPUs
FAT_MAGIC, ELF_KIND, HOPPER = 0xBA55ED50, 2, 90


def sections(data):
    """(name, offset, bytes) of an ELF file."""
    offset, = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    names = heads[names_index][4]
    for head in heads:
        start = names + head[0]
        yield data[start:data.index(b"\0", start)].decode(), head[4], head[5]


def containers(data):
    """(offset, header bytes, bytes behind it, [(kind, architecture, entry)]) of each fat binary."""
    for name, offset, size in list(sections(data)):
        place, end = offset, offset + size if name == ".nv_fatbin" else offset
        while place < end:
            magic, _, header, length = struct.unpack_from("<IHHQ", data, place)
            if magic != FAT_MAGIC:  # padding
                place += 8
                continue
            entries, at, last = [], place + header, place + header + length
            while at < last:
                kind, _, head, body = struct.unpack_from("<HHIQ", data, at)
                architecture, = struct.unpack_from("<I", data, at + 28)
                entries.append((kind, architecture, bytes(data[at:at + head + body])))
                at += head + body
            yield place, header, length, entries
            place = last + -last % 8


def thin(path):
    """Leaves the code of sm_90; a fat binary without any gets the file's smallest entry of another GPU, as there are such."""
    data = bytearray(path.read_bytes())
    found = list(containers(data))
    other = min((entry for *_, entries in found for kind, architecture, entry in entries
                 if kind == ELF_KIND and architecture >= 100), key=len, default=b"")
    for place, header, length, entries in found:
        kept = [entry for kind, architecture, entry in entries if (kind, architecture) == (ELF_KIND, HOPPER)]
        body = b"".join(kept or ([other] if len(other) <= length else []))
        struct.pack_into("<Q", data, place + 8, len(body))
        data[place + header:place + header + length] = body + bytes(length - len(body))
    path.write_bytes(data)
    subprocess.run(["strip", "--strip-unneeded", path], check=False, stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--have", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()

    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()
    there = {plain(line.strip()) for line in arguments.have.read_text().splitlines()} | WITHOUT
    with tempfile.TemporaryDirectory() as folder:
        for package in importlib.metadata.distributions():
            name = plain(package.metadata["Name"])
            if name in there or name.startswith(OF_TORCH):
                continue
            for file in package.files:
                source, target = pathlib.Path(package.locate_file(file)), pathlib.Path(folder, str(file))
                left = str(file).startswith("..") or LEFT_BEHIND.search(str(file)) or CONFIGS.search(str(file))
                if left or not source.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                if ".so" in target.name:
                    thin(target)
        subprocess.run(["tar", "-C", folder, "-I", "xz -6 -T2", "-cf", arguments.out.resolve(), "."], check=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
