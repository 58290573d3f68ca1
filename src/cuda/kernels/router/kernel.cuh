// Router: one warp a token, all scores of the token in its registers.
//
//   lane n holds experts n, n + 32, n + 64, ...      the order in which the definition's 32 partial sums take them
//   logits -> scores -> keys                          keys: unsigned numbers in the order of choice, see order_key
//   k rounds: largest key of the warp, lowest id      slot r ends in lane r
//   lanes 0 .. k-1: weights of the slots
//
// Loads are 2 or 4 bytes a lane: neighbouring lanes read neighbouring experts, so a warp's load is whole sectors
// anyway. Grouped choice passes the scores through shared memory once, because a group's experts lie in different
// lanes. All arithmetic is of exact_math.h: the host's bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/kernels/router/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "tessera/core/exact_math.h"
#include "tessera/core/router_config.h"

namespace tessera::kernels::router {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kLanes = 32;
inline constexpr int kThreads = kPolicy.warps * kLanes;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
inline constexpr uint32_t kTakenKey = 0;  // chosen already, or no expert at all
inline constexpr uint32_t kNanKey = 1;    // below every number: that of -inf is 0x007FFFFF
inline constexpr uint32_t kQuietNan = 0x7FC00000u;

struct Params {
  RouterConfig config;
  const void* logits;     // [T, E]
  const float* bias;      // [E] or null
  int32_t* topk_ids;      // [T, k]
  float* topk_weights;    // [T, k]
  int32_t* num_nan_rows;  // [1] or null
  int32_t num_tokens;     // T
};

__device__ inline float negative_infinity() { return __uint_as_float(0xFF800000u); }

// Larger for what is chosen first: numbers in their order, +0 equal to -0, then NaN.
__device__ inline uint32_t order_key(float score) {
  if (score != score) return kNanKey;
  const uint32_t bits = score == 0.0f ? 0u : __float_as_uint(score);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The number that has this key.
__device__ inline float number_of_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

__device__ inline float load_logit(const Params& params, int64_t index) {
  switch (params.config.logits_dtype) {
    case DType::f32: return static_cast<const float*>(params.logits)[index];
    case DType::f16: return cta::to_float(static_cast<const __half*>(params.logits)[index]);
    default: return cta::to_float(static_cast<const __nv_bfloat16*>(params.logits)[index]);
  }
}

// Adds lane n + d to lane n for d = 16, 8, 4, 2, 1; every lane gets lane 0's result.
__device__ inline float sum_of_lanes(float partial) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    partial = exact_add(partial, __shfl_down_sync(kAllLanes, partial, distance));
  return __shfl_sync(kAllLanes, partial, 0);
}

// Keys of up to 32 * kValues things, of which lane n holds n, n + 32, ...; taken one by one, the best first.
template <int kValues>
class Choice {
 public:
  __device__ void set(int j, uint32_t key) { keys_[j] = key; }

  // The largest key of this lane, and the first place that has it. To be called when all keys are set.
  __device__ void find_lane_best() {
    best_ = keys_[0];
    best_place_ = 0;
#pragma unroll
    for (int j = 1; j < kValues; ++j) {
      if (keys_[j] > best_) {
        best_ = keys_[j];
        best_place_ = j;
      }
    }
  }

  __device__ uint32_t largest_key() const { return __reduce_max_sync(kAllLanes, best_); }

  // Number of the best thing left, the lowest among equals, in every lane; it is then taken.
  __device__ uint32_t take() {
    const uint32_t lane = threadIdx.x % kLanes;
    const uint32_t largest = largest_key();
    const uint32_t candidate = static_cast<uint32_t>(best_place_) * kLanes + lane;
    const uint32_t taken = __reduce_min_sync(kAllLanes, best_ == largest ? candidate : UINT32_MAX);
    if (taken % kLanes == lane) {
#pragma unroll
      for (int j = 0; j < kValues; ++j) {
        if (static_cast<uint32_t>(j) == taken / kLanes) keys_[j] = kTakenKey;
      }
      find_lane_best();
    }
    __syncwarp();
    return taken;
  }

 private:
  uint32_t keys_[kValues];
  uint32_t best_;
  int best_place_;
};

// e of the definition: 1 for the largest logit, exp(logit - largest) for others, 0 for NaN.
__device__ inline float softmax_term(float logit, float largest) {
  return logit == largest ? 1.0f : exp_nonpositive(exact_add(logit, -largest));
}

// Sum of the two highest scores of group `group`; of a group of one expert, its score; a NaN counts as -inf. Lanes
// start at different experts so that they meet different banks.
__device__ inline float group_score(const float* scores, int32_t group, int32_t group_size) {
  const float* members = scores + group * group_size;
  if (group_size == 1) return members[0] == members[0] ? members[0] : negative_infinity();
  float first = negative_infinity(), second = negative_infinity();
  int32_t member = static_cast<int32_t>(threadIdx.x % kLanes) % group_size;
  for (int32_t i = 0; i < group_size; ++i) {
    const float score = members[member];  // a NaN compares false: it is passed over
    if (score > first) {
      second = first;
      first = score;
    } else if (score > second) {
      second = score;
    }
    if (++member == group_size) member = 0;
  }
  return exact_add(first, second);
}

// Leaves in `flags` [num_groups] a 1 for every group that may be chosen from, else 0. `flags` is the memory of `scores`
// [E]: the scores are gone afterwards.
template <int kValues>
__device__ inline void choose_groups(const RouterConfig& config, const float* scores, uint32_t* flags) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x % kLanes);
  const int32_t group_size = config.num_experts / config.num_groups;
  Choice<kValues> choice;
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    const int32_t group = j * kLanes + lane;
    choice.set(j, group < config.num_groups ? order_key(group_score(scores, group, group_size)) : kTakenKey);
  }
  choice.find_lane_best();
  __syncwarp();  // every lane has read the scores
  for (int32_t group = lane; group < config.num_groups; group += kLanes) flags[group] = 0;
  __syncwarp();  // the flags are 0
  for (int32_t i = 0; i < config.topk_groups; ++i) {
    const uint32_t group = choice.take();
    if (lane == 0) flags[group] = 1;
  }
  __syncwarp();  // the flags are set
}

