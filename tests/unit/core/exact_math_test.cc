#include "tessera/core/exact_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tessera {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// In units of the last place of the exact result.
double ulps(float got, double exact) {
  const double step = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
  return std::abs(got - exact) / step;
}

TEST(ExactMath, ExpWithinTwoUlps) {
  double worst = 0;
  for (uint32_t bits = 0x80000000u; bits < 0xC2AE0000u; bits += 997) {  // -0 down to -87
    const float x = std::bit_cast<float>(bits);
    if (x >= kExpLowest) worst = std::max(worst, ulps(exp_nonpositive(x), std::exp(double{x})));
  }
  EXPECT_LT(worst, 2.0);
  EXPECT_GT(worst, 0.4);  // a result that were exactly rounded everywhere would say that nothing was compared
}

TEST(ExactMath, ExpAtTheEnds) {
  EXPECT_EQ(exp_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(exp_nonpositive(-0.0f), 1.0f);
  EXPECT_GE(exp_nonpositive(kExpLowest), std::numeric_limits<float>::min());
  EXPECT_EQ(exp_nonpositive(std::nextafter(kExpLowest, -kInf)), 0.0f);
  EXPECT_EQ(exp_nonpositive(-kInf), 0.0f);
  EXPECT_EQ(exp_nonpositive(-std::numeric_limits<float>::max()), 0.0f);
  EXPECT_EQ(exp_nonpositive(kNan), 0.0f);
}

// Comparisons of probabilities must not contradict comparisons of logits.
TEST(ExactMath, ExpAndSigmoidNeverFall) {
  float before = 0.0f;
  float sigmoid_before = 0.0f;
  for (float x = -90.0f; x <= 0.0f; x += 0x1p-12f) {
    EXPECT_GE(exact_sigmoid(x), sigmoid_before * (1 - 0x1p-22f)) << x;
    EXPECT_GE(exp_nonpositive(x), before * (1 - 0x1p-22f)) << x;
    before = exp_nonpositive(x);
    sigmoid_before = exact_sigmoid(x);
  }
}

TEST(ExactMath, Sigmoid) {
  double worst = 0;
  for (float x = -86.0f; x <= 86.0f; x += 0.00371f)
    worst = std::max(worst, ulps(exact_sigmoid(x), 1.0 / (1.0 + std::exp(-double{x}))));
  EXPECT_LT(worst, 4.0);
  EXPECT_EQ(exact_sigmoid(0.0f), 0.5f);
  EXPECT_EQ(exact_sigmoid(-0.0f), 0.5f);
  EXPECT_EQ(exact_sigmoid(kInf), 1.0f);
  EXPECT_EQ(exact_sigmoid(-kInf), 0.0f);
  EXPECT_TRUE(std::isnan(exact_sigmoid(kNan)));
}

// Bits of a few values from another implementation of the definition (numpy, operation by operation): what every
// processor and the GPU must give.
TEST(ExactMath, PinnedBits) {
  EXPECT_EQ(std::bit_cast<uint32_t>(exp_nonpositive(-1.0f)), 0x3EBC5AB2u);
  EXPECT_EQ(std::bit_cast<uint32_t>(exp_nonpositive(-10.5f)), 0x37E6FE13u);
  EXPECT_EQ(std::bit_cast<uint32_t>(exp_nonpositive(-80.25f)), 0x0595789Bu);
  EXPECT_EQ(std::bit_cast<uint32_t>(exact_sigmoid(2.25f)), 0x3F67972Du);
  EXPECT_EQ(std::bit_cast<uint32_t>(exact_sigmoid(-3.5f)), 0x3CF02034u);
}

}  // namespace
}  // namespace tessera
