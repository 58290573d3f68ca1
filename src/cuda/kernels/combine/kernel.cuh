// Combine: a gather of k rows a token and a weighted sum, bound by HBM: (k + 1) * H * 2 bytes a token.
//
// One thread a 16-byte chunk (8 elements) of one token. It loads the chunk of `slots_in_flight` rows before it adds the
// first, then adds them in slot order: the order of the sum never depends on anything but the slot.
#pragma once

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/cta/mark.cuh"
#include "cuda/kernels/combine/launch.h"
#include "cuda/kernels/combine/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "tessera/core/dtype.h"

namespace tessera::kernels::combine {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kChunkElements = 8;

struct Params : Args {
  int64_t num_chunks;  // T * H / 8
  int32_t row_chunks;  // H / 8
};

__device__ inline float topk_weight(const Params& params, int64_t index) {
  switch (params.topk_weights_dtype) {
    case DType::f32: return static_cast<const float*>(params.topk_weights)[index];
    case DType::bf16: return cta::to_float(static_cast<const __nv_bfloat16*>(params.topk_weights)[index]);
    case DType::f16: return cta::to_float(static_cast<const __half*>(params.topk_weights)[index]);
  }
  return 0.0f;
}

__device__ inline float slot_weight(const Params& params, int32_t token, int32_t slot) {
  const int32_t routed_slots = params.num_slots - params.num_shared_experts;
  if (slot < routed_slots) return topk_weight(params, static_cast<int64_t>(token) * routed_slots + slot);
  return params.shared_weight == nullptr ? 1.0f : params.shared_weight[token];
}

template <class Element>
__device__ inline void add_weighted(float (&sum)[kChunkElements], float weight, uint4 chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = cta::unpack2(Element{}, words[i]);
    sum[2 * i] = __fmaf_rn(weight, pair.x, sum[2 * i]);
    sum[2 * i + 1] = __fmaf_rn(weight, pair.y, sum[2 * i + 1]);
  }
}

template <class Element, bool kMarked>
__global__ void __launch_bounds__(kPolicy.threads) combine_kernel(const __grid_constant__ Params params) {
  cta::mark<kMarked>(params.marks, &cuda::KernelMarks::begin);
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  cta::mark<kMarked>(params.marks, &cuda::KernelMarks::work);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPolicy.threads + threadIdx.x;
  if (index >= params.num_chunks) return;
  const int32_t token = static_cast<int32_t>(index / params.row_chunks);
  const int32_t column = static_cast<int32_t>(index - static_cast<int64_t>(token) * params.row_chunks);
  const int64_t first_slot = static_cast<int64_t>(token) * params.num_slots;
  float sum[kChunkElements] = {};
  for (int32_t begin = 0; begin < params.num_slots; begin += kPolicy.slots_in_flight) {
    uint4 chunk[kPolicy.slots_in_flight];
    float weight[kPolicy.slots_in_flight];
    bool used[kPolicy.slots_in_flight];
#pragma unroll
    for (int i = 0; i < kPolicy.slots_in_flight; ++i) {
      const bool in_range = begin + i < params.num_slots;
      const int32_t row = in_range ? params.token_row[first_slot + begin + i] : -1;
      used[i] = row >= 0;
      weight[i] = used[i] ? slot_weight(params, token, begin + i) : 0.0f;
      if (used[i])
        chunk[i] =
            __ldcs(&static_cast<const uint4*>(params.rows)[static_cast<int64_t>(row) * params.row_chunks + column]);
    }
#pragma unroll
    for (int i = 0; i < kPolicy.slots_in_flight; ++i) {
      if (used[i]) add_weighted<Element>(sum, weight[i], chunk[i]);
    }
  }
  uint32_t packed[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) packed[i] = cta::pack2(Element{}, sum[2 * i], sum[2 * i + 1]);
  static_cast<uint4*>(params.out)[index] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
  cta::mark_end<kMarked>(params.marks);  // threads that have left are not waited for; thread 0 has a chunk in every CTA
}

}  // namespace tessera::kernels::combine
