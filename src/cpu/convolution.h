// Parallel convolutions of several widths over a short sequence, each followed by ReLU and the maximum over positions:
//
//   features[n, w * filters + o] = max_j relu(bias_w[o] + sum_{c,l} x[n, c, j + l] * weight_w[o, c, l])
//
// Direct form. Records are laid out position by position for a tile of several at once, [position][record][channel], so
// that tap l of every window of the tile is a run of whole rows: a convolution of width K is K products that accumulate
// into one C, each reading its A straight from the tile, K rows apart. Nothing is copied per window. The maximum is
// taken before bias and ReLU, which gives the same bits. The widths are the tasks of one launch, widest cost first.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <span>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/page_buffer.h"
#include "cpu/scratch.h"
#include "tessera/core/buffer.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cpu {

struct ConvolutionShape {
  int64_t channels = 0;
  int64_t positions = 0;
  int64_t filters = 0;          ///< per width
  std::vector<int64_t> widths;  ///< each 1..positions

  int64_t num_windows(size_t width_idx) const { return positions - widths[width_idx] + 1; }
  int64_t num_features() const { return filters * static_cast<int64_t>(widths.size()); }
  int64_t num_taps() const;
};

struct ConvolutionWeights {
  const float* weight = nullptr;  ///< [filters, channels, width]
  const float* bias = nullptr;    ///< [filters]
};

/// One position of one width's filters.
struct ConvolutionTap {
  size_t width_idx;
  int64_t tap;
};
/// All of them, width after width.
std::vector<ConvolutionTap> taps_of(const ConvolutionShape& shape);

/// [num_features], width after width.
Buffer<float> joined_bias(const ConvolutionShape& shape, std::span<const ConvolutionWeights> weights);

/// How the work is cut. Depends on the shape alone, never on how many records there are.
struct ConvolutionPolicy {
  int64_t records_per_tile = 0;
  std::vector<int64_t> windows_per_product;  ///< per width; rows of a product = windows_per_product * records_per_tile

  bool operator==(const ConvolutionPolicy&) const = default;
};
std::ostream& operator<<(std::ostream& out, const ConvolutionPolicy& policy);
ConvolutionPolicy select_policy(const ConvolutionShape& shape);

class Convolution {
 public:
  /// `max_records` is the most that one call may hold. Weights are packed, not kept; the pool is kept and runs the
  /// calls.
  Convolution(const ConvolutionShape& shape, std::span<const ConvolutionWeights> weights, DType operand,
              int64_t max_records, ThreadPool& pool);

  /// embeddings [num_records, channels, positions] -> features [num_records, num_features()]; finite[num_records] says
  /// whether a record's input is finite in the operand type. Features of a record that is not are those of zeros.
  void run_embeddings(const float* embeddings, int64_t num_records, float* features, uint8_t* finite);

  /// ids [num_records, positions], each a row of table [*, channels] of finite values.
  void run_ids(const int32_t* ids, const float* table, int64_t num_records, float* features);

  const ConvolutionPolicy& policy() const { return policy_; }
  /// Packed weights and workspace.
  size_t memory_bytes() const;

 private:
  struct LoadRecords;
  struct Convolve;

  void pack(std::span<const ConvolutionWeights> weights);
  void allocate();
  std::byte* tile_input(int64_t tile_idx) { return input_.data() + static_cast<size_t>(tile_idx) * tile_input_bytes_; }
  void load_record(const float* embeddings, int64_t record, uint8_t* finite);
  void load_ids(const int32_t* ids, const float* table, int64_t record);
  int64_t select_records_per_step(int64_t num_records) const;
  void convolve(size_t width_idx, int64_t record_begin, int64_t record_end, float* features, int worker);
  void pool_windows(size_t width_idx, const float* product, int64_t first_window, int64_t record_begin,
                    int64_t record_end, float* features) const;

  ConvolutionShape shape_;
  DType operand_;
  int64_t max_records_;
  ThreadPool& pool_;
  ConvolutionPolicy policy_;
  std::vector<std::vector<std::unique_ptr<const PackedGemm>>> taps_;  // [width][tap]
  Buffer<float> bias_;                                                // [num_features]
  size_t tile_input_bytes_ = 0;
  PageBuffer input_;  // [tiles][padded positions][records_per_tile][channels] of operand_
  size_t product_bytes_ = 0;
  WorkerScratch scratch_;  // the products of a pass, then a product's scratch memory
};

}  // namespace tessera::cpu
