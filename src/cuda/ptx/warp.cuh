// stmatrix and fast fp32 functions: instructions of a warp or a thread.
#pragma once

#include <cstdint>

namespace tessera::ptx {

// Stores four 8x8 matrices of 16-bit elements; lane l names the address of row l % 8 of matrix l / 8, and register i of
// lane l holds elements 2 * (l % 4) + {0, 1} of row l / 4 of matrix i: the fragment layout of the accumulators.
__device__ inline void stmatrix_x4(uint32_t smem_address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}

// The same, each matrix transposed on its way: row l % 8 of memory gets a column of the fragment.
__device__ inline void stmatrix_x4_transposed(uint32_t smem_address, uint32_t r0, uint32_t r1, uint32_t r2,
                                              uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address), "r"(r0),
               "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

// Transposes an 8x8 matrix of 16-bit elements held by the warp: lane l gives elements 2 * (l % 4) + {0, 1} of row l /
// 4, and gets those of row l / 4 of the transposed matrix.
__device__ inline uint32_t transpose_8x8(uint32_t pair) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
}

// The larger of two values; NaN if either is NaN.
__device__ inline float max_or_nan(float x, float y) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(x), "f"(y));
  return larger;
}

// The same value, but unknown to the compiler: keeps it from computing what depends on it long before it is used, and
// holding that in registers the accumulators need.
__device__ inline uint32_t opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Two floats to two e4m3 codes, to nearest even, saturating; the first in the low byte. NaN stays NaN.
__device__ inline uint16_t pack_e4m3(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

// Barrier `id` of the CTA (1 to 15): waits until kThreads threads of whole warps have come to it, or comes without
// waiting.
template <int kThreads>
__device__ inline void named_barrier_wait(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}
template <int kThreads>
__device__ inline void named_barrier_arrive(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(kThreads) : "memory");
}

// Moves registers between warpgroups: all four warps of one set how many a thread of it has, a multiple of 8.
template <int kRegisters>
__device__ inline void decrease_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void increase_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// 2^x and 1/x to about one unit in the last place of fp32, results below 2^-126 flushed to zero.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace tessera::ptx
