#include "cpu/expert_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "tessera/core/check.h"
#include "unit/random_values.h"

namespace tessera::cpu {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

struct Case {
  ActivationKind kind;
  std::function<double(double)> act;
};

const Case kCases[] = {
    {ActivationKind::identity, [](double x) { return x; }},
    {ActivationKind::silu, [](double x) { return x * sigmoid(x); }},
    {ActivationKind::gelu_tanh,
     [](double x) { return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); }},
    {ActivationKind::gelu_erf, [](double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }},
    {ActivationKind::relu, [](double x) { return std::max(x, 0.0); }},
};

// Sizes with and without a tail of every vector width.
TEST(ExpertOps, Activations) {
  for (const size_t size : {1u, 7u, 16u, 333u}) {
    const std::vector<float> gate = test::random_normal(size, 3.0f, size);
    const std::vector<float> up = test::random_normal(size, 2.0f, size + 1);
    std::vector<float> h(size);
    for (const Case& c : kCases) {
      apply_gated({c.kind}, gate.data(), up.data(), static_cast<int64_t>(size), h.data());
      for (size_t i = 0; i < size; ++i) {
        const double expected = c.act(gate[i]) * up[i];
        EXPECT_NEAR(h[i], expected, 1e-6 * std::abs(expected) + 1e-12) << static_cast<int>(c.kind) << " " << gate[i];
      }
      apply_plain({c.kind}, gate.data(), static_cast<int64_t>(size), h.data());
      for (size_t i = 0; i < size; ++i) EXPECT_NEAR(h[i], c.act(gate[i]), 1e-6 * std::abs(c.act(gate[i])) + 1e-12);
    }
    apply_plain({ActivationKind::relu_squared}, gate.data(), static_cast<int64_t>(size), h.data());
    for (size_t i = 0; i < size; ++i) EXPECT_EQ(h[i], gate[i] > 0.0f ? gate[i] * gate[i] : 0.0f);
  }
}

TEST(ExpertOps, ClampedSwiglu) {
  const float limit = 7.0f;
  const std::vector<float> gate = {-9.0f, 6.5f, 7.5f, 1e30f, 0.0f, 7.0f, -1e30f};
  const std::vector<float> up = {1.0f, 8.0f, -8.0f, -1e30f, 3.0f, 1e30f, 2.0f};
  std::vector<float> h(gate.size());
  apply_gated({ActivationKind::clamped_swiglu, 1.702f, 1.0f, limit}, gate.data(), up.data(), 7, h.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double g = std::min<double>(gate[i], limit);
    const double u = std::min<double>(std::max<double>(up[i], -limit), limit);
    const double expected = (u + 1.0) * (g < -1e20 ? 0.0 : g * sigmoid(double{1.702f} * g));
    EXPECT_NEAR(h[i], expected, 1e-6 * std::abs(expected) + 1e-12) << i;
  }
}

TEST(ExpertOps, NanStaysAndLargeNumbersSaturate) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {nan, 200.0f, -200.0f};
  const std::vector<float> one = {1.0f, 1.0f, 1.0f};
  std::vector<float> h(3);
  for (const ActivationKind kind : {ActivationKind::identity, ActivationKind::silu, ActivationKind::gelu_tanh,
                                    ActivationKind::gelu_erf, ActivationKind::relu, ActivationKind::clamped_swiglu}) {
    apply_gated({kind, 1.0f, 0.0f, 1e9f}, x.data(), one.data(), 3, h.data());
    EXPECT_TRUE(std::isnan(h[0])) << static_cast<int>(kind);
    EXPECT_FLOAT_EQ(h[1], 200.0f);
    if (kind != ActivationKind::identity) {
      EXPECT_EQ(h[2], 0.0f) << static_cast<int>(kind);
    }
  }
}

TEST(ExpertOps, KindsThatNeedOrForbidAGateAreRefused) {
  float value = 1.0f;
  float h = 0.0f;
  EXPECT_THROW(apply_gated({ActivationKind::relu_squared}, &value, &value, 1, &h), ProgrammerError);
  EXPECT_THROW(apply_plain({ActivationKind::clamped_swiglu}, &value, 1, &h), ProgrammerError);
}

TEST(ExpertOps, PairsAndSums) {
  const std::vector<float> pairs = {1, 10, 2, 20, 3, 30};
  std::vector<float> even(3);
  std::vector<float> odd(3);
  split_pairs(pairs.data(), 3, even.data(), odd.data());
  EXPECT_EQ(even, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(odd, (std::vector<float>{10, 20, 30}));
  add_weighted(even.data(), 0.5f, 3, odd.data());
  EXPECT_EQ(odd, (std::vector<float>{10.5f, 21.0f, 31.5f}));
  // Two roundings, not one: (1 + 2^-12)^2 loses its last bit before the sum takes the rest away.
  const float value = 1.0f + 0x1p-12f;
  float sum = -1.0f - 0x1p-11f;
  add_weighted(&value, value, 1, &sum);
  EXPECT_EQ(sum, 0.0f);
}

}  // namespace
}  // namespace tessera::cpu
