#include "cpu/convolution.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <ostream>

#include "cpu/row_ops.h"
#include "tessera/batching/launch.h"
#include "tessera/core/check.h"

namespace tessera::cpu {

using batching::ceil_div;
using batching::TileCoord;

namespace {

// Measured for the full-size model on two Sapphire Rapids cores with oneDNN 2.6, a tap's weights being 16 MiB in fp32
// and 8 MiB in bf16, far more than a cache of a core holds: GFLOP per processor second of all four convolutions,
// medians of variants that took turns while other programs ran. Batches were 64 records (columns 1 and 3) or 128 (2 and
// 4), which by itself is worth up to 6 %: the columns of more products per pass are no better than that.
//
//   rows of a product     64..112            128..224
//   products per pass     4        8         2        4        the same weights again and again, 128 rows
//   fp32                  176      189       188      191      191
//   bf16 (AMX)            680      702       747      735      783
//
// So products are as large as they may be before one record alone becomes expensive (a tile is computed whole), and two
// use a tap's weights one after the other: they come from memory for the first and from a cache for the second. Twice
// the rows (256 to 448) gave bf16 another 6 % in batches of 256, not enough for making one record cost twice as much.
constexpr int64_t kMinProductRows = 128;
constexpr int64_t kMaxProductRows = 256;
constexpr int64_t kMaxRecordsPerTile = 64;
constexpr int64_t kProductsPerPass = 2;

}  // namespace

int64_t ConvolutionShape::num_taps() const { return std::accumulate(widths.begin(), widths.end(), int64_t{0}); }

std::vector<ConvolutionTap> taps_of(const ConvolutionShape& shape) {
  std::vector<ConvolutionTap> taps;
  for (size_t i = 0; i < shape.widths.size(); ++i) {
    for (int64_t tap = 0; tap < shape.widths[i]; ++tap) taps.push_back({i, tap});
  }
  return taps;
}

Buffer<float> joined_bias(const ConvolutionShape& shape, std::span<const ConvolutionWeights> weights) {
  Buffer<float> bias(static_cast<size_t>(shape.num_features()));
  for (size_t i = 0; i < weights.size(); ++i)
    std::copy_n(weights[i].bias, shape.filters, bias.data() + static_cast<int64_t>(i) * shape.filters);
  return bias;
}

std::ostream& operator<<(std::ostream& out, const ConvolutionPolicy& policy) {
  out << "tiles of " << policy.records_per_tile << " records, products of";
  for (const int64_t windows : policy.windows_per_product) out << ' ' << windows * policy.records_per_tile;
  return out << " rows";
}

ConvolutionPolicy select_policy(const ConvolutionShape& shape) {
  // Enough records that the width with the fewest windows fills a product; then each width's windows are cut evenly, so
  // that the last product of a tile holds few rows that nobody needs.
  ConvolutionPolicy policy;
  const int64_t fewest = shape.positions - *std::max_element(shape.widths.begin(), shape.widths.end()) + 1;
  policy.records_per_tile = std::clamp<int64_t>(ceil_div(kMinProductRows, fewest), 1, kMaxRecordsPerTile);
  for (size_t i = 0; i < shape.widths.size(); ++i) {
    const int64_t most = std::max<int64_t>(1, kMaxProductRows / policy.records_per_tile);
    const int64_t num_products = (shape.num_windows(i) + most - 1) / most;
    policy.windows_per_product.push_back((shape.num_windows(i) + num_products - 1) / num_products);
  }
  return policy;
}

struct Convolution::LoadRecords {
  struct Params {
    Convolution& convolution;
    const float* embeddings;  // [num_records, channels, positions], or null for ids
    const int32_t* ids;       // [num_records, positions]
    const float* table;
    int64_t num_records;
    uint8_t* finite;  // [num_records], with embeddings
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return static_cast<int32_t>(params.num_records); }
  static void run_tile(const Params& params, TileCoord tile, int) {
    if (params.embeddings != nullptr) {
      params.convolution.load_record(params.embeddings, tile.tile_idx, params.finite);
    } else {
      params.convolution.load_ids(params.ids, params.table, tile.tile_idx);
    }
  }
};

// A task is a width, a tile `records_per_step` records: whole record tiles, as many as keep every thread busy. Their
// number decides only which products follow each other, never what a product holds.
struct Convolution::Convolve {
  struct Params {
    Convolution& convolution;
    int64_t num_records;
    int64_t records_per_step;
    float* features;  // [num_records, num_features]
  };
  static int32_t num_tasks(const Params& params) { return static_cast<int32_t>(params.convolution.taps_.size()); }
  static int32_t num_tiles(const Params& params, int32_t) {
    return ceil_div(params.num_records, params.records_per_step);
  }
  static double task_cost(const Params& params, int32_t task_idx) {
    const size_t i = static_cast<size_t>(task_idx);
    const ConvolutionShape& shape = params.convolution.shape_;
    return static_cast<double>(shape.num_windows(i)) * static_cast<double>(shape.widths[i]);
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    const int64_t begin = tile.tile_idx * params.records_per_step;
    const int64_t end = std::min(params.num_records, begin + params.records_per_step);
    params.convolution.convolve(static_cast<size_t>(tile.task_idx), begin, end, params.features, worker);
  }
};

Convolution::Convolution(const ConvolutionShape& shape, std::span<const ConvolutionWeights> weights, DType operand,
                         int64_t max_records, ThreadPool& pool)
    : shape_(shape), operand_(operand), max_records_(max_records), pool_(pool), policy_(select_policy(shape)) {
  TESSERA_CHECK(weights.size() == shape.widths.size(), weights.size(), shape.widths.size());
  pack(weights);
  allocate();
}

void Convolution::pack(std::span<const ConvolutionWeights> weights) {
  const std::vector<ConvolutionTap> all_taps = taps_of(shape_);
  bias_ = joined_bias(shape_, weights);
  for (const int64_t width : shape_.widths) taps_.emplace_back(static_cast<size_t>(width));
  pool_.run(static_cast<int64_t>(all_taps.size()), [&](int64_t item, int) {
    const auto [i, tap] = all_taps[static_cast<size_t>(item)];
    const int64_t width = shape_.widths[i];
    const GemmSpec spec = {.rows = policy_.windows_per_product[i] * policy_.records_per_tile,
                           .out_features = shape_.filters,
                           .in_features = shape_.channels,
                           .operand = operand_,
                           .accumulate = tap > 0};
    const WeightView tap_weights = {weights[i].weight + tap, shape_.channels * width, width};
    taps_[i][static_cast<size_t>(tap)] = std::make_unique<const PackedGemm>(spec, tap_weights);
  });
}

void Convolution::allocate() {
  const int64_t records = policy_.records_per_tile;
  int64_t padded_positions = 0;
  int64_t max_windows = 0;
  size_t gemm_scratch_bytes = 0;
  for (size_t i = 0; i < taps_.size(); ++i) {
    // The last product of a tile may reach beyond the sequence; those rows are zero and their windows are not looked
    // at.
    const int64_t windows = policy_.windows_per_product[i];
    const int64_t num_products = (shape_.num_windows(i) + windows - 1) / windows;
    padded_positions = std::max(padded_positions, num_products * windows + shape_.widths[i] - 1);
    max_windows = std::max(max_windows, windows);
    for (const auto& gemm : taps_[i]) gemm_scratch_bytes = std::max(gemm_scratch_bytes, gemm->scratch_bytes());
  }
  tile_input_bytes_ =
      aligned_bytes(static_cast<size_t>(padded_positions * records * shape_.channels) * dtype_size(operand_));
  input_ = PageBuffer(static_cast<size_t>((max_records_ + records - 1) / records) * tile_input_bytes_);
  std::memset(input_.data(), 0, input_.size());
  product_bytes_ = aligned_bytes(static_cast<size_t>(max_windows * records * shape_.filters) * sizeof(float));
  scratch_ = WorkerScratch(pool_.num_threads(), kProductsPerPass * product_bytes_ + gemm_scratch_bytes);
}

size_t Convolution::memory_bytes() const {
  size_t bytes = input_.size() + scratch_.bytes();
  for (const auto& width_taps : taps_) {
    for (const auto& gemm : width_taps) bytes += gemm->packed_bytes();
  }
  return bytes;
}

void Convolution::load_record(const float* embeddings, int64_t record, uint8_t* finite) {
  const int64_t row_elements = policy_.records_per_tile * shape_.channels;
  const int64_t offset = record % policy_.records_per_tile * shape_.channels;
  const float* source = embeddings + record * shape_.channels * shape_.positions;
  std::byte* tile = tile_input(record / policy_.records_per_tile);
  bool all_finite = false;
  if (operand_ == DType::bf16) {
    all_finite = transpose_record(source, shape_.channels, shape_.positions, reinterpret_cast<uint16_t*>(tile) + offset,
                                  row_elements);
  } else {
    all_finite = transpose_record(source, shape_.channels, shape_.positions, reinterpret_cast<float*>(tile) + offset,
                                  row_elements);
  }
  finite[record] = all_finite ? 1 : 0;
  if (all_finite) return;
  const size_t element = dtype_size(operand_);
  for (int64_t position = 0; position < shape_.positions; ++position) {
    std::memset(tile + static_cast<size_t>(position * row_elements + offset) * element, 0,
                static_cast<size_t>(shape_.channels) * element);
  }
}

void Convolution::load_ids(const int32_t* ids, const float* table, int64_t record) {
  const size_t element = dtype_size(operand_);
  std::byte* tile = tile_input(record / policy_.records_per_tile);
  for (int64_t position = 0; position < shape_.positions; ++position) {
    const int64_t row = position * policy_.records_per_tile + record % policy_.records_per_tile;
    store_operand(table + ids[record * shape_.positions + position] * shape_.channels, shape_.channels, operand_,
                  tile + static_cast<size_t>(row * shape_.channels) * element);
  }
}

int64_t Convolution::select_records_per_step(int64_t num_records) const {
  const int64_t num_tiles = ceil_div(num_records, policy_.records_per_tile);
  const int64_t num_widths = static_cast<int64_t>(taps_.size());
  int64_t tiles = kProductsPerPass;
  while (tiles > 1 && num_widths * ceil_div(num_tiles, tiles) < int64_t{4} * pool_.num_threads()) tiles /= 2;
  return tiles * policy_.records_per_tile;
}

void Convolution::convolve(size_t width_idx, int64_t record_begin, int64_t record_end, float* features, int worker) {
  const int64_t records = policy_.records_per_tile;
  const int64_t windows = policy_.windows_per_product[width_idx];
  const int64_t products_per_tile = ceil_div(shape_.num_windows(width_idx), windows);
  const int64_t num_products = ceil_div(record_end - record_begin, records) * products_per_tile;
  const size_t position_bytes = static_cast<size_t>(records * shape_.channels) * dtype_size(operand_);
  std::byte* gemm_scratch = scratch_.of(worker) + kProductsPerPass * product_bytes_;
  const auto output = [&](int64_t slot) {
    return reinterpret_cast<float*>(scratch_.of(worker) + static_cast<size_t>(slot) * product_bytes_);
  };

  for (int64_t pass_begin = 0; pass_begin < num_products; pass_begin += kProductsPerPass) {
    const int64_t pass_end = std::min(num_products, pass_begin + kProductsPerPass);
    for (size_t tap = 0; tap < taps_[width_idx].size(); ++tap) {
      for (int64_t product = pass_begin; product < pass_end; ++product) {
        const int64_t tile = record_begin / records + product / products_per_tile;
        const size_t position = static_cast<size_t>(product % products_per_tile * windows) + tap;
        taps_[width_idx][tap]->run(tile_input(tile) + position * position_bytes, output(product - pass_begin),
                                   gemm_scratch);
      }
    }
    for (int64_t product = pass_begin; product < pass_end; ++product) {
      const int64_t first_record = record_begin + product / products_per_tile * records;
      pool_windows(width_idx, output(product - pass_begin), product % products_per_tile * windows, first_record,
                   std::min(record_end, first_record + records), features);
    }
  }
}

void Convolution::pool_windows(size_t width_idx, const float* product, int64_t first_window, int64_t record_begin,
                               int64_t record_end, float* features) const {
  const int64_t first_feature = static_cast<int64_t>(width_idx) * shape_.filters;
  const int64_t num_windows = shape_.num_windows(width_idx);
  const int64_t end = std::min(num_windows, first_window + policy_.windows_per_product[width_idx]);
  for (int64_t record = record_begin; record < record_end; ++record) {
    float* maxima = features + record * shape_.num_features() + first_feature;
    for (int64_t window = first_window; window < end; ++window) {
      const int64_t row = (window - first_window) * policy_.records_per_tile + record - record_begin;
      if (window == 0) {
        std::copy_n(product + row * shape_.filters, shape_.filters, maxima);
      } else {
        max_into(product + row * shape_.filters, shape_.filters, maxima);
      }
    }
    if (end == num_windows) add_bias_relu(bias_.data() + first_feature, shape_.filters, maxima);
  }
}

void Convolution::run_embeddings(const float* embeddings, int64_t num_records, float* features, uint8_t* finite) {
  TESSERA_CHECK(num_records >= 0 && num_records <= max_records_, num_records, max_records_);
  batching::launch<LoadRecords>({*this, embeddings, nullptr, nullptr, num_records, finite}, pool_);
  batching::launch<Convolve>({*this, num_records, select_records_per_step(num_records), features}, pool_);
}

void Convolution::run_ids(const int32_t* ids, const float* table, int64_t num_records, float* features) {
  TESSERA_CHECK(num_records >= 0 && num_records <= max_records_, num_records, max_records_);
  batching::launch<LoadRecords>({*this, nullptr, ids, table, num_records, nullptr}, pool_);
  batching::launch<Convolve>({*this, num_records, select_records_per_step(num_records), features}, pool_);
}

}  // namespace tessera::cpu
