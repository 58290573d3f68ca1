// e4m3 against a table made from its definition in doubles.
#include "tessera/core/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace tessera {
namespace {

double defined_value(int code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 7 - 3);
  return code & 0x80 ? -magnitude : magnitude;
}

// The nearest of all 127 magnitudes, ties to the even code, by search.
uint8_t nearest(double value) {
  if (std::isnan(value)) return 0x7F;
  int best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    const double now = std::abs(defined_value(code) - std::abs(value));
    const double before = std::abs(defined_value(best) - std::abs(value));
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

TEST(E4m3, EveryCodeIsItsValueAndBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(value)) << code;
      EXPECT_EQ(f32_to_e4m3(value), kE4m3Nan);
      continue;
    }
    EXPECT_EQ(static_cast<double>(value), defined_value(code)) << code;
    EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
    EXPECT_EQ(f32_to_e4m3(value), code);
  }
  EXPECT_EQ(e4m3_to_f32(0x7E), kE4m3Largest);
  EXPECT_EQ(e4m3_to_f32(0x01), 0x1p-9f);
  static_assert(e4m3_to_f32(0x38) == 1.0f && f32_to_e4m3(-1.0f) == 0xB8);
}

TEST(E4m3, TiesAreEvenAndTheirNeighboursAreNot) {
  for (int code = 0; code < 0x7E; ++code) {
    const auto middle = static_cast<float>((defined_value(code) + defined_value(code + 1)) / 2);  // exact
    const int even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(f32_to_e4m3(middle), even) << code;
    EXPECT_EQ(f32_to_e4m3(-middle), even | 0x80) << code;
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 0.0f)), code) << code;
    EXPECT_EQ(f32_to_e4m3(std::nextafter(middle, 1e9f)), code + 1) << code;
  }
}

TEST(E4m3, SaturatesAndKeepsSigns) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float large : {448.0f, 449.0f, 464.0f, 480.0f, 1e30f, infinity}) {
    EXPECT_EQ(f32_to_e4m3(large), 0x7E) << large;
    EXPECT_EQ(f32_to_e4m3(-large), 0xFE) << large;
  }
  for (const float small : {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-20f, 0x1p-10f}) {
    EXPECT_EQ(f32_to_e4m3(small), 0x00) << small;
    EXPECT_EQ(f32_to_e4m3(-small), 0x80) << small;
  }
  EXPECT_EQ(f32_to_e4m3(std::nanf("")), 0x7F);
  EXPECT_EQ(f32_to_e4m3(-std::nanf("")), 0x7F);
}

TEST(E4m3, RoundsAsTheSearchDoes) {
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    // All exponents near and beyond the type's.
    const auto bits = static_cast<uint32_t>((random() & 0x807FFFFFu) | (110u + random() % 30u) << 23);
    const float value = std::bit_cast<float>(bits);
    ASSERT_EQ(f32_to_e4m3(value), nearest(value)) << value;
  }
}

TEST(E4m3, ScalesAreOneProduct) {
  const auto scale = [](float amax) { return e4m3_scale(magnitude_bits(amax)); };
  EXPECT_EQ(scale(448.0f), 1.0f);  // 1/448 is rounded up by less than half a unit of the product
  EXPECT_EQ(scale(-3.5f), 0x1p-7f);
  EXPECT_EQ(scale(1.0f), 0x1.24924ap-9f);
  EXPECT_EQ(scale(0.0f), scale(1e-10f));
  EXPECT_EQ(scale(1e-30f), 1e-10f * 0x1.24924ap-9f);
  EXPECT_EQ(scale(std::numeric_limits<float>::infinity()), std::numeric_limits<float>::infinity());
  EXPECT_EQ(std::bit_cast<uint32_t>(scale(-std::nanf("7"))), 0x7FFFFFFFu);
  EXPECT_EQ(e4m3_inverse_scale(std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(e4m3_inverse_scale(0x1p-7f), 128.0f);
  EXPECT_EQ(e4m3_code(-3.5f, 128.0f), 0xFE);
  EXPECT_EQ(e4m3_code(std::numeric_limits<float>::infinity(), 0.0f), kE4m3Nan);
  EXPECT_GT(magnitude_bits(-std::nanf("")), magnitude_bits(-std::numeric_limits<float>::infinity()));
}

// The largest of a group becomes 448 whatever it is: the scale is never so small that it would be beyond.
TEST(E4m3, TheLargestValueIsTheLargestCode) {
  std::mt19937 random(2);
  for (int i = 0; i < 100000; ++i) {
    const float value =
        std::bit_cast<float>(static_cast<uint32_t>((random() & 0x007FFFFFu) | (95u + random() % 150u) << 23));
    const float inverse = e4m3_inverse_scale(e4m3_scale(magnitude_bits(value)));
    ASSERT_EQ(e4m3_code(value, inverse), 0x7E) << value;
  }
}

}  // namespace
}  // namespace tessera