// Weight of the slot that this lane holds (lanes k .. 31 hold none). `largest` and `full_sum` are of the softmax kinds.
__device__ inline float slot_weight(const RouterConfig& config, float logit, float largest, float full_sum) {
  const bool has_slot = static_cast<int32_t>(threadIdx.x % kLanes) < config.top_k;
  const bool is_nan = logit != logit;
  const bool is_sigmoid = config.kind == RouterKind::sigmoid_grouped || config.kind == RouterKind::sigmoid_renormalize;
  const float value = is_sigmoid ? exact_sigmoid(logit) : softmax_term(logit, largest);
  const float slot_sum = sum_of_lanes(has_slot && !is_nan ? exact_add(0.0f, value) : 0.0f);
  const float sum = config.kind == RouterKind::softmax_topk ? full_sum : slot_sum;
  const float share = is_sigmoid && sum == 0.0f ? 0.0f : exact_div(value, sum);
  return is_nan ? __uint_as_float(kQuietNan) : exact_mul(share, config.scale);
}

template <int kValues>
__device__ inline void route_token(const Params& params, int32_t token, float* scores) {
  const RouterConfig& config = params.config;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % kLanes);
  const int64_t row = static_cast<int64_t>(token) * config.num_experts;
  const bool is_grouped = config.kind == RouterKind::sigmoid_grouped;
  float values[kValues];  // logits, then scores
  bool has_number = false;
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    const int32_t expert = j * kLanes + lane;
    values[j] = expert < config.num_experts ? load_logit(params, row + expert) : __uint_as_float(kQuietNan);
    has_number |= values[j] == values[j];
  }
  if (!__any_sync(kAllLanes, has_number) && lane == 0 && params.num_nan_rows != nullptr)
    atomicAdd(params.num_nan_rows, 1);
  if (is_grouped) {
#pragma unroll
    for (int j = 0; j < kValues; ++j) {
      const int32_t expert = j * kLanes + lane;
      values[j] = exact_sigmoid(values[j]);
      if (expert >= config.num_experts) continue;
      if (params.bias != nullptr) values[j] = exact_add(values[j], params.bias[expert]);
      scores[expert] = values[j];
    }
    __syncwarp();  // the scores are in shared memory
    choose_groups<kValues>(config, scores, reinterpret_cast<uint32_t*>(scores));
  }
  Choice<kValues> choice;
#pragma unroll
  for (int j = 0; j < kValues; ++j) {
    const int32_t expert = j * kLanes + lane;
    const int32_t group_size = config.num_experts / config.num_groups;
    const bool allowed = expert < config.num_experts &&
                         (!is_grouped || reinterpret_cast<const uint32_t*>(scores)[expert / group_size] != 0);
    choice.set(j, allowed ? order_key(values[j]) : kTakenKey);
  }
  choice.find_lane_best();
  const float largest = number_of_key(choice.largest_key());
  float full_sum = 0.0f;
  if (config.kind == RouterKind::softmax_topk) {
#pragma unroll
    for (int j = 0; j < kValues; ++j) {
      if (j * kLanes + lane < config.num_experts) full_sum = exact_add(full_sum, softmax_term(values[j], largest));
    }
    full_sum = sum_of_lanes(full_sum);
  }
  uint32_t chosen = 0;
  for (int32_t slot = 0; slot < config.top_k; ++slot) {
    const uint32_t expert = choice.take();
    if (slot == lane) chosen = expert;
  }
  const float logit = load_logit(params, row + chosen);
  const float weight = slot_weight(config, logit, largest, full_sum);
  if (lane >= config.top_k) return;
  const int64_t place = static_cast<int64_t>(token) * config.top_k + lane;
  params.topk_ids[place] = static_cast<int32_t>(chosen);
  params.topk_weights[place] = weight;
}

// Dynamic shared memory: for the grouped kind, E floats a warp.
template <int kValues>
__global__ void __launch_bounds__(kThreads) router_kernel(const __grid_constant__ Params params) {
  extern __shared__ float shared_scores[];
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int32_t warp = static_cast<int32_t>(threadIdx.x / kLanes);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kPolicy.warps + warp;
  if (token >= params.num_tokens) return;
  route_token<kValues>(params, static_cast<int32_t>(token), shared_scores + warp * params.config.num_experts);
}

}  // namespace tessera::kernels::router
