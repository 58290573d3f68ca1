// A dense mixture of experts: every expert sees every row, a router weighs them.
//
//   g = softmax(router h + b)                          [n, num_experts], fp32 whatever the operands
//   y = sum_e g_e (expert_e h + b_e)                   [n, expert_size], summed in the order of e
//   y = relu(y + output_bias)                          if there is one: experts that swallowed the layer after them
//
// The experts and the router are tasks of one launch. Rows are padded to whole tiles of kRowTile.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/scratch.h"
#include "tessera/core/buffer.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cpu {

/// Rows of one product of a linear layer. Measured for 4096 inputs and 1024 outputs: 64 is the least that keeps both
/// fp32 and bf16 at their full rate.
inline constexpr int64_t kRowTile = 64;

/// `num_rows` rounded up to whole tiles: rows that a buffer of activations must have.
constexpr int64_t padded_rows(int64_t num_rows) { return (num_rows + kRowTile - 1) / kRowTile * kRowTile; }

/// weight [out_features, in_features], bias [out_features].
struct LinearLayer {
  const float* weight = nullptr;
  const float* bias = nullptr;
  int64_t out_features = 0;
  int64_t in_features = 0;
};

/// The product of two layers with nothing between them: outer(inner(x)) without outer's bias.
struct FoldedLayer {
  Buffer<float> weight;  ///< [outer.out_features, inner.in_features]
  Buffer<float> bias;    ///< [outer.out_features]
};
FoldedLayer fold_layers(const LinearLayer& outer, const LinearLayer& inner, ThreadPool& pool);

class Mixture {
 public:
  /// `output_bias` [expert_size] or null. `max_rows` is the most that one call may hold. Weights are packed, not kept.
  Mixture(const LinearLayer& router, std::span<const LinearLayer> experts, const float* output_bias, DType operand,
          int64_t max_rows, ThreadPool& pool);

  /// h [padded_rows(num_rows), in_features], of which rows beyond num_rows are read and ignored -> y [num_rows,
  /// expert_size], router_weights [num_rows, num_experts].
  void run(const float* h, int64_t num_rows, float* y, float* router_weights);

  /// Packed weights and workspace.
  size_t memory_bytes() const;

 private:
  struct RoundRows;
  struct Multiply;
  struct Combine;

  void combine_row(int64_t row, float* y, float* router_weights) const;

  int64_t in_features_;
  int64_t expert_size_;
  int64_t num_experts_;
  DType operand_;
  int64_t max_rows_;
  ThreadPool& pool_;
  std::unique_ptr<const PackedGemm> router_;
  std::vector<std::unique_ptr<const PackedGemm>> experts_;
  Buffer<float> router_bias_;    // [num_experts]
  Buffer<float> expert_bias_;    // [num_experts, expert_size]
  Buffer<float> output_bias_;    // [expert_size] or empty
  Buffer<uint16_t> h_bf16_;      // [padded max_rows, in_features] for bf16 operands
  Buffer<float> products_;       // [num_experts, padded max_rows, expert_size]
  Buffer<float> router_logits_;  // [padded max_rows, num_experts]
  WorkerScratch scratch_;        // of the products
};

}  // namespace tessera::cpu
