#include "cpu/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace tessera::cpu {
namespace {

TEST(Convert, EveryHalfToFloat) {
  std::vector<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> out(halves.size());
  for (const DType dtype : {DType::f16, DType::bf16}) {
    to_f32(halves.data(), dtype, static_cast<int64_t>(halves.size()), out.data());
    for (size_t i = 0; i < halves.size(); ++i) {
      const float expected = dtype == DType::f16 ? f16_to_f32(halves[i]) : bf16_to_f32(halves[i]);
      ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected)) << i;
    }
  }
}

// A stride through all floats, and the neighbourhoods where the rounding changes its case.
TEST(Convert, FloatsToHalves) {
  std::vector<float> values;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 65521 / 5) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  for (const uint32_t edge : {0x00000000u, 0x33000000u, 0x38800000u, 0x477FF000u, 0x7F7F8000u, 0x7F800000u}) {
    for (int offset = -3; offset <= 3; ++offset) {
      values.push_back(std::bit_cast<float>(edge + static_cast<uint32_t>(offset)));
      values.push_back(-values.back());
    }
  }
  std::vector<uint16_t> out(values.size());
  for (const DType dtype : {DType::f16, DType::bf16}) {
    from_f32(values.data(), static_cast<int64_t>(values.size()), dtype, out.data());
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(out[i], dtype == DType::f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i])) << values[i];
    }
  }
}

TEST(Convert, FloatsAreCopied) {
  const float values[] = {1.5f, -0.0f, std::numeric_limits<float>::quiet_NaN()};
  float out[3] = {};
  to_f32(values, DType::f32, 3, out);
  EXPECT_EQ(std::bit_cast<uint32_t>(out[1]), 0x80000000u);
  EXPECT_TRUE(std::isnan(out[2]));
  from_f32(values, 3, DType::f32, out);
  EXPECT_EQ(out[0], 1.5f);
}

}  // namespace
}  // namespace tessera::cpu
