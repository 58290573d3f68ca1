// The dense mixture around the expert products: router weights in front, the weighted sum behind.
//
//   weigh     g[n, :] = softmax(W h[n, :] + b), fp32, the largest logit subtracted first
//   combine   y[n, x] = act(output_bias[x] + sum_e g[n, e] rows[row(n, e)][x]),  summed in the order of e, fp32
//
// row(n, e) = n * E + e, or token_row[n * E + e] where experts were skipped (-1: adds nothing). The columns of y up to
// the next multiple of 8 become zeros. NaN stays: in the weights and the sum of its record, in no other.
//
// Both are enqueued on `stream`, allocate nothing, are capturable, and throw Error naming the argument that is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/operand.h"

namespace tessera::kernels::mixture {

inline constexpr int32_t kMaxExperts = 64;

struct WeighArgs {
  cta::OperandView h;     // [N, stride >= D]: f16, bf16, split or f32
  const float* weight;    // [E, D]
  const float* bias;      // [E]
  float* router_weights;  // [N, E]
  float threshold;        // experts with a smaller weight are skipped; 0: none
  int32_t* topk_ids;      // [N, E]: e, or -1 where skipped; null: not wanted (then no threshold is applied at all)
  int64_t num_records;    // N; 0 launches nothing
  int32_t num_features;   // D
  int32_t num_experts;    // E, 1..64
};
// With topk_ids a skipped expert keeps its weight in router_weights: the weights of the others are not rescaled.
void weigh(const WeighArgs& args, cudaStream_t stream);

struct CombineArgs {
  cta::OperandView rows;        // [rows, stride >= X]: f16, bf16 or f32, the experts' biases already added
  const int32_t* token_row;     // [N, E] or null
  const float* router_weights;  // [N, E]
  const float* output_bias;     // [X] or null
  bool relu;
  cta::OperandView out;  // [N, stride >= X], any kind
  int64_t num_records;   // N; 0 launches nothing
  int32_t num_experts;   // E, 1..64
  int32_t expert_size;   // X
};
void combine(const CombineArgs& args, cudaStream_t stream);

}  // namespace tessera::kernels::mixture
