// The exact judge of layers with e4m3 weights: sums done by hand, a second way through the same definition in plain
// loops, planted errors.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "moe/formats.h"
#include "moe/judge.h"
#include "moe/judge/exact_layer.h"
#include "moe/layer_data.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/moe/quantize.h"

namespace tessera::testing {
namespace {

using moe::ExactLayer;
using moe::QuantizedRows;

constexpr auto kFp8 = moe::WeightFormat::fp8_block;

uint16_t bits(float value) { return f32_to_bf16(value); }

// One token, one expert without a gate, whose numbers a test sets.
struct HandLayer {
  moe::LayerConfig config;
  std::vector<uint16_t> x, bias, down_bias;
  std::vector<uint8_t> up, down;
  std::vector<float> up_scale, down_scale;
  int32_t id = 0;
  float weight = 1.0f;

  HandLayer(int32_t hidden, int32_t width)
      : x(static_cast<size_t>(hidden)),
        bias(static_cast<size_t>(width)),
        down_bias(static_cast<size_t>(hidden)),
        up(static_cast<size_t>(hidden * width)),
        down(up.size()),
        up_scale(static_cast<size_t>((width + 127) / 128 * ((hidden + 127) / 128)), 1.0f),
        down_scale(up_scale.size(), 1.0f) {
    config.hidden_size = hidden;
    config.intermediate_size = width;
    config.num_experts = config.top_k = 1;
    config.gated = false;
    config.activation.kind = ActivationKind::identity;
    config.weight_format = kFp8;
  }
  ExactLayer layer() const {
    moe::LayerWeights weights{up.data(), down.data(), bias.data(), down_bias.data()};
    weights.gate_up_scale = up_scale.data();
    weights.down_scale = down_scale.data();
    return {config, weights, {x.data(), &id, false, &weight, nullptr, 1}};
  }
};

uint8_t code(float value) { return f32_to_e4m3(value); }

TEST(ExactFp8, ByHand) {
  // x = (3.5, 1, 0, ...): scale 2^-7, codes 448 and 128. h0 = 2 * (3.5 - 1 / 2), h1 = 0.5 from the bias.
  HandLayer l(16, 16);
  l.x[0] = bits(3.5f);
  l.x[1] = bits(1.0f);
  l.up[0] = code(1.0f);
  l.up[1] = code(-0.5f);
  l.up_scale[0] = 2.0f;
  l.bias[0] = bits(1.0f);  // h0 = 7
  l.bias[1] = bits(0.1f);
  const ExactLayer layer = l.layer();
  const QuantizedRows x = layer.quantized_tokens();
  EXPECT_EQ(x.scales, std::vector<float>{0x1p-7f});
  EXPECT_EQ(x.codes[0], 0x7E);
  EXPECT_EQ(x.codes[1], 14 << 3);
  const std::vector<float> h = layer.activations(moe::exact_activation);
  EXPECT_EQ(h[0], 7.0f);
  EXPECT_EQ(h[1], bf16_to_f32(bits(0.1f)));
  const QuantizedRows q = layer.quantized(h);
  EXPECT_EQ(q.scales, std::vector<float>{0x1p-6f});
  EXPECT_EQ(q.codes[0], 0x7E);
  // 0.1 as bf16 is 0.10009765625, times 64 is 6.40625: between 6 and 6.5, nearer to 6.5.
  EXPECT_EQ(e4m3_to_f32(q.codes[1]), 6.5f);
  l.down[5 * 16 + 0] = code(2.0f);
  l.down[5 * 16 + 1] = code(4.0f);
  l.down_scale[0] = 0.25f;
  l.down_bias[4] = bits(-1.0f);
  // Column 5: (2 * 448 + 4 * 6.5) / 64 / 4 = 3.6015625, in bf16 3.609375 (8 bits: a 64th).
  std::vector<uint16_t> expected(16, 0);
  expected[4] = bits(-1.0f);
  expected[5] = bits(3.6015625f);
  EXPECT_EQ(l.layer().out(), expected);
  l.id = 1;  // no expert of this shard
  EXPECT_EQ(l.layer().out(), std::vector<uint16_t>(16, 0));
}

// Rows of the first weight begin 112 into a block, columns of the second 64: groups of h lie with the blocks of the
// second.
TEST(ExactFp8, WeightsThatBeginInsideABlock) {
  HandLayer l(16, 144);
  l.config.scale_offsets = {112, 0, 64};
  l.up_scale = {2.0f, 4.0f};
  l.down_scale = {0.5f, 8.0f};
  l.x[0] = bits(3.5f);  // quantised exactly
  for (const int row : {15, 16, 143}) l.up[static_cast<size_t>(16 * row)] = code(1.0f);
  const int columns[] = {0, 63, 64, 127, 128};
  const float values[] = {448.0f, 1.0f, 2.0f, 4.0f, 448.0f};  // of h, by the bias: groups of scale 1
  for (size_t i = 0; i < 5; ++i) {
    l.bias[static_cast<size_t>(columns[i])] = bits(values[i]);
    l.down[144 * i + static_cast<size_t>(columns[i])] = code(1.0f);
    l.down[144 * 5 + static_cast<size_t>(columns[i])] = code(0.5f);
  }
  const std::vector<float> h = l.layer().activations(moe::exact_activation);
  EXPECT_EQ(h[15], 7.0f);
  EXPECT_EQ(h[16], 14.0f);
  EXPECT_EQ(h[143], 14.0f);
  const std::vector<uint16_t> out = l.layer().out();
  const float expected[] = {224.0f, 0.5f, 16.0f, 32.0f, 3584.0f, 112.25f + 24.0f + 1792.0f};
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(out[i], bits(expected[i])) << i;
}

// Inside a block the tensor core keeps 13 bits below the largest product; from block to block fp32 keeps all.
TEST(ExactFp8, SumsArePromotedEachBlock) {
  HandLayer l(256, 16);
  l.x[0] = l.x[128] = bits(448.0f);
  l.x[1] = l.x[129] = bits(1.0f);
  l.up[0] = code(32.0f);         // 14336
  l.up[1] = code(0.5f);          // gone: the unit of a sum with 448 * 32 is 1
  l.up[256 + 0] = code(32.0f);   // row 1
  l.up[256 + 129] = code(0.5f);  // stays: its block has nothing larger
  l.up[512 + 1] = code(0.5f);    // row 2: alone
  const std::vector<float> h = l.layer().activations(moe::exact_activation);
  EXPECT_EQ(h[0], 14336.0f);
  EXPECT_EQ(h[1], 14336.5f);
  EXPECT_EQ(h[2], 0.5f);
  l.up_scale[1] = 8.0f;  // of the second block
  EXPECT_EQ(l.layer().activations(moe::exact_activation)[1], 14340.0f);
  EXPECT_EQ(moe::promoted(3.0f, 2.0f, 0.5f, 1.0f), 4.0f);
  EXPECT_EQ(moe::promoted(1.0f, 1.0f + 0x1p-23f, 1.0f + 0x1p-23f, -1.0f), 0x1p-22f) << "scales are multiplied first";
}

TEST(ExactFp8, NotANumber) {
  HandLayer l(256, 16);
  l.x[200] = 0x7FC1;
  l.up.assign(l.up.size(), code(1.0f));
  const QuantizedRows x = l.layer().quantized_tokens();
  EXPECT_EQ(std::bit_cast<uint32_t>(x.scales[1]), 0x7FFFFFFFu);
  EXPECT_EQ(x.codes[128], 0x7F);
  EXPECT_EQ(x.codes[0], 0x00);
  EXPECT_EQ(l.layer().out(), std::vector<uint16_t>(256, 0x7FFF));
}

LayerCase with_everything(moe::GateUpOrder order) {
  LayerCase c{.hidden = 272, .intermediate = 208, .experts = 4, .top_k = 2, .tokens = 7, .bias = true};
  c.activation = {ActivationKind::relu};
  c.format = kFp8;
  c.order = order;
  return c;
}

// One element of a first product, by the definition, from the layout in layer_config.h.
float first_product(const LayerData& data, const QuantizedRows& x, int64_t token, int64_t expert, bool up,
                    int64_t column) {
  const LayerCase& c = data.layer_case();
  const auto rules = moe::tensor_core_rules(moe::TensorCoreType::e4m3);
  const int64_t in_row = (c.hidden + 127) / 128, in_column = (c.intermediate + 127) / 128;
  const int64_t row = expert * 2 * c.intermediate +
                      (up ? up_row(c.order, column, c.intermediate) : gate_row(c.order, column, c.intermediate));
  const auto* weights = reinterpret_cast<const uint8_t*>(data.gate_up().data()) + row * c.hidden;
  const auto* scales = reinterpret_cast<const float*>(data.gate_up_scale().data()) +
                       ((expert * 2 + (up ? 1 : 0)) * in_column + column / 128) * in_row;
  float sum = 0.0f;
  for (int64_t block = 0; block < in_row; ++block) {
    float acc = 0.0f;
    for (int64_t k = 128 * block; k < std::min<int64_t>(128 * block + 128, c.hidden); k += 32) {
      std::vector<uint16_t> a(32, 0), b(32, 0);
      for (int64_t i = 0; i < 32 && k + i < c.hidden; ++i) {
        a[static_cast<size_t>(i)] = x.codes[static_cast<size_t>(token * c.hidden + k + i)];
        b[static_cast<size_t>(i)] = weights[k + i];
      }
      acc = moe::multiply_add(rules, a, b, acc);
    }
    sum = std::fma(acc, x.scales[static_cast<size_t>(token * in_row + block)] * scales[block], sum);
  }
  uint16_t bias;
  std::memcpy(&bias, data.gate_up_bias().data() + 2 * row, 2);
  return sum + bf16_to_f32(bias);
}

TEST(ExactFp8, FirstProductsByASecondWay) {
  for (const auto order : {moe::GateUpOrder::gate_first, moe::GateUpOrder::interleaved, moe::GateUpOrder::up_first}) {
    const LayerData data(with_everything(order));
    const ExactLayer layer(data.config(), data.weights(), data.inputs());
    // Tokens are quantised as the public function does it.
    const QuantizedRows x = layer.quantized_tokens();
    QuantizedRows same{std::vector<uint8_t>(x.codes.size()), std::vector<float>(x.scales.size())};
    moe::quantize_rows(data.x().data(), DType::bf16, {7, 272}, same.codes.data(), same.scales.data());
    EXPECT_EQ(x.codes, same.codes);
    EXPECT_EQ(x.scales, same.scales);
    for (const bool up : {false, true}) {
      // h is the half that is asked for: what a device's activation is given.
      const auto half = layer.activations([&](const Activation&, const float* gate, const float* up_values, float* h,
                                              size_t count) { std::copy_n(up ? up_values : gate, count, h); });
      for (int64_t row = 0; row < layer.num_rows(); ++row) {
        const int64_t expert = layer.expert_of_row(row);
        for (const int64_t column : {0, 1, 127, 128, 200, 207}) {
          ASSERT_EQ(half[static_cast<size_t>(row * 208 + column)], first_product(data, x, row / 2, expert, up, column))
              << static_cast<int>(order) << " row " << row << " column " << column;
        }
      }
    }
    const auto h = layer.quantized(layer.activations(moe::exact_activation));
    EXPECT_EQ(layer.combined(layer.rows(h)), layer.out());
    ThreadPool threads(2);
    EXPECT_EQ(ExactLayer(data.config(), data.weights(), data.inputs(), &threads).out(), layer.out());
  }
}

std::string verdict_of(const LayerData& data, const std::vector<uint16_t>& out) {
  std::vector<std::byte> bytes(out.size() * 2);
  std::memcpy(bytes.data(), out.data(), bytes.size());
  return judge(data.layer_case(), bytes, data.reference(unit_of(data.layer_case(), kWgmmaSums)), kWgmmaSums);
}

// A shared expert in slices rounds each slice: within a few bounds of the one that is not cut.
TEST(ExactFp8, SlicesOfASharedExpert) {
  LayerCase c = find_case("fp8_shared_slices_bf16");
  c.activation = {ActivationKind::relu};
  const LayerData data(c);
  const auto out = ExactLayer(data.config(), data.weights(), data.inputs()).out();
  const auto reference = data.reference(unit_of(c, kWgmmaSums));
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double off = bf16_to_f32(out[i]) - reference.out[i];
    ASSERT_LE(std::abs(off), 4.0 * reference.bound[i]) << i;
    error += off * off;
    size += reference.out[i] * reference.out[i];
  }
  EXPECT_LT(std::sqrt(error / size), kQuantizedRowLimit);
  c.shared_intermediate = 2 * 144;
  c.intermediate = 144;
  const LayerData cut(c);
  EXPECT_THROW(ExactLayer(cut.config(), cut.weights(), cut.inputs()), ProgrammerError) << "slices inside blocks";
}

// What a kernel may get wrong between its products.
class PlantedFp8Errors : public ::testing::Test {
 protected:
  const LayerData data_{with_everything(moe::GateUpOrder::gate_first)};
  const ExactLayer layer_{data_.config(), data_.weights(), data_.inputs()};
  const QuantizedRows h_ = layer_.quantized(layer_.activations(moe::exact_activation));

