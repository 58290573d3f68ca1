// Mixture: router weights in front of the experts, their weighted sum behind.
//
// weigh    a CTA takes kRecords records; thread t takes the chunks t, t + kThreads, ... of their features:
//
//            h [4 records] x W [4 experts] -> 16 sums a thread -> warp (butterfly) -> CTA (in the order of warps)
//            logits in shared memory -> softmax, a warp a record -> router_weights, topk_ids
//
//          More than kExperts experts: the features are read again, from L2, for the next kExperts.
// combine  one thread a chunk of 8 outputs of a record, like the layer's combine: rows in flight, added in order.
//
// Which thread adds what depends on the number of features alone: a record's bits do not depend on its neighbours.
#pragma once

#include <cstdint>

#include "cuda/cta/cached_chunk.cuh"
#include "cuda/cta/operand_chunk.cuh"
#include "cuda/kernels/mixture/launch.h"
#include "cuda/kernels/mixture/policy.h"
#include "cuda/ptx/cluster.cuh"

namespace tessera::kernels::mixture {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kThreads = kPolicy.weigh_threads;
inline constexpr int kLanes = 32;
inline constexpr int kWarps = kThreads / kLanes;
inline constexpr int kRecords = kPolicy.records_at_a_time;
inline constexpr int kExperts = kPolicy.experts_at_a_time;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
static_assert(kWarps == kRecords, "the softmax gives every record a warp");
static_assert(kMaxExperts <= 2 * kLanes, "the softmax gives a lane two experts");

using Values = float[cta::kChunkElements];

struct WeighParams {
  cta::OperandView h;     // [N, stride]
  const float* weight;    // [E, D]
  const float* bias;      // [E]
  float* router_weights;  // [N, E]
  int32_t* topk_ids;      // [N, E] or null
  float threshold;
  int64_t num_records;   // N
  int32_t num_features;  // D
  int32_t num_experts;   // E
  bool aligned_weight;   // rows of weight are whole, aligned chunks
};

struct WeighStorage {
  float partial[kWarps][kRecords][kExperts];  // sums of the warps
  float logits[kRecords][kMaxExperts];
};

// Eight weights of an expert from feature `first`; 0 beyond the last feature.
__device__ inline void load_weights(const WeighParams& params, int32_t expert, int32_t first, Values& weights) {
  const float* row = params.weight + static_cast<int64_t>(expert) * params.num_features + first;
  if (params.aligned_weight) {
    const float4 front = __ldg(reinterpret_cast<const float4*>(row));
    const float4 back = __ldg(reinterpret_cast<const float4*>(row) + 1);
    weights[0] = front.x, weights[1] = front.y, weights[2] = front.z, weights[3] = front.w;
    weights[4] = back.x, weights[5] = back.y, weights[6] = back.z, weights[7] = back.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) weights[i] = first + i < params.num_features ? __ldg(row + i) : 0.0f;
}

// Adds one chunk of features to the sums of kExperts experts from `first_expert`.
template <cta::Operand kKind>
__device__ inline void add_features(const WeighParams& params, int64_t first_record, int32_t first_expert,
                                    int32_t chunk_idx, float (&sum)[kRecords][kExperts]) {
  cta::Chunk<kKind> chunk[kRecords];
#pragma unroll
  for (int r = 0; r < kRecords; ++r) {
    // The last CTA's missing records repeat the last one; what comes of them is not written.
    const int64_t record = min(first_record + r, params.num_records - 1);
    chunk[r] = cta::load_chunk<kKind>(params.h, record * (params.h.stride / cta::kChunkElements) + chunk_idx);
  }
  const int32_t first = chunk_idx * cta::kChunkElements;
  Values weights[kExperts];
#pragma unroll
  for (int e = 0; e < kExperts; ++e)
    load_weights(params, min(first_expert + e, params.num_experts - 1), first, weights[e]);
#pragma unroll
  for (int r = 0; r < kRecords; ++r) {
    Values h;
    cta::unpack(chunk[r], h);
    if (!params.aligned_weight) {  // padding is not multiplied: 0 times NaN is NaN
#pragma unroll
      for (int i = 0; i < cta::kChunkElements; ++i) h[i] = first + i < params.num_features ? h[i] : 0.0f;
    }
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
#pragma unroll
      for (int i = 0; i < cta::kChunkElements; ++i) sum[r][e] = __fmaf_rn(h[i], weights[e][i], sum[r][e]);
    }
  }
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value = __fadd_rn(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// smem.logits of kExperts experts from the sums of all threads.
__device__ inline void reduce_sums(const WeighParams& params, int32_t first_expert,
                                   const float (&sum)[kRecords][kExperts], WeighStorage& smem) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll
  for (int r = 0; r < kRecords; ++r) {
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      const float total = warp_sum(sum[r][e]);
      if (lane == 0) smem.partial[warp][r][e] = total;
    }
  }
  __syncthreads();  // all warps' sums are written
  const int r = static_cast<int>(threadIdx.x) / kExperts;
  const int e = static_cast<int>(threadIdx.x) % kExperts;
  if (r < kRecords && first_expert + e < params.num_experts) {
    float total = smem.partial[0][r][e];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) total = __fadd_rn(total, smem.partial[w][r][e]);
    smem.logits[r][first_expert + e] = __fadd_rn(total, __ldg(&params.bias[first_expert + e]));
  }
  __syncthreads();  // logits are written; the partial sums may be overwritten
}

