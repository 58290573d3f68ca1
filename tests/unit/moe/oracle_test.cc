// The oracle against sums done by hand, and its roundings.
#include "moe/judge/oracle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "unit/moe/layer_case.h"

namespace tessera::testing {
namespace {

using moe::rounded_to;

TEST(Oracle, RoundsAsTheConversionsDo) {
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    EXPECT_EQ(rounded_to(value, DType::bf16), bf16_to_f32(f32_to_bf16(value))) << value;
    EXPECT_EQ(rounded_to(value, DType::f16), f16_to_f32(f32_to_f16(value))) << value;
    EXPECT_EQ(rounded_to(value, DType::f32), value);
  }
  // One rounding: by way of fp32 this tie would fall on its even neighbour.
  EXPECT_EQ(rounded_to(1.0 + 0x1p-8 + 0x1p-40, DType::bf16), 1.0 + 0x1p-7);
  EXPECT_EQ(rounded_to(65519.0, DType::f16), 65504.0);
  EXPECT_EQ(rounded_to(-65520.0, DType::f16), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(rounded_to(std::nan(""), DType::f16)));
}

TEST(Oracle, UnitRoundoff) {
  EXPECT_EQ(moe::unit_roundoff(DType::f32), 0x1p-24);
  EXPECT_EQ(moe::unit_roundoff(DType::f16), 0x1p-11);
  EXPECT_EQ(moe::unit_roundoff(DType::bf16), 0x1p-8);
}

// H = I = 8, x = (3, 1, 0, ...): gate picks x[0], up picks x[1] + bias 1, down doubles.
TEST(Oracle, ByHand) {
  alignas(16) float gate_up[2 * 16 * 8] = {};
  alignas(16) float down[2 * 8 * 8] = {};
  alignas(16) float gate_up_bias[2 * 16] = {};
  alignas(16) float down_bias[2 * 8] = {};
  alignas(16) float shared_gate_up[16 * 8] = {};
  alignas(16) float shared_down[8 * 8] = {};
  alignas(16) float x[8] = {3.0f, 1.0f};
  gate_up[1 * 128 + 0 * 8 + 0] = 1.0f;  // expert 1, gate row 0
  gate_up[1 * 128 + 8 * 8 + 1] = 1.0f;  // expert 1, up row 0
  gate_up_bias[16 + 8] = 1.0f;
  down[64 + 5 * 8 + 0] = 2.0f;  // expert 1, output 5 from column 0
  down_bias[8 + 5] = 0.5f;
  shared_gate_up[0] = 1.0f;
  shared_gate_up[8 * 8] = 1.0f;
  shared_down[5 * 8] = 1.0f;
  moe::LayerConfig config;
  config.hidden_size = config.intermediate_size = config.shared_intermediate_size = 8;
  config.num_experts = 2;
  config.top_k = 2;
  config.dtype = DType::f32;
  config.activation = {ActivationKind::identity};
  config.first_expert = 10;
  const int32_t ids[2] = {11, 12};
  const float weights[2] = {0.25f, 100.0f};
  const float shared_weight = 0.5f;
  const auto result = moe::oracle(config, {gate_up, down, gate_up_bias, down_bias, shared_gate_up, shared_down},
                                  {x, ids, false, weights, nullptr, 1, &shared_weight});
  // 0.25 * (2 * (3 * (1 + 1)) + 0.5) + 0.5 * (3 * 3)
  for (size_t c = 0; c < 8; ++c) EXPECT_EQ(result.out[c], c == 5 ? 7.625 : 0.0);
  EXPECT_GT(result.bound[5], 0.0);
  EXPECT_LT(result.bound[5], 1e-4);
  EXPECT_EQ(result.bound[0], 0.0);
}

TEST(Oracle, RoundsIntermediateAndRows) {
  // One expert, all sums of one product: h = rounded(gate * up), y = rounded(h * down).
  alignas(16) uint16_t gate_up[16 * 8] = {};
  alignas(16) uint16_t down[8 * 8] = {};
  alignas(16) uint16_t x[8] = {};
  const double a = 1.0 + 0x1p-7;
  x[0] = gate_up[0] = gate_up[8 * 8] = down[0] = f32_to_bf16(static_cast<float>(a));
  moe::LayerConfig config;
  config.hidden_size = config.intermediate_size = 8;
  config.num_experts = config.top_k = 1;
  config.activation = {ActivationKind::identity};
  const int32_t id = 0;
  const float weight = 1.0f;
  const auto result = moe::oracle(config, {gate_up, down}, {x, &id, false, &weight, nullptr, 1});
  const double h = rounded_to(a * a * a * a, DType::bf16);
  EXPECT_NE(h, a * a * a * a);
  EXPECT_EQ(result.out[0], rounded_to(h * a, DType::bf16));
}

TEST(Oracle, SomeTokensAreThoseOfAll) {
  const LayerData data({.hidden = 16, .intermediate = 16, .tokens = 9, .shared_intermediate = 8});
  const auto all = data.reference();
  const std::vector<int32_t> tokens = {7, 2};
  const auto some = moe::oracle(data.config(), data.weights(), data.inputs(), tokens);
  for (size_t c = 0; c < 16; ++c) {
    EXPECT_EQ(some.out[c], all.out[7 * 16 + c]);
    EXPECT_EQ(some.bound[16 + c], all.bound[2 * 16 + c]);
  }
}

}  // namespace
}  // namespace tessera::testing