  std::string verdict(const QuantizedRows& h) const { return verdict_of(data_, layer_.combined(layer_.rows(h))); }
};

TEST_F(PlantedFp8Errors, NoneIsAccepted) { EXPECT_EQ(verdict(h_), ""); }

TEST_F(PlantedFp8Errors, AnotherRowsScale) {
  QuantizedRows h = h_;
  for (size_t group = 0; group < 2; ++group) std::swap(h.scales[group], h.scales[2 * 3 + group]);
  EXPECT_NE(verdict(h), "");
}

// The first group of the token with the least scale, as if it were multiplied by the largest of all tokens.
TEST_F(PlantedFp8Errors, AnotherTokensScale) {
  const QuantizedRows x = layer_.quantized_tokens();
  size_t least = 0, most = 0;
  for (size_t token = 1; token < 7; ++token) {
    if (x.scales[token * 3] < x.scales[least * 3]) least = token;
    if (x.scales[token * 3] > x.scales[most * 3]) most = token;
  }
  std::vector<uint16_t> tokens(7 * 272);
  std::memcpy(tokens.data(), data_.x().data(), data_.x().size());
  for (size_t i = least * 272; i < least * 272 + 128; ++i)
    tokens[i] = bits(bf16_to_f32(tokens[i]) * x.scales[most * 3] / x.scales[least * 3]);
  moe::LayerInputs inputs = data_.inputs();
  inputs.x = tokens.data();
  const std::string problem = verdict_of(data_, ExactLayer(data_.config(), data_.weights(), inputs).out());
  EXPECT_NE(problem.find("token " + std::to_string(least)), std::string::npos) << problem;
}

TEST_F(PlantedFp8Errors, TheNeighbouringGroupsScale) {
  QuantizedRows h = h_;
  for (size_t i = 0; i < h.scales.size(); i += 2) h.scales[i] = h.scales[i + 1];
  EXPECT_NE(verdict(h), "");
}

TEST_F(PlantedFp8Errors, TheLastGroupIsLost) {
  QuantizedRows h = h_;
  for (size_t i = 0; i < h.codes.size(); ++i) {
    if (i % 208 >= 128) h.codes[i] = 0;
  }
  EXPECT_NE(verdict(h), "");
}

TEST_F(PlantedFp8Errors, AGroupThatSaturates) {
  QuantizedRows h = h_;  // scales a quarter of what they should be
  const auto values = layer_.activations(moe::exact_activation);
  for (size_t i = 0; i < h.codes.size(); ++i) {
    const float scale = h_.scales[i / 208 * 2 + i % 208 / 128] * 0.25f;
    h.codes[i] = e4m3_code(values[i], e4m3_inverse_scale(scale));
  }
  for (float& scale : h.scales) scale *= 0.25f;
  EXPECT_NE(verdict(h), "");
}

}  // namespace
}  // namespace tessera::testing
