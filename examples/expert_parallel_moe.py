#!/usr/bin/env python3
"""One MoE layer over several GPUs: each holds its share of the experts, torch's own collectives carry the tokens.

  python3 examples/expert_parallel_moe.py                              every GPU; without two, two processes on the CPU
  python3 examples/expert_parallel_moe.py --json out.json --tokens 4096,16384 --shape qwen3-235b

Every process has its own tokens. All of them are gathered (all-gather), each process runs its experts on all, and the
partial sums return to the owner of each token (reduce-scatter). `MoELayer(first_expert=...)` skips what belongs to experts
elsewhere: ids stay global and nobody sorts. The result is compared with one layer that holds all experts, on one GPU."""
import argparse
import json
import os
import pathlib
import socket
import statistics
import sys
import time

import torch
import torch.distributed
import torch.multiprocessing

import tessera

# hidden size, intermediate size, experts, experts a token
SHAPES = {"tiny": (256, 128, 16, 4), "qwen3-30b": (2048, 768, 128, 8), "qwen3-235b": (4096, 1536, 128, 8),
          "mixtral-8x7b": (4096, 14336, 8, 2)}
# Partial sums of each process are rounded to the type once more before they are added.
ROW_ERROR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ROUNDS = 20


class Shard:
    """This process's experts of the layer, and its tokens."""

    def __init__(self, arguments, rank, size, device, dtype):
        self.hidden, self.intermediate, self.experts, self.top_k = SHAPES[arguments.shape]
        if self.experts % size:
            raise SystemExit(f"{self.experts} experts do not divide among {size} processes")
        self.rank, self.size, self.device, self.dtype = rank, size, device, dtype
        self.share = self.experts // size
        self.layer = self.make_layer(rank * self.share, self.share)

    def make_layer(self, first, count):
        """Expert e has the same weights wherever it lives: its own seed."""
        gate_up = torch.empty(count, 2 * self.intermediate, self.hidden, dtype=self.dtype, device=self.device)
        down = torch.empty(count, self.hidden, self.intermediate, dtype=self.dtype, device=self.device)
        for i in range(count):
            generator = torch.Generator(self.device).manual_seed(first + i)
            gate_up[i].normal_(std=self.hidden**-0.5, generator=generator)
            down[i].normal_(std=self.intermediate**-0.5, generator=generator)
        return tessera.MoELayer(gate_up, down, top_k=self.top_k, first_expert=first)

    def tokens(self, rank, count):
        """x [T, H], ids [T, k], weights [T, k] of the tokens of a process."""
        generator = torch.Generator(self.device).manual_seed(1000 + rank)
        x = torch.empty(count, self.hidden, dtype=self.dtype, device=self.device).normal_(generator=generator)
        scores = torch.empty(count, self.experts, device=self.device).normal_(generator=generator)
        weights, ids = torch.softmax(scores, 1).topk(self.top_k, dim=1)
        return x, ids.int(), weights / weights.sum(1, keepdim=True)

    def gather(self, tensors):
        gathered = [t.new_empty(self.size * t.shape[0], *t.shape[1:]) for t in tensors]
        for whole, part in zip(gathered, tensors, strict=True):
            torch.distributed.all_gather_into_tensor(whole, part)
        return gathered

    def scatter(self, partial):
        """The sum over the processes, of this one's tokens."""
        own = partial.new_empty(partial.shape[0] // self.size, partial.shape[1])
        if self.device.type == "cuda":
            torch.distributed.reduce_scatter_tensor(own, partial)
            return own
        torch.distributed.all_reduce(partial)  # gloo
        return own.copy_(partial.chunk(self.size)[self.rank])

    def run(self, x, ids, weights):
        return self.scatter(self.layer(*self.gather((x, ids, weights))))

    def microseconds(self, body):
        """Median of single runs, each from a barrier; the slowest process counts."""
        times = []
        for i in range(ROUNDS + 3):
            torch.distributed.barrier()
            self.synchronize()
            begin = time.perf_counter()
            body()
            self.synchronize()
            times.append((time.perf_counter() - begin) * 1e6)
        median = torch.tensor([statistics.median(times[3:])], device=self.device)
        torch.distributed.all_reduce(median, torch.distributed.ReduceOp.MAX)
        return float(median)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def row_of(shard, count):
    """One number of tokens a process: errors against the layer of all experts, and times."""
    own = shard.tokens(shard.rank, count)
    result = shard.run(*own)
    again = shard.run(*own)
    gathered = shard.gather(own)
    partial = shard.layer(*gathered)
    row = {"tokens": count * shard.size, "tokens_a_process": count, "same_bits_again": bool(torch.equal(result, again)),
           "layer_us": shard.microseconds(lambda: shard.run(*own)),
           "experts_us": shard.microseconds(lambda: shard.layer(*gathered)),
           "gather_us": shard.microseconds(lambda: shard.gather(own)),
           "scatter_us": shard.microseconds(lambda: shard.scatter(partial))}
    results = [torch.empty_like(result) for _ in range(shard.size)]
    torch.distributed.all_gather(results, result)
    whole = shard.make_layer(0, shard.experts)
    one = whole(*gathered)
    error = (torch.cat(results).float() - one.float()).norm(dim=1) / one.float().norm(dim=1)
    row["largest_row_error"] = float(error.max())
    row["one_gpu_us"] = shard.microseconds(lambda: whole(*gathered))
    # What n GPUs would take if the tokens were where their experts are and every process had the same work.
    row["ideal_us"] = row["one_gpu_us"] / shard.size
    row["share_of_ideal"] = row["ideal_us"] / row["layer_us"]
    return row


def work(rank, size, port, arguments):
    on_gpu = arguments.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=size,
                                         device_id=device if on_gpu else None)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    with torch.inference_mode():
        shard = Shard(arguments, rank, size, device, dtype)
        rows = [row_of(shard, count // size) for count in arguments.tokens]
    ok = all(row["largest_row_error"] <= ROW_ERROR[dtype] and row["same_bits_again"] for row in rows)
    if rank == 0:
        for row in rows:
            print(f"{arguments.shape}, {row['tokens']} tokens over {size} x {arguments.device}: layer {row['layer_us']:.0f} us "
                  f"(experts {row['experts_us']:.0f}, gather {row['gather_us']:.0f}, scatter {row['scatter_us']:.0f}); all experts "
                  f"in one place {row['one_gpu_us']:.0f} us, {row['share_of_ideal']:.2f} of ideal; largest row error "
                  f"{row['largest_row_error']:.1e}{'' if row['same_bits_again'] else '; OTHER BITS the second time'}", flush=True)
        if arguments.json:
            name = torch.cuda.get_device_name(0) if on_gpu else "CPU"
            arguments.json.write_text(json.dumps({"device": name, "processes": size, "shape": arguments.shape,
                                                  "dtype": str(dtype).removeprefix("torch."), "rows": rows}, indent=1) + "\n")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if not ok:
        raise SystemExit("the sharded layer is not what one GPU gives")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usable = [i for i in range(torch.cuda.device_count()) if not tessera.why_unusable(i)] if torch.cuda.is_available() else []
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if len(usable) >= 2 else "cpu")
    parser.add_argument("--processes", type=int, default=0, help="default: the GPUs, or 2 on the CPU")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--tokens", type=lambda text: [int(word) for word in text.split(",")], default=[64, 256],
                        help="over all processes, one row each")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    size = arguments.processes or (len(usable) if arguments.device == "cuda" else 2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(work, args=(size, port, arguments), nprocs=size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
