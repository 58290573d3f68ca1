#include "cpu/projected_convolution.h"

#include <algorithm>
#include <cstring>

#include "cpu/row_ops.h"
#include "tessera/batching/launch.h"
#include "tessera/core/check.h"

namespace tessera::cpu {

using batching::ceil_div;
using batching::TileCoord;

namespace {

// Rows of one product: the least that fp32 products take at their full rate, as a sentence alone brings few new tokens.
constexpr int64_t kTokensPerTile = 64;
constexpr int64_t kTokensPerRound = 512;  // embeddings laid out at once: 8 MiB at 4096 channels
constexpr int64_t kRecordsPerTile =
    8;  // roughly 0.1 ms for the full-size model, 10 us for a small one (from whole runs)
constexpr int64_t kChunkBytes = 64 << 20;  // step in which the table grows

}  // namespace

// Embeddings of the round's tokens, as operands, in one dense array.
struct ProjectedConvolution::LoadTokens {
  struct Params {
    ProjectedConvolution& convolution;
    std::span<const int32_t> tokens;
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return static_cast<int32_t>(params.tokens.size()); }
  static void run_tile(const Params& params, TileCoord tile, int) {
    ProjectedConvolution& self = params.convolution;
    const int64_t channels = self.shape_.channels;
    const int64_t token = params.tokens[static_cast<size_t>(tile.tile_idx)];
    store_operand(self.embedding_ + token * channels, channels, self.operand_,
                  self.input_.data() + static_cast<size_t>(tile.tile_idx * channels) * dtype_size(self.operand_));
  }
};

// A task is a tap, a tile kTokensPerTile tokens of the round.
struct ProjectedConvolution::Project {
  struct Params {
    ProjectedConvolution& convolution;
    std::span<const int32_t> tokens;
  };
  static int32_t num_tasks(const Params& params) { return static_cast<int32_t>(params.convolution.taps_.size()); }
  static int32_t num_tiles(const Params& params, int32_t) {
    return ceil_div(static_cast<int64_t>(params.tokens.size()), kTokensPerTile);
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    params.convolution.project_tile(tile.task_idx, params.tokens, tile.tile_idx, worker);
  }
};

// A task is a width, a tile kRecordsPerTile records.
struct ProjectedConvolution::GatherAddMax {
  struct Params {
    ProjectedConvolution& convolution;
    const int32_t* ids;  // [num_records, positions]
    int64_t num_records;
    float* features;  // [num_records, num_features]
  };
  static int32_t num_tasks(const Params& params) { return static_cast<int32_t>(params.convolution.first_tap_.size()); }
  static int32_t num_tiles(const Params& params, int32_t) { return ceil_div(params.num_records, kRecordsPerTile); }
  static double task_cost(const Params& params, int32_t task_idx) {
    const size_t i = static_cast<size_t>(task_idx);
    const ConvolutionShape& shape = params.convolution.shape_;
    return static_cast<double>(shape.num_windows(i)) * static_cast<double>(shape.widths[i]);
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    params.convolution.gather(static_cast<size_t>(tile.task_idx), params.ids, params.num_records, tile.tile_idx,
                              params.features, worker);
  }
};

ProjectedConvolution::ProjectedConvolution(const ConvolutionShape& shape, std::span<const ConvolutionWeights> weights,
                                           DType operand, const float* table, int64_t vocab_size, ThreadPool& pool)
    : shape_(shape),
      operand_(operand),
      embedding_(table),
      pool_(pool),
      rows_(static_cast<size_t>(vocab_size), nullptr),
      rows_per_chunk_(std::clamp<int64_t>(kChunkBytes / row_bytes(shape), 1, vocab_size)),
      input_(static_cast<size_t>(kTokensPerRound * shape.channels) * dtype_size(operand)),
      window_rows_(static_cast<size_t>(pool.num_threads() * shape.positions)) {
  TESSERA_CHECK(weights.size() == shape.widths.size(), weights.size(), shape.widths.size());
  std::memset(input_.data(), 0, input_.size());  // rows beyond the last token are multiplied too
  pack(weights);
  product_bytes_ = aligned_bytes(static_cast<size_t>(kTokensPerTile * shape.filters) * sizeof(float));
  size_t gemm_scratch_bytes = 0;
  for (const auto& tap : taps_) gemm_scratch_bytes = std::max(gemm_scratch_bytes, tap->scratch_bytes());
  scratch_ = WorkerScratch(pool.num_threads(), product_bytes_ + gemm_scratch_bytes);
}

void ProjectedConvolution::pack(std::span<const ConvolutionWeights> weights) {
  const std::vector<ConvolutionTap> all_taps = taps_of(shape_);
  bias_ = joined_bias(shape_, weights);
  for (int64_t next = 0; const int64_t width : shape_.widths) {
    first_tap_.push_back(next);
    next += width;
  }
  taps_.resize(all_taps.size());
  pool_.run(static_cast<int64_t>(all_taps.size()), [&](int64_t item, int) {
    const auto [i, tap] = all_taps[static_cast<size_t>(item)];
    const int64_t width = shape_.widths[i];
    const GemmSpec spec = {
        .rows = kTokensPerTile, .out_features = shape_.filters, .in_features = shape_.channels, .operand = operand_};
    const WeightView tap_weights = {weights[i].weight + tap, shape_.channels * width, width};
    taps_[static_cast<size_t>(item)] = std::make_unique<const PackedGemm>(spec, tap_weights);
  });
}

size_t ProjectedConvolution::memory_bytes() const {
  size_t bytes = input_.size() + scratch_.bytes() + rows_.size() * sizeof(float*);
  for (const auto& tap : taps_) bytes += tap->packed_bytes();
  return bytes + static_cast<size_t>(num_projected_) * static_cast<size_t>(row_bytes(shape_));
}

float* ProjectedConvolution::take_row() {
  if (rows_left_ == 0) {
    chunks_.emplace_back(static_cast<size_t>(rows_per_chunk_) * static_cast<size_t>(row_bytes(shape_)));
    rows_left_ = rows_per_chunk_;
  }
  const size_t row = static_cast<size_t>(rows_per_chunk_ - rows_left_--);
  return reinterpret_cast<float*>(chunks_.back().data() + row * static_cast<size_t>(row_bytes(shape_)));
}

void ProjectedConvolution::project_new_tokens(const int32_t* ids, int64_t num_ids) {
  std::vector<int32_t> tokens;  // those that have a row, but nothing in it yet
  tokens.reserve(static_cast<size_t>(kTokensPerRound));
  try {
    for (int64_t i = 0; i < num_ids; ++i) {
      float*& row = rows_[static_cast<size_t>(ids[i])];
      if (row != nullptr) continue;
      row = take_row();
      tokens.push_back(ids[i]);
      if (tokens.size() == static_cast<size_t>(kTokensPerRound)) project_round(tokens);
    }
    if (!tokens.empty()) project_round(tokens);
  } catch (...) {
    for (const int32_t token : tokens) rows_[static_cast<size_t>(token)] = nullptr;
    throw;
  }
}

void ProjectedConvolution::project_round(std::vector<int32_t>& tokens) {
  batching::launch<LoadTokens>({*this, tokens}, pool_);
  batching::launch<Project>({*this, tokens}, pool_);
  num_projected_ += static_cast<int64_t>(tokens.size());
  tokens.clear();
}

void ProjectedConvolution::project_tile(int64_t tap, std::span<const int32_t> tokens, int64_t tile_idx, int worker) {
  std::byte* scratch = scratch_.of(worker);
  float* product = reinterpret_cast<float*>(scratch);
  const int64_t first = tile_idx * kTokensPerTile;
  taps_[static_cast<size_t>(tap)]->run(
      input_.data() + static_cast<size_t>(first * shape_.channels) * dtype_size(operand_), product,
      scratch + product_bytes_);
  const int64_t end = std::min(static_cast<int64_t>(tokens.size()), first + kTokensPerTile);
  for (int64_t i = first; i < end; ++i) {
    float* row = rows_[static_cast<size_t>(tokens[static_cast<size_t>(i)])];
    std::copy_n(product + (i - first) * shape_.filters, shape_.filters, row + tap * shape_.filters);
  }
}

void ProjectedConvolution::gather(size_t width_idx, const int32_t* ids, int64_t num_records, int64_t tile_idx,
                                  float* features, int worker) {
  const int64_t positions = shape_.positions;
  const float** rows = window_rows_.data() + worker * positions;
  const int64_t first_feature = static_cast<int64_t>(width_idx) * shape_.filters;
  const int64_t end = std::min(num_records, (tile_idx + 1) * kRecordsPerTile);
  for (int64_t record = tile_idx * kRecordsPerTile; record < end; ++record) {
    const int32_t* tokens = ids + record * positions;
    int64_t run_begin = positions - 1;
    while (run_begin > 0 && tokens[run_begin - 1] == tokens[positions - 1]) --run_begin;
    for (int64_t position = 0; position < positions; ++position) {
      rows[position] = rows_[static_cast<size_t>(tokens[position])] + first_tap_[width_idx] * shape_.filters;
    }
    // Windows from run_begin on are all equal: the first of them stands for the rest.
    const int64_t num_windows = std::min(shape_.num_windows(width_idx), run_begin + 1);
    float* out = features + record * shape_.num_features() + first_feature;
    gather_add_max(rows, num_windows, shape_.widths[width_idx], shape_.filters, out);
    add_bias_relu(bias_.data() + first_feature, shape_.filters, out);
  }
}

void ProjectedConvolution::run(const int32_t* ids, int64_t num_records, float* features) {
  project_new_tokens(ids, num_records * shape_.positions);
  batching::launch<GatherAddMax>({*this, ids, num_records, features}, pool_);
}

}  // namespace tessera::cpu
