// Warpgroup matrix multiply (WGMMA): what one warpgroup of 128 threads issues to the tensor cores.
//
// D[64][N] (+)= A[64][K] * B[N][K]^T, A and B in shared memory (K-major, 128-byte swizzle), K 32 bytes of a row: 16
// elements of 16 bits, 32 of e4m3; D in N / 2 fp32 registers a thread, a Fragment<N>. N is one of wgmma_shapes.def. The
// instructions are asynchronous: order is wgmma_fence, wgmma..., wgmma_commit, wgmma_wait<n>; the accumulators may be
// touched only after the wait. One PTX instruction a function (setp only turns an argument into a predicate).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda/std/type_traits>

#include <cstdint>

#include "cuda/ptx/wgmma_registers.cuh"

namespace tessera::ptx {

// Orders register and shared-memory accesses before the next wgmma of this warp.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of the wgmma issued so far.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending groups are unfinished.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// A thread's part of D[64][kColumns]. Registers 4 j .. 4 j + 3 of thread t: row 16 (t / 32 % 4) + t % 32 / 4 at columns
// 8 j + 2 (t % 4) + {0, 1}, then the same columns eight rows below.
template <int kColumns>
struct Fragment {
  static constexpr int kRegisters = kColumns / 2;
  static constexpr int kColumnGroups = kColumns / 8;  // of 4 registers: 2 columns x 2 rows

  float values[kRegisters];

  __device__ float& operator[](int i) { return values[i]; }
  __device__ float operator[](int i) const { return values[i]; }
};

// The instruction for every shape and element type: both are parts of its name, asm takes literals only, and the inputs
// are numbered after the accumulators.
#define TESSERA_WGMMA(shape, types, transposed, registers, a, b, predicate, ...)                 \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " predicate                                       \
               ", 0;\n"                                                                          \
               "wgmma.mma_async.sync.aligned." shape ".f32." types " {" registers "}, " a ", " b \
               ", p, 1, 1" transposed "; }\n"                                                    \
               : __VA_ARGS__                                                                     \
               : "l"(a_desc), "l"(b_desc), "r"(static_cast<int32_t>(accumulate)))

constexpr bool is_wgmma_shape(int columns) {
#define TESSERA_WGMMA_SHAPE(N, ...) \
  if (columns == N) return true;
#include "cuda/ptx/wgmma_shapes.def"
#undef TESSERA_WGMMA_SHAPE
  return false;
}

// The first kColumns of D's columns; accumulate == false overwrites them (no zeroing of registers needed).
template <class Element, int kColumns, int kWidth>
__device__ inline void wgmma(Fragment<kWidth>& d, uint64_t a_desc, uint64_t b_desc, bool accumulate) {
  static_assert(is_wgmma_shape(kColumns), "a shape that is used stands in wgmma_shapes.def");
  static_assert(kColumns <= kWidth);
#define TESSERA_WGMMA_SHAPE(N, registers, a, b, predicate, ...)                                           \
  if constexpr (kColumns == N && ::cuda::std::is_same_v<Element, __nv_bfloat16>)                          \
    TESSERA_WGMMA("m64n" #N "k16", "bf16.bf16", ", 0, 0", TESSERA_REGISTERS_##registers, a, b, predicate, \
                  TESSERA_D_##registers);                                                                 \
  if constexpr (kColumns == N && ::cuda::std::is_same_v<Element, __half>)                                 \
    TESSERA_WGMMA("m64n" #N "k16", "f16.f16", ", 0, 0", TESSERA_REGISTERS_##registers, a, b, predicate,   \
                  TESSERA_D_##registers);                                                                 \
  if constexpr (kColumns == N && ::cuda::std::is_same_v<Element, __nv_fp8_e4m3>)                          \
    TESSERA_WGMMA("m64n" #N "k32", "e4m3.e4m3", "", TESSERA_REGISTERS_##registers, a, b, predicate,       \
                  TESSERA_D_##registers);
#include "cuda/ptx/wgmma_shapes.def"
#undef TESSERA_WGMMA_SHAPE
}

#undef TESSERA_WGMMA

}  // namespace tessera::ptx
