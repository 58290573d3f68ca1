// Inputs for numeric tests, the same on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tessera/core/dtype.h"

namespace tessera::test {

/// Integers from [-range, range]: their products and sums are exact in fp32 as long as they stay below 2^24.
inline std::vector<float> random_integers(size_t size, int range, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values(size);
  for (float& value : values) {
    value = static_cast<float>(static_cast<int64_t>(random() % static_cast<uint64_t>(2 * range + 1)) - range);
  }
  return values;
}

/// Roughly N(0, scale^2): the sum of four uniform numbers, with no library's distribution in between.
inline std::vector<float> random_normal(size_t size, float scale, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> values(size);
  for (float& value : values) {
    double sum = -2.0;
    for (int i = 0; i < 4; ++i) sum += static_cast<double>(random() >> 11) * 0x1p-53;
    value = static_cast<float>(sum * std::sqrt(3.0)) * scale;
  }
  return values;
}

inline float rounded(float value, DType operand) {
  return operand == DType::bf16 ? bf16_to_f32(f32_to_bf16(value)) : value;
}

/// The values as a product of that operand type sees them.
inline std::vector<float> rounded(std::vector<float> values, DType operand) {
  for (float& value : values) value = rounded(value, operand);
  return values;
}

}  // namespace tessera::test
