// Quantising with one scale a token, or by scales that are given: bound by memory as the kernel of groups.
#pragma once

#include <cstdint>

#include "cuda/grouped/pair_expert.cuh"
#include "cuda/kernels/quantize_rows/kernel.cuh"

namespace tessera::kernels::quantize_rows {

// A CTA a token, which it reads twice: for the largest magnitude, then, from cache, to quantise.
template <class Element>
__global__ void __launch_bounds__(kPolicy.threads) quantize_whole_rows_kernel(const __grid_constant__ Params params) {
  constexpr int kWarps = kPolicy.threads / 32;
  constexpr int32_t kStep = kPolicy.threads * kLaneElements;
  __shared__ float warp_amax[kWarps];
  enter(params);
  const int64_t token = blockIdx.x;
  const int32_t first = static_cast<int32_t>(threadIdx.x) * kLaneElements;
  float amax = 0.0f;
  for (int32_t column = first; column < params.columns; column += kStep)
    amax = load_elements<Element>(params, token, column, true).largest(amax);
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    amax = ptx::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
  if (threadIdx.x % 32 == 0) warp_amax[threadIdx.x / 32] = amax;
  __syncthreads();  // every warp's is there
#pragma unroll
  for (const float other : warp_amax) amax = ptx::max_or_nan(amax, other);
  const float scale = grouped::group_scale(amax);
  for (int32_t column = first; column < params.columns; column += kStep) {
    const uint4 codes = load_elements<Element>(params, token, column, true).codes(scale);
    each_row(params, token, [&](int32_t, int64_t row) { store_codes(params, row, column, codes); });
  }
  each_row(params, token, [&](int32_t, int64_t row) {
    for (int32_t group = static_cast<int32_t>(threadIdx.x); group < params.token_groups; group += kPolicy.threads)
      params.scales[static_cast<int64_t>(group) * params.scale_stride + row] = scale;
  });
}

// Lanes as in the kernel of groups. Where experts have scales of their own, a slot's codes are its expert's.
template <class Element>
__global__ void __launch_bounds__(kPolicy.threads) quantize_given_kernel(const __grid_constant__ Params params) {
  const Place place = begin(params);
  if (!place.exists) return;
  const LaneElements elements = load_elements<Element>(params, place.token, place.column, true);
  if (params.num_given_scales == 1) {
    const float scale = *params.given_scales;
    return store(params, place, elements.codes(scale), scale);
  }
  each_row(params, place.token, [&](int32_t slot, int64_t row) {
    const int32_t expert = grouped::expert_of(params.routing, place.token * params.num_slots + slot);
    const float scale = params.given_scales[min(expert, params.num_given_scales - 1)];
    store_row(params, place, row, elements.codes(scale), scale);
  });
}

}  // namespace tessera::kernels::quantize_rows
