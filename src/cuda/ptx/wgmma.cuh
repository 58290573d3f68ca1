// Warpgroup matrix multiply (WGMMA): what one warpgroup of 128 threads issues to the tensor cores.
//
// D[64][N] (+)= A[64][16] * B[N][16]^T, A and B in shared memory (K-major, 128-byte swizzle), D in N / 2 fp32 registers
// a thread. The instructions are asynchronous: order is wgmma_fence, wgmma..., wgmma_commit, wgmma_wait<n>; the
// accumulators may be touched only after the wait. One PTX instruction a function (setp only turns an argument into a
// predicate).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

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

// The instruction for every shape and element type: both are parts of its name, asm takes literals only, and the inputs
// are numbered after the accumulators.
#define TESSERA_WGMMA(shape, types, registers, a, b, predicate, ...)                             \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, " predicate                                       \
               ", 0;\n"                                                                          \
               "wgmma.mma_async.sync.aligned." shape ".f32." types " {" registers "}, " a ", " b \
               ", p, 1, 1, 0, 0; }\n"                                                            \
               : __VA_ARGS__                                                                     \
               : "l"(a_desc), "l"(b_desc), "r"(static_cast<int32_t>(accumulate)))

#define TESSERA_REGISTERS_112                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define TESSERA_REGISTERS_120 TESSERA_REGISTERS_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define TESSERA_REGISTERS_128 TESSERA_REGISTERS_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define TESSERA_D8(i)                                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define TESSERA_D112                                                                                            \
  TESSERA_D8(0), TESSERA_D8(8), TESSERA_D8(16), TESSERA_D8(24), TESSERA_D8(32), TESSERA_D8(40), TESSERA_D8(48), \
      TESSERA_D8(56), TESSERA_D8(64), TESSERA_D8(72), TESSERA_D8(80), TESSERA_D8(88), TESSERA_D8(96), TESSERA_D8(104)

#define TESSERA_WGMMA_COLUMNS(types)                                                                                  \
  static_assert(kColumns == 224 || kColumns == 240 || kColumns == 256);                                               \
  if constexpr (kColumns == 224) {                                                                                    \
    TESSERA_WGMMA("m64n224k16", types, TESSERA_REGISTERS_112, "%112", "%113", "%114", TESSERA_D112);                  \
  } else if constexpr (kColumns == 240) {                                                                             \
    TESSERA_WGMMA("m64n240k16", types, TESSERA_REGISTERS_120, "%120", "%121", "%122", TESSERA_D112, TESSERA_D8(112)); \
  } else {                                                                                                            \
    TESSERA_WGMMA("m64n256k16", types, TESSERA_REGISTERS_128, "%128", "%129", "%130", TESSERA_D112, TESSERA_D8(112),  \
                  TESSERA_D8(120));                                                                                   \
  }

// Of D's columns only the first kColumns (224, 240 or 256) are computed. accumulate == false overwrites D (no zeroing
// of registers needed).
template <int kColumns>
__device__ inline void wgmma_m64k16(__nv_bfloat16, float (&d)[128], uint64_t a_desc, uint64_t b_desc, bool accumulate) {
  TESSERA_WGMMA_COLUMNS("bf16.bf16");
}
template <int kColumns>
__device__ inline void wgmma_m64k16(__half, float (&d)[128], uint64_t a_desc, uint64_t b_desc, bool accumulate) {
  TESSERA_WGMMA_COLUMNS("f16.f16");
}

#undef TESSERA_WGMMA_COLUMNS
#undef TESSERA_D112
#undef TESSERA_D8
#undef TESSERA_REGISTERS_128
#undef TESSERA_REGISTERS_120
#undef TESSERA_REGISTERS_112
#undef TESSERA_WGMMA

}  // namespace tessera::ptx
