// The same convolutions for token ids, by sums of table rows instead of products.
//
// A convolution of embeddings is a sum over its taps of products that depend on one token each, so every token is
// multiplied with every tap once, at its first use, and kept:
//
//   table[token][tap][o] = sum_c embedding[token, c] * weight[o, c, tap]              taps of all widths, width after
//   width features[n, w * filters + o] = relu(bias_w[o] + max_j sum_l table[id[n, j + l]][tap l of width w][o])
//
// Windows wholly inside the run of equal ids that ends a record (its padding) have one value, so one is computed: short
// sentences cost little. A token's row is computed in a tile of fixed height and depends on that token alone
// (gemm.h), so that a table filled as tokens come has the bits of one filled at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/convolution.h"
#include "cpu/gemm.h"
#include "cpu/page_buffer.h"
#include "cpu/scratch.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cpu {

class ProjectedConvolution {
 public:
  /// table [vocab_size, channels] is read whenever a token is first seen and must outlive this; `weights` are packed.
  ProjectedConvolution(const ConvolutionShape& shape, std::span<const ConvolutionWeights> weights, DType operand,
                       const float* table, int64_t vocab_size, ThreadPool& pool);

  /// ids [num_records, positions], each in [0, vocab_size) -> features [num_records, num_features()].
  void run(const int32_t* ids, int64_t num_records, float* features);

  /// Tokens that have their rows, and what all of these and the packed weights take. A row takes
  /// row_bytes(shape).
  int64_t num_projected_tokens() const { return num_projected_; }
  size_t memory_bytes() const;
  static int64_t row_bytes(const ConvolutionShape& shape) {
    return shape.num_taps() * shape.filters * static_cast<int64_t>(sizeof(float));
  }

 private:
  struct LoadTokens;
  struct Project;
  struct GatherAddMax;

  void pack(std::span<const ConvolutionWeights> weights);
  void project_new_tokens(const int32_t* ids, int64_t num_ids);
  void project_round(std::vector<int32_t>& tokens);
  void project_tile(int64_t tap, std::span<const int32_t> tokens, int64_t tile_idx, int worker);
  void gather(size_t width_idx, const int32_t* ids, int64_t num_records, int64_t tile_idx, float* features, int worker);
  float* take_row();

  ConvolutionShape shape_;
  DType operand_;
  const float* embedding_;  // [vocab_size, channels]
  ThreadPool& pool_;
  std::vector<std::unique_ptr<const PackedGemm>> taps_;  // [num_taps]
  std::vector<int64_t> first_tap_;                       // [widths] position of a width's first tap
  Buffer<float> bias_;                                   // [num_features]

  std::vector<float*> rows_;  // [vocab_size] each [num_taps, filters], or null: not projected yet
  std::vector<PageBuffer> chunks_;
  int64_t rows_per_chunk_ = 0;
  int64_t rows_left_ = 0;  // in the last chunk
  int64_t num_projected_ = 0;

  PageBuffer input_;  // [kTokensPerRound, channels] of operand_
  size_t product_bytes_ = 0;
  WorkerScratch scratch_;                  // a product's C, then its scratch memory
  std::vector<const float*> window_rows_;  // per worker [positions]
};

}  // namespace tessera::cpu
