#include "cpu/head.h"

#include <algorithm>

#include "cpu/row_ops.h"
#include "tessera/batching/launch.h"
#include "tessera/core/check.h"

namespace tessera::cpu {

using batching::ceil_div;
using batching::TileCoord;

struct Head::RunLayers {
  struct Params {
    Head& head;
    const float* y;
    int64_t num_rows;
    float* logits;
  };
  static int32_t num_tasks(const Params&) { return 1; }
  static int32_t num_tiles(const Params& params, int32_t) { return ceil_div(params.num_rows, kRowTile); }
  static void run_tile(const Params& params, TileCoord tile, int worker) {
    params.head.run_tile(params.y, params.num_rows, params.logits, tile.tile_idx, worker);
  }
};

Head::Layer Head::make_layer(const LinearLayer& layer, DType operand) {
  Layer made;
  made.product = std::make_unique<const PackedGemm>(
      GemmSpec{
          .rows = kRowTile, .out_features = layer.out_features, .in_features = layer.in_features, .operand = operand},
      WeightView{layer.weight, layer.in_features, 1});
  made.bias = Buffer<float>(static_cast<size_t>(layer.out_features));
  std::copy_n(layer.bias, layer.out_features, made.bias.data());
  return made;
}

Head::Head(std::span<const LinearLayer> hidden, const LinearLayer& output, DType operand, ThreadPool& pool)
    : pool_(pool) {
  for (const LinearLayer& layer : hidden) layers_.push_back(make_layer(layer, operand));
  layers_.push_back(make_layer(output, DType::f32));
  int64_t widest = 0;
  size_t gemm_scratch_bytes = 0;
  for (const Layer& layer : layers_) {
    const GemmSpec& spec = layer.product->spec();
    TESSERA_CHECK(&layer == layers_.data() || spec.in_features == (&layer - 1)->product->spec().out_features,
                  spec.in_features);
    widest = std::max({widest, spec.in_features, spec.out_features});
    gemm_scratch_bytes = std::max(gemm_scratch_bytes, layer.product->scratch_bytes());
  }
  activation_bytes_ = aligned_bytes(static_cast<size_t>(kRowTile * widest) * sizeof(float));
  scratch_ = WorkerScratch(pool.num_threads(), 2 * activation_bytes_ + gemm_scratch_bytes);
}

size_t Head::memory_bytes() const {
  size_t bytes = scratch_.bytes();
  for (const Layer& layer : layers_) bytes += layer.product->packed_bytes();
  return bytes;
}

void Head::run_tile(const float* y, int64_t num_rows, float* logits, int64_t tile_idx, int worker) {
  std::byte* operand = scratch_.of(worker);
  float* activations = reinterpret_cast<float*>(operand + activation_bytes_);
  std::byte* gemm_scratch = operand + 2 * activation_bytes_;
  const float* input = y + tile_idx * kRowTile * layers_.front().product->spec().in_features;
  for (const Layer& layer : layers_) {
    const GemmSpec& spec = layer.product->spec();
    store_operand(input, kRowTile * spec.in_features, spec.operand, operand);
    layer.product->run(operand, activations, gemm_scratch);
    const bool is_output = &layer == &layers_.back();
    for (int64_t row = 0; row < kRowTile; ++row) {
      float* values = activations + row * spec.out_features;
      if (is_output) {
        add_bias(layer.bias.data(), spec.out_features, values);
      } else {
        add_bias_relu(layer.bias.data(), spec.out_features, values);
      }
    }
    input = activations;
  }
  const int64_t num_classes = layers_.back().product->spec().out_features;
  const int64_t count = std::min(kRowTile, num_rows - tile_idx * kRowTile);
  std::copy_n(activations, count * num_classes, logits + tile_idx * kRowTile * num_classes);
}

void Head::run(const float* y, int64_t num_rows, float* logits) {
  batching::launch<RunLayers>({*this, y, num_rows, logits}, pool_);
}

}  // namespace tessera::cpu
