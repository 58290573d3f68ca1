// Tokens that came quantised, into the rows that they are routed to: bound by memory, (1 + k) bytes an element.
//
// As the kernel that quantises: eight lanes a group of 128 columns of a token, 16 codes each. The group's scale goes
// with the first.
#pragma once

#include <cstdint>

#include "cuda/kernels/quantize_rows/kernel.cuh"

namespace tessera::kernels::quantize_rows {

__global__ void __launch_bounds__(kPolicy.threads) copy_rows_kernel(const __grid_constant__ Params params) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * kPolicy.threads + threadIdx.x) / kGroupLanes;
  if (group >= params.num_groups) return;
  const int64_t token = group / params.token_groups;
  const auto group_in_token = static_cast<int32_t>(group - token * params.token_groups);
  const auto lane = static_cast<int32_t>(threadIdx.x % kGroupLanes);
  const int32_t column = group_in_token * grouped::kScaleBlock + lane * kLaneElements;
  if (column >= params.columns) return;
  const auto* const tokens = static_cast<const uint8_t*>(params.tokens);
  const uint4 chunk = *reinterpret_cast<const uint4*>(tokens + token * params.columns + column);
  const float scale = lane == 0 ? params.token_scales[group] : 0.0f;
  const int32_t* const rows = params.token_row + token * params.num_slots;
  auto* const codes = static_cast<uint8_t*>(params.codes);
  float* const scales = params.scales + static_cast<int64_t>(group_in_token) * params.scale_stride;
  for (int32_t slot = 0; slot < params.num_slots; ++slot) {
    const int32_t row = rows[slot];
    if (row < 0) continue;
    *reinterpret_cast<uint4*>(codes + static_cast<int64_t>(row) * params.columns + column) = chunk;
    if (lane == 0) scales[row] = scale;
  }
}

}  // namespace tessera::kernels::quantize_rows
