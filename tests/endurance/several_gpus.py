#!/usr/bin/env python3
"""Runs of the command over several GPUs, worker processes isolated, broken off by Ctrl-C and by SIGKILL of the supervisor.

  several_gpus.py BUILD_DIR --out FILE [--count 20]

What was broken off is resumed until it is whole: its bytes must be those of one GPU in one process. After each break no
worker process may stay, and the GPUs' memory must be free again within five seconds."""
import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import endurance

# Of a model of full size in plain fp32: seconds of starting, and seconds of labelling.
endurance.NUM_RECORDS = 400_000
MEMORY_SECONDS, MEMORY_MIB = 5.0, 64


def used_mib():
    told = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True,
                          text=True, check=True)
    return [int(line) for line in told.stdout.split()]


class Setting(endurance.Setting):
    """The command on several GPUs; the undisturbed output is one GPU's, in this very process."""

    def __init__(self, build, folder):
        self.build, self.folder = pathlib.Path(build), pathlib.Path(folder)
        self.tessera = self.build / "tools" / "tessera" / "tessera"
        self.model = self.folder / "model"
        self.num_gpus = len(used_mib())
        self.unused = used_mib()
        self.slowest_free = 0.0
        self.devices = "cuda:0"
        self.run("synth", "--preset", "apws25", "--output", self.model, "--inputs", endurance.NUM_RECORDS)
        self.whole = self.folder / "whole.csv"
        self.run(*self.arguments(self.whole))
        self.expected = self.whole.read_bytes()
        self.devices = "cuda:" + ",".join(str(gpu) for gpu in range(self.num_gpus))
        begin = time.monotonic()
        output = self.folder / "isolated.csv"
        self.run(*self.arguments(output, "--isolate"))
        self.seconds = time.monotonic() - begin
        self.check_output(output)

    def arguments(self, output, *more):
        return ["classify", "--model", self.model, "--input", self.model / "inputs.bin", "--format", "ids", "--precision",
                "fp32", "--form", "direct", "--device", self.devices, "--output", output, *more]

    def after_break(self):
        begin = time.monotonic()
        while True:
            used = used_mib()
            if all(now <= before + MEMORY_MIB for now, before in zip(used, self.unused, strict=True)):
                break
            if time.monotonic() - begin > MEMORY_SECONDS:
                raise endurance.Row(f"memory of the GPUs after {MEMORY_SECONDS} s: {used} MiB, before {self.unused}")
        self.slowest_free = max(self.slowest_free, time.monotonic() - begin)
        endurance.no_orphans(self)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(pathlib.Path(args.build).resolve(), folder)
        print(f"{setting.num_gpus} GPUs, a whole run {setting.seconds:.1f} s", flush=True)
        delay = (0.05, setting.seconds * 0.95)
        for name, send, limit in (("ctrl_c", signal.SIGINT, 2.3), ("sigkill_supervisor", signal.SIGKILL, 2.3)):
            setting.slowest_free = 0.0
            row = {"ok": True}
            try:
                breaks, runs, times, resumed = endurance.broken_off(setting, args.count, random.Random(1), send, name,
                                                                    ["--isolate"], delay)
                slowest = max(taken for taken, _ in times)
                row |= {"signals": breaks, "runs": runs, "runs_resumed_from_a_journal": resumed, "bitwise_equal": runs,
                        "slowest_end_seconds": slowest, "slowest_memory_free_seconds": setting.slowest_free, "orphans": 0}
                row["ok"] = slowest <= limit
            except (endurance.Row, subprocess.SubprocessError, OSError) as problem:
                row |= {"ok": False, "problem": str(problem)}
            print(f"{name}: {json.dumps(row)}", flush=True)
            rows[name] = row
        result = {"gpus": setting.num_gpus, "records": endurance.NUM_RECORDS, "seconds_a_run": setting.seconds, "rows": rows,
                  "ok": all(row["ok"] for row in rows.values())}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
