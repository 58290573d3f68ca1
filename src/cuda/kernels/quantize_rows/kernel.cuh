// Quantising: bound by memory, (2 + k) bytes an element.
//
// Eight lanes a group of 128 columns of a token, 16 elements each: two 16-byte loads, three exchanges for the group's
// largest magnitude, one 16-byte store a slot. A GEMM that finds its rows in order costs less than the copies: see
// README.md.
#pragma once

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/grouped/quantize_rows.cuh"
#include "cuda/kernels/quantize_rows/launch.h"
#include "cuda/kernels/quantize_rows/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/warp.cuh"
#include "tessera/core/e4m3.h"

namespace tessera::kernels::quantize_rows {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kLaneElements = 16;
inline constexpr int kGroupLanes = kScaleGroup / kLaneElements;

struct Params : Args {
  int64_t num_groups;  // of all tokens
  int32_t token_groups;
};

template <class Element>
__global__ void __launch_bounds__(kPolicy.threads) quantize_rows_kernel(const __grid_constant__ Params params) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * kPolicy.threads + threadIdx.x) / kGroupLanes;
  const bool has_group = group < params.num_groups;
  const int64_t token = has_group ? group / params.token_groups : 0;
  const int32_t group_in_token = has_group ? static_cast<int32_t>(group - token * params.token_groups) : 0;
  const int32_t column = group_in_token * kScaleGroup + static_cast<int32_t>(threadIdx.x % kGroupLanes) * kLaneElements;
  const bool has_columns = has_group && column < params.columns;
  float values[kLaneElements] = {};
  float amax = 0.0f;
  if (has_columns) {
    const auto* const source =
        reinterpret_cast<const uint4*>(static_cast<const Element*>(params.tokens) + token * params.columns + column);
    const uint4 low = source[0];
    const uint4 high = source[1];
    const uint32_t words[kLaneElements / 2] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kLaneElements / 2; ++i) {
      const float2 pair = cta::unpack2(Element{}, words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
#pragma unroll
    for (float value : values) amax = ptx::max_or_nan(amax, fabsf(value));
  }
#pragma unroll
  for (int distance = 1; distance < kGroupLanes; distance *= 2)
    amax = ptx::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
  if (!has_columns) return;
  const float scale = grouped::group_scale(amax);
  const float inverse = __frcp_rn(scale);
  uint32_t codes[kLaneElements / 4];
#pragma unroll
  for (int i = 0; i < kLaneElements / 4; ++i) {
    const uint32_t low = grouped::quantize_pair(values[4 * i], values[4 * i + 1], inverse);
    const uint32_t high = grouped::quantize_pair(values[4 * i + 2], values[4 * i + 3], inverse);
    codes[i] = low | high << 16;
  }
  const uint4 chunk = make_uint4(codes[0], codes[1], codes[2], codes[3]);
  const int32_t* const rows = params.token_row + token * params.num_slots;
  float* const scales = params.scales + static_cast<int64_t>(group_in_token) * params.scale_stride;
  for (int32_t slot = 0; slot < params.num_slots; ++slot) {
    const int32_t row = rows[slot];
    if (row < 0) continue;
    *reinterpret_cast<uint4*>(static_cast<uint8_t*>(params.codes) + static_cast<int64_t>(row) * params.columns +
                              column) = chunk;
    if (threadIdx.x % kGroupLanes == 0) scales[row] = scale;
  }
}

}  // namespace tessera::kernels::quantize_rows
