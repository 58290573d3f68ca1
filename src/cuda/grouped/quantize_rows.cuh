// From fp32 to e4m3 with one scale for each row and 128 columns, and a role's quantised output.
//
// The recipe of tessera/core/e4m3.h by the device's instructions, which give the same bits.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/epilogue.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/warp.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "tessera/core/e4m3.h"

namespace tessera::grouped {

__device__ inline float group_scale(float amax) {
  return __fmul_rn(ptx::max_or_nan(amax, kLeastAmax), 1.0f / kE4m3Largest);
}

// Two codes, the first in the low byte.
__device__ inline uint16_t quantize_pair(float first, float second, float inverse_scale) {
  return ptx::pack_e4m3(__fmul_rn(first, inverse_scale), __fmul_rn(second, inverse_scale));
}

// A warp's 16 rows x 128 columns, registers kFirst on of the fragment: codes to the staging buffer, as a 128-byte
// swizzled TMA box has them, scales to memory. Four lanes hold a row. `given`: the scale of all, null: made of each
// row.
template <int kFirst, class Sums>
__device__ inline void stage_quantized(uint8_t* staging, const Sums& acc, float* scales, int32_t rows_left,
                                       const float* given) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // rows lane / 4 and eight below
    float amax = 0.0f;
#pragma unroll
    for (int j = 0; j < kScaleGroup / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) amax = ptx::max_or_nan(amax, fabsf(acc[kFirst + 4 * j + 2 * half + i]));
    }
    amax = ptx::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, 1));
    amax = ptx::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, 2));
    const float scale = given != nullptr ? *given : group_scale(amax);
    const float inverse = __frcp_rn(scale);
    const int row = lane / 4 + 8 * half;
#pragma unroll
    for (int j = 0; j < kScaleGroup / 8; ++j) {
      const int value = kFirst + 4 * j + 2 * half;
      *reinterpret_cast<uint16_t*>(staging + cta::swizzled_offset(row, j / 2) + j % 2 * 8 + lane % 4 * 2) =
          quantize_pair(acc[value], acc[value + 1], inverse);
    }
    if (lane % 4 == 0 && row < rows_left) scales[row] = scale;
  }
}

// Writes this warp's 16 rows of the tile as e4m3, kOutColumns columns, and their scales [B(columns), scale_stride].
template <int kOutColumns, int kBuffers, class Sums>
__device__ inline void store_quantized(uint8_t (&staging)[kBuffers][kStagingBytes], const OutRows& out, float* scales,
                                       int32_t scale_stride, const Sums& acc, const float* given) {
  static_assert(kOutColumns == kScaleGroup || kOutColumns == 2 * kScaleGroup);
  constexpr int kCodeBytes = kStagingRows * kScaleGroup;
  static_assert(kOutColumns / kScaleGroup * kCodeBytes <= kStagingBytes);
  const bool is_issuer = threadIdx.x % 32 == 0;
  if (is_issuer) ptx::bulk_wait_read();
  __syncwarp();  // earlier stores have read the buffer
  const auto each_block = [&](auto&& act) {
    act(::cuda::std::integral_constant<int, 0>{});
    if constexpr (kOutColumns > kScaleGroup) act(::cuda::std::integral_constant<int, 1>{});
  };
  each_block([&](auto block) {
    const int32_t column = out.column_begin + block * kScaleGroup;
    if (column >= out.columns) return;
    stage_quantized<block * kScaleGroup / 2>(
        staging[0] + block * kCodeBytes, acc,
        scales + static_cast<int64_t>(column / kScaleGroup) * scale_stride + out.row, out.rows_left, given);
  });
  ptx::fence_proxy_async();  // written through the generic proxy, TMA reads through the async proxy
  __syncwarp();              // all 16 rows are written and fenced
  each_block([&](auto block) {
    const int32_t column = out.column_begin + block * kScaleGroup;
    if (column >= out.columns) return;
    if (out.rows_left >= kStagingRows) {
      if (is_issuer) {
        ptx::tma_store_2d(&out.map, column, static_cast<int32_t>(out.row), staging[0] + block * kCodeBytes);
      }
    } else if (out.rows_left > 0) {
      store_partial<uint8_t, 1>(staging[0] + block * kCodeBytes, out, column);
    }
  });
  if (is_issuer) ptx::bulk_commit();
}

}  // namespace tessera::grouped