// Softmax of one record by one warp, two experts a lane.
__device__ inline void write_weights(const WeighParams& params, int64_t record, const float* logits) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  float logit[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t expert = lane + i * kLanes;
    logit[i] = expert < params.num_experts ? logits[expert] : -INFINITY;
  }
  const float largest = warp_max(fmaxf(logit[0], logit[1]));
  float power[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) power[i] = lane + i * kLanes < params.num_experts ? expf(logit[i] - largest) : 0.0f;
  const float total = warp_sum(__fadd_rn(power[0], power[1]));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int32_t expert = lane + i * kLanes;
    if (expert >= params.num_experts) continue;
    const float weight = __fdiv_rn(power[i], total);
    const int64_t index = record * params.num_experts + expert;
    params.router_weights[index] = weight;
    if (params.topk_ids != nullptr) params.topk_ids[index] = weight < params.threshold ? -1 : expert;
  }
}

template <cta::Operand kKind>
__global__ void __launch_bounds__(kThreads, kPolicy.weigh_min_ctas)
    weigh_kernel(const __grid_constant__ WeighParams params) {
  __shared__ WeighStorage smem;
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int64_t first_record = static_cast<int64_t>(blockIdx.x) * kRecords;
  const int32_t chunks = static_cast<int32_t>(cta::num_chunks(params.num_features));
  for (int32_t first_expert = 0; first_expert < params.num_experts; first_expert += kExperts) {
    float sum[kRecords][kExperts] = {};
    for (int32_t c = static_cast<int32_t>(threadIdx.x); c < chunks; c += kThreads)
      add_features<kKind>(params, first_record, first_expert, c, sum);
    reduce_sums(params, first_expert, sum, smem);
  }
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t record = first_record + warp;
  if (record < params.num_records) write_weights(params, record, smem.logits[warp]);
}

struct CombineParams {
  cta::OperandView rows;        // [rows, stride]
  const int32_t* token_row;     // [N, E] or null
  const float* router_weights;  // [N, E]
  const float* output_bias;     // [X] or null
  cta::OperandView out;         // [N, stride]
  int64_t num_chunks;           // N * record_chunks
  int32_t record_chunks;        // ceil(X / 8)
  int32_t num_experts;          // E
  int32_t expert_size;          // X
  bool relu;
};

// Output bias of a chunk, 0 beyond the last output.
__device__ inline void load_bias(const CombineParams& params, int32_t first, Values& bias) {
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) {
    const bool exists = params.output_bias != nullptr && first + i < params.expert_size;
    bias[i] = exists ? __ldg(&params.output_bias[first + i]) : 0.0f;
  }
}

template <cta::Operand kKind>
__device__ inline void add_experts(const CombineParams& params, int64_t record, int32_t column, Values& sum) {
  constexpr int kInFlight = kPolicy.experts_in_flight;
  const int64_t row_chunks = params.rows.stride / cta::kChunkElements;
  for (int32_t first = 0; first < params.num_experts; first += kInFlight) {
    cta::Chunk<kKind> chunk[kInFlight];
    float weight[kInFlight];
    bool used[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      used[i] = first + i < params.num_experts;
      if (!used[i]) continue;
      const int64_t slot = record * params.num_experts + first + i;
      const int64_t row = params.token_row == nullptr ? slot : __ldg(&params.token_row[slot]);
      used[i] = row >= 0;
      if (!used[i]) continue;
      weight[i] = __ldg(&params.router_weights[slot]);
      chunk[i] = cta::load_chunk<kKind>(params.rows, row * row_chunks + column);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!used[i]) continue;
      Values values;
      cta::unpack(chunk[i], values);
#pragma unroll
      for (int j = 0; j < cta::kChunkElements; ++j) sum[j] = __fmaf_rn(weight[i], values[j], sum[j]);
    }
  }
}

template <cta::Operand kKind>
__global__ void __launch_bounds__(kPolicy.combine_threads)
    combine_kernel(const __grid_constant__ CombineParams params) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPolicy.combine_threads + threadIdx.x;
  if (index >= params.num_chunks) return;
  const int64_t record = index / params.record_chunks;
  const int32_t column = static_cast<int32_t>(index - record * params.record_chunks);
  const int32_t first = column * cta::kChunkElements;
  Values sum;
  load_bias(params, first, sum);
  add_experts<kKind>(params, record, column, sum);
#pragma unroll
  for (int i = 0; i < cta::kChunkElements; ++i) {
    if (params.relu && sum[i] < 0.0f) sum[i] = 0.0f;
    if (first + i >= params.expert_size) sum[i] = 0.0f;  // the padding of a row holds zeros
  }
  cta::store_operands(params.out, record * params.out.stride + first, sum);
}

}  // namespace tessera::kernels::mixture
