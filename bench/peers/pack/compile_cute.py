#!/usr/bin/env python3
"""Compiles the SM90 MoE kernels of FlashInfer for sm_90a, without a GPU, and writes them as object files with an index.

  compile_cute.py FOLDER TOP_K,...

Every tile, swizzle and cluster that FlashInfer's tuner may offer, both finalizes, 132 SMs (66 clusters of two).
../adapters_flashinfer.py looks a kernel up by its key in the index; one that is not there is compiled on the GPU machine.
build.sh sets the paths; stub/torch.py takes torch's place.
"""
import hashlib
import itertools
import json
import os
import pathlib
import sys
import time

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
import flashinfer.fused_moe.cute_dsl.sm90_contiguous_gather_grouped_gemm_act_fusion as gather
import flashinfer.fused_moe.cute_dsl.sm90_contiguous_grouped_gemm_finalize_fusion as finalize
from flashinfer.cute_dsl.utils import make_ptr
from flashinfer.fused_moe.cute_dsl import sm90_tuner as tuner

SMS = 132
EXPERTS, MOST_ROWS = 128, 128 * 1000  # examples: the kernels take sizes when they run
BF16, I32, F32 = cutlass.BFloat16, cutlass.Int32, cutlass.Float32
FIRST, SECOND = gather.Sm90ContiguousGatherGroupedGemmActFusionKernel, finalize.Sm90ContiguousGroupedGemmFinalizeFusionKernel


def pointer(dtype, alignment=16):
    return make_ptr(dtype, 1 << 20, cute.AddressSpace.gmem, assumed_align=alignment)


def common(tile, cluster, topk):
    """Arguments of both compile functions."""
    return {"permuted_m": 2048, "num_experts": EXPERTS, "a_ptr": pointer(BF16), "b_ptr": pointer(BF16),
            "tile_idx_ptr": pointer(I32, 4), "mn_limit_ptr": pointer(I32, 4), "token_id_ptr": pointer(I32, 4),
            "num_tiles_ptr": pointer(I32, 4), "max_active_clusters": SMS // (cluster[0] * cluster[1]),
            "stream": cuda.CUstream(0), "ab_dtype": BF16, "c_dtype": BF16, "tile_shape_mn": tile, "cluster_shape_mn": cluster,
            "topk": topk, "raster_along_m": False, "enable_pdl": True}


def first_kernels(topk):
    """(key, kernel) of gather + GEMM + SwiGLU."""
    for m, n, swizzle in itertools.product(tuner.TILE_SIZES, tuner.GEMM1_TILE_NS, tuner.GEMM1_SWIZZLE_SIZES):
        if not FIRST.can_implement(BF16, BF16, BF16, (m, n), (1, 1), MOST_ROWS, 3072, 4096, EXPERTS, swizzle_size=swizzle,
                                   gated=True):
            continue
        kernel = gather._get_compiled_gather_kernel(
            orig_m=128, n=3072, k=4096, c_ptr=pointer(BF16), swizzle_size=swizzle, activation_type=3, swiglu_alpha=1.0,
            swiglu_beta=0.0, swiglu_limit=gather.DEFAULT_SWIGLU_LIMIT, situ_beta=None, situ_linear_beta=None,
            **common((m, n), (1, 1), topk))
        yield {"tile": [m, n], "cluster": [1, 1], "topk": topk, "swizzle": swizzle, "raster": False, "mac": SMS,
               "pdl": True}, kernel


def second_kernels(topk):
    """(key, kernel) of GEMM + weighted sum."""
    for m, n, cluster, fused in itertools.product(tuner.TILE_SIZES, tuner.GEMM2_TILE_NS, tuner.GEMM2_CLUSTER_SHAPES,
                                                  (True, False)):
        if not SECOND.can_implement(BF16, BF16, BF16, (m, n), cluster, MOST_ROWS, 4096, 1536, EXPERTS):
            continue
        kernel = finalize._get_compiled_finalize_kernel(
            n=4096, k=1536, num_tokens=128, out_rows=128, out_ptr=pointer(BF16), token_scales_ptr=pointer(F32, 4),
            use_fused_finalize=fused, **common((m, n), cluster, topk))
        yield {"tile": [m, n], "cluster": list(cluster), "topk": topk, "finalize": fused, "raster": False,
               "mac": SMS // (cluster[0] * cluster[1]), "pdl": True}, kernel


def main():
    folder, topks = pathlib.Path(sys.argv[1]), [int(word) for word in sys.argv[2].split(",")]
    folder.mkdir(parents=True, exist_ok=True)
    index, begin = [], time.monotonic()
    for topk in topks:
        for kind, kernels in (("g1", first_kernels(topk)), ("g2", second_kernels(topk))):
            for key, kernel in kernels:
                name = f"{kind}_{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}"
                (folder / f"{name}.o").write_bytes(kernel.dump_to_object(name))
                index.append([kind, key, name])
        print(f"top_k {topk}: {len(index)} kernels so far, {time.monotonic() - begin:.0f} s", flush=True)
    path = folder / f"index_{'_'.join(map(str, topks))}.json"
    path.with_suffix(".new").write_text(json.dumps(index))  # in full or not at all: build.sh takes its presence for all done
    os.replace(path.with_suffix(".new"), path)


if __name__ == "__main__":
    main()
