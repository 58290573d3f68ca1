// Quantising: bound by memory, (2 + k) bytes an element.
//
// Eight lanes a group of 128 columns of a token, 16 elements each: two 16-byte loads, three exchanges for the group's
// largest magnitude, one 16-byte store a slot. A GEMM that finds its rows in order costs less than the copies: see
// README.md.
#pragma once

#include <cstdint>

#include "cuda/grouped/lane_elements.cuh"
#include "cuda/kernels/quantize_rows/launch.h"
#include "cuda/kernels/quantize_rows/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "tessera/core/e4m3.h"

namespace tessera::kernels::quantize_rows {

inline constexpr Policy kPolicy = default_policy();
using grouped::kGroupLanes;
using grouped::kLaneElements;
using grouped::LaneElements;

struct Params : Args {
  int64_t num_groups;  // of all tokens
  int32_t token_groups;
};

// What a thread works on: 16 elements of a group of a token.
struct Place {
  bool exists;
  int64_t token;
  int32_t group;  // of the token
  int32_t column;
};

// By all threads, first: the number of this one. Also clears the counters. In this order: kernels behind this one then
// find what stands before it, the ids of a small batch's experts.
__device__ inline int64_t enter(const Params& params) {
  ptx::wait_for_prerequisites();
  ptx::launch_dependents();
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kPolicy.threads + threadIdx.x;
  for (int64_t i = thread; i < params.num_counters; i += static_cast<int64_t>(gridDim.x) * kPolicy.threads)
    params.counters[i] = 0;
  return thread;
}

// By all threads, first.
__device__ inline Place begin(const Params& params) {
  const int64_t thread = enter(params);
  const int64_t group = thread / kGroupLanes;
  if (group >= params.num_groups) return {};
  Place place{};
  place.token = group / params.token_groups;
  place.group = static_cast<int32_t>(group - place.token * params.token_groups);
  place.column = place.group * kScaleGroup + static_cast<int32_t>(threadIdx.x % kGroupLanes) * kLaneElements;
  place.exists = place.column < params.columns;
  return place;
}

// Calls act(slot, row) for each slot of a token that has a row.
template <class Act>
__device__ inline void each_row(const Params& params, int64_t token, Act&& act) {
  for (int32_t slot = 0; slot < params.num_slots; ++slot) {
    const int64_t row = params.token_row == nullptr ? token : params.token_row[token * params.num_slots + slot];
    if (row >= 0) act(slot, row);
  }
}

__device__ inline void store_codes(const Params& params, int64_t row, int32_t column, const uint4& codes) {
  *reinterpret_cast<uint4*>(static_cast<uint8_t*>(params.codes) + row * params.columns + column) = codes;
}

__device__ inline void store_row(const Params& params, const Place& place, int64_t row, const uint4& codes,
                                 float scale) {
  store_codes(params, row, place.column, codes);
  if (threadIdx.x % kGroupLanes == 0)
    params.scales[static_cast<int64_t>(place.group) * params.scale_stride + row] = scale;
}

// Into the rows of all slots.
__device__ inline void store(const Params& params, const Place& place, const uint4& codes, float scale) {
  each_row(params, place.token, [&](int32_t, int64_t row) { store_row(params, place, row, codes, scale); });
}

// A thread's 16 elements of a token.
template <class Element>
__device__ inline LaneElements load_elements(const Params& params, int64_t token, int32_t column, bool exists) {
  LaneElements elements;
  elements.load(static_cast<const Element*>(params.tokens) + token * params.columns + column, exists);
  return elements;
}

template <class Element>
__global__ void __launch_bounds__(kPolicy.threads) quantize_rows_kernel(const __grid_constant__ Params params) {
  const Place place = begin(params);
  const LaneElements elements = load_elements<Element>(params, place.token, place.column, place.exists);
  const float scale = grouped::group_scale(elements.group_largest());
  if (place.exists) store(params, place, elements.codes(scale), scale);
}

}  // namespace tessera::kernels::quantize_rows
