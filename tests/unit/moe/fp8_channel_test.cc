// What the battery does not ask of layers with a scale each weight row: sums by hand, rows and experts that each scale
// belongs to, planted errors, per-tensor scales that become these, what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "moe/judge/exact_layer.h"
#include "moe/kernels.h"
#include "moe/run_cpu.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"
#include "tessera/moe/convert_scales.h"
#include "tessera/moe/quantize.h"
#include "unit/error_message.h"

namespace tessera::testing {
namespace {

using moe::ChannelGrid;
using moe::convert_channel_scales;
using moe::GateUpOrder;
using moe::ScaleType;

LayerCase channel_case(LayerCase c) {
  c.format = moe::WeightFormat::fp8_channel;
  return c;
}

uint16_t channel_bits(float value) { return f32_to_bf16(value); }

// One token, one expert without a gate: x = (448, 1, 0, ..), the second 128 of K away.
struct ChannelLayer {
  static constexpr int32_t kHidden = 256, kWidth = 16;
  moe::LayerConfig config;
  std::vector<uint16_t> x = std::vector<uint16_t>(kHidden), bias = std::vector<uint16_t>(kWidth);
  std::vector<uint8_t> up = std::vector<uint8_t>(kWidth * kHidden), down = up;
  std::vector<float> up_scale = std::vector<float>(kWidth, 1.0f), down_scale = std::vector<float>(kHidden, 1.0f);
  float given_x = 0.0f, given_h = 0.0f;
  int32_t id = 0;
  float weight = 1.0f;

