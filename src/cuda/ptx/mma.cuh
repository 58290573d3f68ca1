// Matrix multiply of one warp (mma.sync): D[16][8] += A[16][16] * B[8][16]^T, operands in registers.
//
// On Hopper its sums are those of WGMMA bit for bit (tests/gpu/moe/mma_probe_test.cu), whichever operand the weights
// are. Operands come from rows of 128 bytes in the layout of cta/smem_layout.cuh by ldmatrix, in the generic proxy:
// what threads have copied needs no fence, and a warp may have no rows of its own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace tessera::ptx {

// Four 8x8 matrices of 16-bit elements; lane l names the address of row l % 8 of matrix l / 8, and gets elements
// 2 * (l % 4) + {0, 1} of row l / 4 of each.
__device__ inline void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t smem_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(smem_address)
               : "memory");
}

// d: rows l / 4 and l / 4 + 8 of D at columns 2 * (l % 4) + {0, 1}, as a Fragment of 8 columns has them.
__device__ inline void mma_m16n8k16(__nv_bfloat16, float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma_m16n8k16(__half, float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace tessera::ptx
