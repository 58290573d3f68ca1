// The WGMMA instructions that the probe compares: every shape of ptx/wgmma_shapes.def with fp32 sums, for every type of
// operands, with the first one in shared memory and in registers.
#pragma once

#include <cstdint>

#include "cuda/ptx/wgmma_registers.cuh"

namespace tessera::testing {

struct Bf16Operands {};
struct F16Operands {};
struct E4m3Operands {};

// D[64][N] (+)= A B^T over 32 bytes of K, N / 2 sums a thread. A thread's four registers of A are rows
// r = 16 * warp + lane / 4 and r + 8 of bytes 4 * (lane % 4), then the same rows 16 bytes on.
template <class Operands, int kColumns>
struct Wgmma;

#define TESSERA_PROBE_WGMMA(Operands, N, registers, types, transposed_a, transposed_b, o0, o1, o2, o3, o4, o5)         \
  template <>                                                                                                          \
  struct Wgmma<Operands, N> {                                                                                          \
    static __device__ void multiply(float (&d)[N / 2], uint64_t a_desc, uint64_t b_desc, bool accumulates) {           \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " o2                                                                \
                   ", 0;\n"                                                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N types " {" TESSERA_REGISTERS_##registers                     \
                   "}, " o0 ", " o1 ", p, 1, 1" transposed_a transposed_b "; }\n"                                      \
                   : TESSERA_D_##registers                                                                             \
                   : "l"(a_desc), "l"(b_desc), "r"(static_cast<int32_t>(accumulates)));                                \
    }                                                                                                                  \
    static __device__ void multiply(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b_desc, bool accumulates) {    \
      asm volatile("{ .reg .pred p; setp.ne.b32 p, " o5                                                                \
                   ", 0;\n"                                                                                            \
                   "wgmma.mma_async.sync.aligned.m64n" #N types " {" TESSERA_REGISTERS_##registers                     \
                   "}, {" o0 ", " o1 ", " o2 ", " o3 "}, " o4 ", p, 1, 1" transposed_b "; }\n"                         \
                   : TESSERA_D_##registers                                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_desc), "r"(static_cast<int32_t>(accumulates))); \
    }                                                                                                                  \
  };
#define TESSERA_WGMMA_SHAPE(N, registers, ...)                                                    \
  TESSERA_PROBE_WGMMA(Bf16Operands, N, registers, "k16.f32.bf16.bf16", ", 0", ", 0", __VA_ARGS__) \
  TESSERA_PROBE_WGMMA(F16Operands, N, registers, "k16.f32.f16.f16", ", 0", ", 0", __VA_ARGS__)    \
  TESSERA_PROBE_WGMMA(E4m3Operands, N, registers, "k32.f32.e4m3.e4m3", "", "", __VA_ARGS__)
#include "cuda/ptx/wgmma_shapes.def"
#undef TESSERA_WGMMA_SHAPE
#undef TESSERA_PROBE_WGMMA

}  // namespace tessera::testing
