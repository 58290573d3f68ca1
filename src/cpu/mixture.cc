#include "cpu/mixture.h"

#include <algorithm>
#include <cstring>

#include "cpu/row_ops.h"
#include "tessera/batching/launch.h"
#include "tessera/core/check.h"

namespace tessera::cpu {

using batching::ceil_div;
using batching::TileCoord;

FoldedLayer fold_layers(const LinearLayer& outer, const LinearLayer& inner, ThreadPool& pool) {
  TESSERA_CHECK(outer.in_features == inner.out_features, outer.in_features, inner.out_features);
  const int64_t rows = outer.out_features;
  const int64_t depth = outer.in_features;
  const int64_t columns = inner.in_features;
  FoldedLayer folded = {Buffer<float>(static_cast<size_t>(rows * columns)), Buffer<float>(static_cast<size_t>(rows))};
  // outer.weight [rows, depth] is A; inner.weight [depth, columns] are the weights, "out" running along its rows.
  const PackedGemm product({.rows = kRowTile, .out_features = columns, .in_features = depth},
                           {inner.weight, 1, columns});
  pool.run(ceil_div(rows, kRowTile), [&](int64_t tile, int) {
    const int64_t begin = tile * kRowTile;
    const int64_t count = std::min(kRowTile, rows - begin);
    Buffer<std::byte> scratch(product.scratch_bytes());
    Buffer<float> a(static_cast<size_t>(kRowTile * depth));
    Buffer<float> c(static_cast<size_t>(kRowTile * columns));
    std::fill(std::copy_n(outer.weight + begin * depth, count * depth, a.data()), a.end(), 0.0f);
    product.run(a.data(), c.data(), scratch.data());
    std::copy_n(c.data(), count * columns, folded.weight.data() + begin * columns);
    for (int64_t row = begin; row < begin + count; ++row) {
      double sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += double{outer.weight[row * depth + k]} * double{inner.bias[k]};
      folded.bias[static_cast<size_t>(row)] = static_cast<float>(sum);
    }
  });
  return folded;
}

// One row of h to bf16.
struct Mixture::RoundRows {
  struct Params {
    Mixture& mixture;
    const float* h;
    int64_t num_rows;
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return ceil_div(params.num_rows, kRowTile); }
  static void run_tile(const Params& params, TileCoord tile, int) {
    const int64_t in_features = params.mixture.in_features_;
    const int64_t first = tile.tile_idx * kRowTile;
    const int64_t count = std::min(kRowTile, params.num_rows - first);
    round_to_bf16(params.h + first * in_features, count * in_features,
                  params.mixture.h_bf16_.data() + first * in_features);
  }
};

// Two kinds of task: 0 .. num_experts - 1 are the experts, the last is the router, whose operands stay fp32.
struct Mixture::Multiply {
  struct Params {
    Mixture& mixture;
    const float* h;
    int64_t num_rows;
  };
  static int32_t num_tasks(const Params& params) { return static_cast<int32_t>(params.mixture.num_experts_) + 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return ceil_div(params.num_rows, kRowTile); }
  static double task_cost(const Params& params, int32_t task_idx) {
    const bool is_router = task_idx == params.mixture.num_experts_;
    return static_cast<double>(is_router ? params.mixture.num_experts_ : params.mixture.expert_size_);
  }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    Mixture& self = params.mixture;
    const int64_t first = tile.tile_idx * kRowTile;
    const float* h = params.h + first * self.in_features_;
    std::byte* scratch = self.scratch_.of(worker);
    if (tile.task_idx == self.num_experts_) {
      self.router_->run(h, self.router_logits_.data() + first * self.num_experts_, scratch);
      return;
    }
    const void* operand = h;
    if (self.operand_ == DType::bf16) operand = self.h_bf16_.data() + first * self.in_features_;
    float* product = self.products_.data() + (tile.task_idx * padded_rows(self.max_rows_) + first) * self.expert_size_;
    self.experts_[static_cast<size_t>(tile.task_idx)]->run(operand, product, scratch);
  }
};

struct Mixture::Combine {
  static constexpr int64_t kRows = 16;  // few, so that a small batch occupies every thread
  struct Params {
    const Mixture& mixture;
    int64_t num_rows;
    float* y;
    float* router_weights;
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return ceil_div(params.num_rows, kRows); }
  static void run_tile(const Params& params, TileCoord tile, int) {
    const int64_t end = std::min(params.num_rows, (tile.tile_idx + 1) * kRows);
    for (int64_t row = tile.tile_idx * kRows; row < end; ++row) {
      params.mixture.combine_row(row, params.y, params.router_weights);
    }
  }
};

