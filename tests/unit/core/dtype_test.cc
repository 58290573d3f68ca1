#include "tessera/core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tessera {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The formats by their definition, in double arithmetic, where every value and every sum of two neighbours is exact.
struct Format {
  int mantissa_bits;
  int min_exponent;  // of the smallest normal number
  int max_exponent;
};
constexpr Format kF16{10, -14, 15};
constexpr Format kBf16{7, -126, 127};

double value_by_definition(const Format& format, uint32_t magnitude_bits) {
  const int exponent_field = static_cast<int>(magnitude_bits >> format.mantissa_bits);
  const uint32_t mantissa = magnitude_bits & ((1u << format.mantissa_bits) - 1);
  if (exponent_field == 0) return std::ldexp(mantissa, format.min_exponent - format.mantissa_bits);
  return std::ldexp((1u << format.mantissa_bits) + mantissa,
                    format.min_exponent + exponent_field - 1 - format.mantissa_bits);
}

// Round to nearest even on the grid that the format has around `value`; infinity past the largest number.
double rounded_by_definition(const Format& format, double value) {
  if (value == 0 || std::isinf(value)) return value;
  const int exponent = std::max(std::ilogb(value), format.min_exponent);
  const double step = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double rounded = std::nearbyint(value / step) * step;
  return std::fabs(rounded) >= std::ldexp(1.0, format.max_exponent + 1) ? std::copysign(HUGE_VAL, value) : rounded;
}

bool same_float(double a, double b) { return a == b && std::signbit(a) == std::signbit(b); }

void check_rounding(float value) {
  ASSERT_TRUE(same_float(f16_to_f32(f32_to_f16(value)), rounded_by_definition(kF16, value))) << std::hexfloat << value;
  ASSERT_TRUE(same_float(bf16_to_f32(f32_to_bf16(value)), rounded_by_definition(kBf16, value)))
      << std::hexfloat << value;
}

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(dtype_size(DType::f32), 4u);
  EXPECT_EQ(dtype_size(DType::f16), 2u);
  EXPECT_EQ(dtype_size(DType::bf16), 2u);
  EXPECT_EQ(dtype_name(DType::f32), "F32");
  EXPECT_EQ(dtype_name(DType::f16), "F16");
  EXPECT_EQ(dtype_name(DType::bf16), "BF16");
}

TEST(DType, EveryHalfHasTheValueOfItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = f16_to_f32(half);
    const uint32_t magnitude = bits & 0x7FFF;
    if (magnitude > 0x7C00) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value)))) << bits;
      continue;
    }
    const double expected = magnitude == 0x7C00 ? HUGE_VAL : value_by_definition(kF16, magnitude);
    ASSERT_TRUE(same_float(value, (bits & 0x8000) != 0 ? -expected : expected)) << bits;
    ASSERT_EQ(f32_to_f16(value), half);
  }
}

TEST(DType, EveryBf16HasTheValueOfItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t bf16 = static_cast<uint16_t>(bits);
    const float value = bf16_to_f32(bf16);
    const uint32_t magnitude = bits & 0x7FFF;
    if (magnitude > 0x7F80) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value)))) << bits;
      continue;
    }
    const double expected = magnitude == 0x7F80 ? HUGE_VAL : value_by_definition(kBf16, magnitude);
    ASSERT_TRUE(same_float(value, (bits & 0x8000) != 0 ? -expected : expected)) << bits;
    ASSERT_EQ(f32_to_bf16(value), bf16);
  }
}

// Where rounding is decided: the middle between two neighbours and the floats on both sides of it.
TEST(DType, RoundsToNearestEvenAroundEveryMidpoint) {
  const auto check_around = [](float low, float high) {
    const float middle = static_cast<float>((static_cast<double>(low) + static_cast<double>(high)) / 2);
    for (const float value : {std::nextafter(middle, -kInfinity), middle, std::nextafter(middle, kInfinity)}) {
      check_rounding(value);
      check_rounding(-value);
    }
  };
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    check_around(f16_to_f32(static_cast<uint16_t>(bits)), f16_to_f32(static_cast<uint16_t>(bits + 1)));
  }
  for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    check_around(bf16_to_f32(static_cast<uint16_t>(bits)), bf16_to_f32(static_cast<uint16_t>(bits + 1)));
  }
}

TEST(DType, RoundsFloatsOfEveryMagnitude) {
  constexpr uint64_t kStride = 2'039;  // a prime: two million floats, every exponent, changing low bits
  for (uint64_t bits = 0; bits <= UINT32_MAX; bits += kStride) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value))));
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
    } else {
      check_rounding(value);
    }
  }
}

TEST(DType, OverflowIsInfinityAfterRounding) {
  EXPECT_EQ(f32_to_f16(65504.0f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(std::nextafter(65520.0f, 0.0f)), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_f16(-kInfinity), 0xFC00);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_EQ(f32_to_bf16(kInfinity), 0x7F80);
}

}  // namespace
}  // namespace tessera