  ChannelLayer() {
    config.hidden_size = kHidden;
    config.intermediate_size = kWidth;
    config.num_experts = config.top_k = 1;
    config.gated = false;
    config.activation.kind = ActivationKind::identity;
    config.weight_format = moe::WeightFormat::fp8_channel;
    x[0] = channel_bits(448.0f);
    x[200] = channel_bits(1.03125f);  // 1 under the token's scale, which is 1
  }
  moe::ExactLayer layer() {
    config.num_gate_up_input_scales = given_x == 0.0f ? 0 : 1;
    config.num_down_input_scales = given_h == 0.0f ? 0 : 1;
    moe::LayerWeights weights{up.data(), down.data(), bias.data()};
    weights.gate_up_scale = up_scale.data();
    weights.down_scale = down_scale.data();
    if (given_x != 0.0f) weights.gate_up_input_scale = &given_x;
    if (given_h != 0.0f) weights.down_input_scale = &given_h;
    return {config, weights, {x.data(), &id, false, &weight, nullptr, 1}};
  }
};

TEST(Fp8Channel, ByHand) {
  ChannelLayer l;
  l.up[200] = f32_to_e4m3(2.0f);
  l.up_scale[0] = 3.0f;
  l.bias[0] = channel_bits(0.5f);
  EXPECT_EQ(l.layer().quantized_tokens().scales, (std::vector<float>{1.0f, 1.0f})) << "one scale over all columns";
  EXPECT_EQ(l.layer().activations(moe::exact_activation)[0], 6.5f) << "2 * 1 * 3, and then the bias";
  l.down[5 * 16] = f32_to_e4m3(0.5f);
  l.down_scale[5] = 4.0f;
  EXPECT_EQ(l.layer().out()[5], channel_bits(13.0f));
  l.given_x = 2.0f;  // 448 / 2 = 224; 1.03125 / 2 = 0.515625, nearest 0.5
  EXPECT_EQ(l.layer().quantized_tokens().scales, (std::vector<float>{2.0f, 2.0f}));
  EXPECT_EQ(e4m3_to_f32(l.layer().quantized_tokens().codes[0]), 224.0f);
  l.given_x = 0.25f;  // what is too large stays at the largest code
  EXPECT_EQ(l.layer().quantized_tokens().codes[0], 0x7E);
  l.given_x = 0.0f;
  l.given_h = 1.0f;  // 6.5 is a code
  EXPECT_EQ(l.layer().out()[5], channel_bits(13.0f));
  l.given_h = 16.0f;  // 6.5 / 16 = 0.40625 is one, too
  EXPECT_EQ(l.layer().out()[5], channel_bits(13.0f));
  l.given_h = 6.5f / 1024.0f;  // 1024 saturates at 448
  EXPECT_EQ(l.layer().out()[5], channel_bits(448.0f * 6.5f / 1024.0f * 2.0f));
}

// A channel's scale multiplies the finished sum: two roundings, not those of scales that multiply the products.
TEST(Fp8Channel, TheChannelsScaleComesLast) {
  ChannelLayer l;
  l.up[0] = f32_to_e4m3(1.0f);
  l.up[200] = f32_to_e4m3(1.0f);
  l.up_scale[0] = 1.0f + 0x1p-23f;
  const float sum = 449.0f;
  EXPECT_EQ(l.layer().activations(moe::exact_activation)[0], sum * (1.0f + 0x1p-23f));
}

TEST(Fp8Channel, RoundLikeEngines) {
  ChannelLayer l;
  l.config.round_like_engines = true;
  l.up[0] = f32_to_e4m3(1.0f);
  l.up[200] = f32_to_e4m3(1.0f);
  EXPECT_EQ(l.layer().activations(moe::exact_activation)[0], bf16_to_f32(channel_bits(449.0f)));
  EXPECT_NE(bf16_to_f32(channel_bits(449.0f)), 449.0f);
}

// Weights of one expert stand in for another's only with its scales: a swapped scale of any kind is seen.
TEST(Fp8Channel, TheJudgeRefusesAnotherRowsScale) {
  const LayerCase c = channel_case({.hidden = 144,
                                    .intermediate = 80,
                                    .experts = 3,
                                    .tokens = 20,
                                    .x_scales = kEachExpert,
                                    .h_scales = kEachExpert});
  for (int planted = 0; planted < 4; ++planted) {
    const LayerData data(c);
    const moe::OracleResult reference = data.reference();
    ASSERT_EQ(judge(c, data.run(), reference, kCpuSums), "");
    moe::LayerWeights weights = data.weights();
    auto* const gate_up = static_cast<float*>(const_cast<void*>(weights.gate_up_scale));
    auto* const down = static_cast<float*>(const_cast<void*>(weights.down_scale));
    auto* const x = const_cast<float*>(weights.gate_up_input_scale);
    auto* const h = const_cast<float*>(weights.down_input_scale);
    if (planted == 0) std::rotate(gate_up, gate_up + 1, gate_up + 3 * 2 * 80);
    if (planted == 1) std::rotate(down, down + 1, down + 3 * 144);
    if (planted == 2) x[0] = x[1] = x[2] = 0.1f;
    if (planted == 3) h[0] = h[1] = h[2] = 0.2f;
    EXPECT_NE(judge(c, data.run(), reference, kCpuSums), "") << planted;
  }
}

// The bits that a GPU must give lie within the bound, for every kind of scale and both places of rounding.
TEST(Fp8Channel, TheExactModelIsRight) {
  int ran = 0;
  for (LayerCase c : battery()) {
    const bool is_wanted = c.format == moe::WeightFormat::fp8_channel || c.round_like_engines;
    if (!is_wanted || !is_for_gpu(c) || c.hidden > 300 || c.shared_intermediate > c.intermediate) continue;
    if (!is_exact_on_host(c)) c.activation = {ActivationKind::relu};
    const LayerData data(c);
    const std::vector<uint16_t> out = moe::ExactLayer(data.config(), data.weights(), data.inputs()).out();
    std::vector<std::byte> bytes(out.size() * 2);
    if (!out.empty()) std::memcpy(bytes.data(), out.data(), bytes.size());
    EXPECT_EQ(judge(c, bytes, data.reference(unit_of(c, kWgmmaSums)), kWgmmaSums), "") << c;
    ++ran;
  }
  EXPECT_GT(ran, 60);
}

// Tokens that came quantised with a scale each give the layer's own bits.
TEST(Fp8Channel, TokensThatCameQuantised) {
  const LayerCase c = channel_case({.hidden = 272, .intermediate = 80, .experts = 3, .tokens = 20});
  const LayerData data(c);
  std::vector<uint8_t> codes(size_t{20} * 272);
  std::vector<float> scales(20);
  moe::quantize_rows(data.x().data(), c.dtype, {c.tokens, c.hidden, kWholeRow}, codes.data(), scales.data());
  const moe::CpuLayer layer(data.config(), data.weights(), 1);
  std::vector<std::byte> out(data.out_bytes()), workspace(layer.workspace_bytes(c.tokens) + 16);
  moe::LayerInputs inputs = data.inputs(out.data());
  inputs.x = codes.data();
  inputs.x_scale = scales.data();
  void* const room = workspace.data() + (16 - reinterpret_cast<uintptr_t>(workspace.data()) % 16) % 16;
  layer.run(inputs, room, layer.workspace_bytes(c.tokens));
  EXPECT_EQ(out, data.run(layer));
}

TEST(Fp8Channel, StoredScalesBecomeOneEachRow) {
  const float rows[] = {1, 2, 3, 4, 5, 6, 7, 8};
  const auto converted = [](const void* values, ScaleType type, ChannelGrid grid, const moe::WeightShape& shape) {
    std::vector<float> scales(static_cast<size_t>(shape.num_matrices * shape.rows));
    convert_channel_scales({values, type, grid}, shape, scales.data());
    return scales;
  };
  using Floats = std::vector<float>;
  EXPECT_EQ(converted(rows, ScaleType::f32, ChannelGrid::rows, {2, 4, 16}), Floats(rows, rows + 8));
  EXPECT_EQ(converted(rows, ScaleType::f32, ChannelGrid::matrices, {2, 3, 16}), (Floats{1, 1, 1, 2, 2, 2}));
  const moe::WeightShape gate_first{2, 4, 16, true};
  EXPECT_EQ(converted(rows, ScaleType::f32, ChannelGrid::halves, gate_first), (Floats{1, 1, 2, 2, 3, 3, 4, 4}));
  EXPECT_EQ(converted(rows, ScaleType::f32, ChannelGrid::halves, {2, 4, 16, true, GateUpOrder::interleaved}),
            (Floats{1, 2, 1, 2, 3, 4, 3, 4}));
  EXPECT_EQ(converted(rows, ScaleType::f32, ChannelGrid::halves, {2, 4, 16, true, GateUpOrder::up_first}),
            (Floats{2, 2, 1, 1, 4, 4, 3, 3}));
  const uint16_t halves[] = {channel_bits(0.5f), channel_bits(3.0f)};
  EXPECT_EQ(converted(halves, ScaleType::bf16, ChannelGrid::rows, {1, 2, 16}), (Floats{0.5f, 3.0f}));
  const uint8_t bytes[] = {126, 130};
  EXPECT_EQ(converted(bytes, ScaleType::e8m0, ChannelGrid::matrices, {2, 1, 16}), (Floats{0.5f, 8.0f}));
}

TEST(Fp8Channel, StoredScalesThatAreNone) {
  float out[8];
  const auto error = [&](std::vector<float> values, ChannelGrid grid, const moe::WeightShape& shape) {
    return error_of([&] { moe::convert_channel_scales({values.data(), ScaleType::f32, grid}, shape, out); });
  };
  EXPECT_EQ(error({1, 2, 3, -1}, ChannelGrid::rows, {2, 2, 16}),
            "scale of expert 1, row 1: got -1, expected a finite number that is not negative");
  EXPECT_EQ(error({1, std::numeric_limits<float>::infinity()}, ChannelGrid::matrices, {2, 2, 16}),
            "scale of expert 1, row 0: got inf, expected a finite number that is not negative");
  EXPECT_EQ(error({1, 2}, ChannelGrid::halves, {1, 4, 16}),
            "grid: got halves, expected rows or matrices: the weight is one projection");
  EXPECT_EQ(error_of([&] {
              moe::convert_channel_scales({}, {1, 4, 16}, out);
            }),
            "stored scales: got a null pointer, expected host memory");
  EXPECT_EQ(error({1}, ChannelGrid::matrices, {1, 3, 16, true}), "rows: got 3, expected as many gate rows as up rows");
}

TEST(Fp8Channel, WhatIsRefused) {
  const LayerCase c = channel_case({.hidden = 144, .intermediate = 80, .experts = 3, .tokens = 4, .x_scales = 1});
  const LayerData data(c);
  const auto error = [&](const auto& change) {
    moe::LayerConfig config = data.config();
    moe::LayerWeights weights = data.weights();
    change(config, weights);
    return error_of([&] { moe::CpuLayer(config, weights, 1); });
  };
  using Config = moe::LayerConfig;
  using Weights = moe::LayerWeights;
  EXPECT_EQ(error([](Config& config, Weights&) { config.num_gate_up_input_scales = 2; }),
            "num_gate_up_input_scales: got 2, expected 0, 1 or 3, one for each expert");
  EXPECT_EQ(error([](Config&, Weights& weights) { weights.gate_up_input_scale = nullptr; }),
            "gate_up input scale: got a null pointer, expected host memory");
  EXPECT_EQ(error([](Config& config, Weights&) { config.num_gate_up_input_scales = 0; }),
            "gate_up input scale: got a pointer, expected null, or num_gate_up_input_scales");
  EXPECT_EQ(error([](Config& config, Weights&) { config.num_down_input_scales = 1; }),
            "down input scale: got a null pointer, expected host memory");
  EXPECT_EQ(
      error([](Config& config, Weights&) { config.weight_format = moe::WeightFormat::fp8_block; }),
      "num_gate_up_input_scales: got 1, expected 0: rows beside weights of format fp8-block have no static scales");
  EXPECT_EQ(error([](Config& config, Weights&) { config.scale_offsets.down = 16; }),
            "down scale offset: got 16, expected 0: weights of format fp8-channel have no blocks of scales");
  EXPECT_EQ(error([](Config& config, Weights&) { config.hidden_size = 136; }),
            "hidden_size: got 136, expected a positive multiple of 16 for weights of format fp8-channel");
  EXPECT_EQ(error([](Config&, Weights& weights) { weights.down_scale = nullptr; }),
            "down scale: got a null pointer, expected host memory");
  EXPECT_EQ(error([](Config& config, Weights& weights) {
              config.weight_format = moe::WeightFormat::dense;
              config.num_gate_up_input_scales = 0;
              config.round_like_engines = true;
              weights.gate_up_input_scale = nullptr;
            }),
            "round_like_engines: got true, expected false: with weights of format dense the intermediate is rounded "
            "anyway");
  const auto check = [&](const auto& change) {
    const LayerData other(channel_case({.hidden = 144, .intermediate = 80, .experts = 3, .h_scales = kEachExpert}));
    moe::LayerWeights weights = other.weights();
    change(static_cast<float*>(const_cast<void*>(weights.gate_up_scale)), const_cast<float*>(weights.down_input_scale));
    return error_of([&] { moe::check_scales(other.config(), weights); });
  };
  EXPECT_EQ(check([](float*, float*) {}), "no error");
  EXPECT_EQ(check([](float* gate_up, float*) { gate_up[160 + 81] = -2.0f; }),
            "gate_up scale of expert 1, row 81: got -2, expected a finite number that is not negative");
  EXPECT_EQ(check([](float*, float* h) { h[2] = 0.0f; }),
            "down input scale of expert 2: got 0, expected a positive finite number");
}

TEST(Fp8Channel, KernelsOfAGpu) {
  LayerCase c = channel_case({.hidden = 2048, .intermediate = 768, .experts = 128, .top_k = 8});
  const auto kernel = [&](int32_t tokens) {
    return moe::resolve_launch(config_of(c), tokens, {.num_multiprocessors = 132}, {}).kernel->name;
  };
  EXPECT_EQ(kernel(1), "expert_gemm_rows_fp8_channel");
  EXPECT_EQ(kernel(4096), "expert_gemm_fp8_channel");
  c.x_scales = 1;
  EXPECT_EQ(kernel(1), "expert_gemm_rows_fp8_channel");
  c.round_like_engines = true;
  EXPECT_EQ(kernel(1), "expert_gemm_fp8_channel");
  c.round_like_engines = false;
  c.x_scales = kEachExpert;
  EXPECT_EQ(kernel(1), "expert_gemm_fp8_channel") << "its rows are quantised for each expert";
}

}  // namespace
}  // namespace tessera::testing