Mixture::Mixture(const LinearLayer& router, std::span<const LinearLayer> experts, const float* output_bias,
                 DType operand, int64_t max_rows, ThreadPool& pool)
    : in_features_(router.in_features),
      expert_size_(experts.front().out_features),
      num_experts_(static_cast<int64_t>(experts.size())),
      operand_(operand),
      max_rows_(max_rows),
      pool_(pool),
      experts_(experts.size()),
      router_bias_(static_cast<size_t>(num_experts_)),
      expert_bias_(static_cast<size_t>(num_experts_ * expert_size_)) {
  TESSERA_CHECK(router.out_features == num_experts_, router.out_features, num_experts_);
  std::copy_n(router.bias, num_experts_, router_bias_.data());
  if (output_bias != nullptr) {
    output_bias_ = Buffer<float>(static_cast<size_t>(expert_size_));
    std::copy_n(output_bias, expert_size_, output_bias_.data());
  }
  router_ = std::make_unique<const PackedGemm>(
      GemmSpec{.rows = kRowTile, .out_features = num_experts_, .in_features = in_features_},
      WeightView{router.weight, in_features_, 1});
  pool.run(num_experts_, [&](int64_t e, int) {
    const LinearLayer& expert = experts[static_cast<size_t>(e)];
    TESSERA_CHECK(expert.in_features == in_features_ && expert.out_features == expert_size_, e);
    std::copy_n(expert.bias, expert_size_, expert_bias_.data() + e * expert_size_);
    experts_[static_cast<size_t>(e)] = std::make_unique<const PackedGemm>(
        GemmSpec{.rows = kRowTile, .out_features = expert_size_, .in_features = in_features_, .operand = operand_},
        WeightView{expert.weight, in_features_, 1});
  });
  const int64_t rows = padded_rows(max_rows);
  if (operand == DType::bf16) {
    h_bf16_ = Buffer<uint16_t>(static_cast<size_t>(rows * in_features_));
    std::memset(h_bf16_.data(), 0, h_bf16_.size() * sizeof(uint16_t));
  }
  products_ = Buffer<float>(static_cast<size_t>(num_experts_ * rows * expert_size_));
  router_logits_ = Buffer<float>(static_cast<size_t>(rows * num_experts_));
  size_t scratch_bytes = router_->scratch_bytes();
  for (const auto& expert : experts_) scratch_bytes = std::max(scratch_bytes, expert->scratch_bytes());
  scratch_ = WorkerScratch(pool.num_threads(), scratch_bytes);
}

size_t Mixture::memory_bytes() const {
  size_t bytes = router_->packed_bytes() + h_bf16_.size() * sizeof(uint16_t) + products_.size() * sizeof(float);
  for (const auto& expert : experts_) bytes += expert->packed_bytes();
  return bytes;
}

void Mixture::combine_row(int64_t row, float* y, float* router_weights) const {
  float* weights = router_weights + row * num_experts_;
  std::copy_n(router_logits_.data() + row * num_experts_, num_experts_, weights);
  add_bias(router_bias_.data(), num_experts_, weights);
  softmax(weights, num_experts_, weights);
  float* sum = y + row * expert_size_;
  std::fill_n(sum, expert_size_, 0.0f);
  for (int64_t e = 0; e < num_experts_; ++e) {
    const float* product = products_.data() + (e * padded_rows(max_rows_) + row) * expert_size_;
    add_scaled(product, expert_bias_.data() + e * expert_size_, weights[e], expert_size_, sum);
  }
  if (!output_bias_.empty()) add_bias_relu(output_bias_.data(), expert_size_, sum);
}

void Mixture::run(const float* h, int64_t num_rows, float* y, float* router_weights) {
  TESSERA_CHECK(num_rows >= 0 && num_rows <= max_rows_, num_rows, max_rows_);
  if (operand_ == DType::bf16) batching::launch<RoundRows>({*this, h, num_rows}, pool_);
  batching::launch<Multiply>({*this, h, num_rows}, pool_);
  batching::launch<Combine>({*this, num_rows, y, router_weights}, pool_);
}

}  // namespace tessera::cpu
