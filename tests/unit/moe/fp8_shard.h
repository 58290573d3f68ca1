// A part of a layer of e4m3 weights that may begin inside a block of scales: for CPU and GPU tests alike.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moe/layer_data.h"
#include "tessera/core/buffer.h"

namespace tessera::testing {

// Columns [begin, begin + count) of the intermediate of a layer as a layer of their own, with the blocks of scales in
// which they lie.
struct Shard {
  LayerCase layer_case;
  moe::LayerConfig config;
  moe::LayerWeights weights;
  Buffer<uint8_t> gate_up, down;
  Buffer<uint16_t> bias;
  Buffer<float> scales, down_scales;

  Shard(const LayerData& whole, int64_t begin, int64_t count) : layer_case(whole.layer_case()) {
    const int64_t experts = layer_case.experts, width = layer_case.intermediate, hidden = layer_case.hidden;
    const int64_t halves = layer_case.gated ? 2 : 1;
    const int64_t first = begin / 128, blocks = (begin + count + 127) / 128 - first, all_blocks = (width + 127) / 128;
    const int64_t across = (hidden + 127) / 128;
    const auto copy = []<class T>(Buffer<T>& to, const void* from, int64_t rows, int64_t stride, int64_t at,
                                  int64_t length) {
      for (int64_t row = 0; row < rows; ++row)
        std::copy_n(static_cast<const T*>(from) + row * stride + at, length, to.data() + row * length);
    };
    layer_case.intermediate = static_cast<int32_t>(count);
    config = config_of(layer_case);
    const auto offset = static_cast<int32_t>(begin % 128);
    config.scale_offsets = {offset, halves == 2 ? offset : 0, offset};
    gate_up = Buffer<uint8_t>(static_cast<size_t>(experts * halves * count * hidden));
    down = Buffer<uint8_t>(static_cast<size_t>(experts * hidden * count));
    scales = Buffer<float>(static_cast<size_t>(experts * halves * blocks * across));
    down_scales = Buffer<float>(static_cast<size_t>(experts * across * blocks));
    // Interleaved rows of an expert are one piece, others a piece for gate and one for up.
    const int64_t pieces = layer_case.order == GateUpOrder::interleaved ? 1 : halves, rows = halves / pieces;
    copy(gate_up, whole.weights().gate_up, experts * pieces, rows * width * hidden, rows * begin * hidden,
         rows * count * hidden);
    if (layer_case.bias) {
      bias = Buffer<uint16_t>(static_cast<size_t>(experts * halves * count));
      copy(bias, whole.weights().gate_up_bias, experts * pieces, rows * width, rows * begin, rows * count);
    }
    copy(down, whole.weights().down, experts * hidden, width, begin, count);
    copy(scales, whole.weights().gate_up_scale, experts * halves, all_blocks * across, first * across, blocks * across);
    copy(down_scales, whole.weights().down_scale, experts * across, all_blocks, first, blocks);
    weights = {.gate_up = gate_up.data(), .down = down.data()};
    if (layer_case.bias) weights.gate_up_bias = bias.data();
    weights.down_bias = whole.weights().down_bias;
    weights.gate_up_scale = scales.data();
    weights.down_scale = down_scales.data();
  }
};

}  // namespace tessera::testing
