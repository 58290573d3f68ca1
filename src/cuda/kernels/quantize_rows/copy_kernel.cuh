// Tokens that came quantised, into the rows that they are routed to: bound by memory, (1 + k) bytes an element.
//
// As the kernel that quantises: eight lanes a group of 128 columns of a token, 16 codes each. The group's scale goes
// with the first.
#pragma once

#include <cstdint>

#include "cuda/kernels/quantize_rows/kernel.cuh"

namespace tessera::kernels::quantize_rows {

__global__ void __launch_bounds__(kPolicy.threads) copy_rows_kernel(const __grid_constant__ Params params) {
  const Place place = begin(params);
  if (!place.exists) return;
  const auto* const tokens = static_cast<const uint8_t*>(params.tokens);
  const uint4 codes = *reinterpret_cast<const uint4*>(tokens + place.token * params.columns + place.column);
  const int64_t of_scale = params.one_scale ? place.token : place.token * params.token_groups + place.group;
  const float scale = threadIdx.x % kGroupLanes == 0 ? params.token_scales[of_scale] : 0.0f;
  store(params, place, codes, scale);
}

}  // namespace tessera::kernels::quantize_rows
