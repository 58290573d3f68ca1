// A bit pattern taken apart, as the tensor core model counts with it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "moe/judge/tensor_core.h"

namespace tessera::moe {

enum class NumberKind : uint8_t { finite, infinite, not_a_number };

// (-1)^negative * significand * 2^scale; `exponent` is what it counts with.
struct Number {
  NumberKind kind = NumberKind::finite;
  bool negative = false;
  uint64_t significand = 0;
  int32_t scale = 0;
  int32_t exponent = 0;
};

inline Number taken_apart(uint32_t bits, int32_t exponent_bits, int32_t fraction_bits, bool has_infinity,
                          bool renormalised) {
  const uint32_t ones = (1u << exponent_bits) - 1;
  const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
  const uint32_t exponent = (bits >> fraction_bits) & ones;
  const int32_t bias = static_cast<int32_t>(ones >> 1);
  Number number;
  number.negative = (bits >> (exponent_bits + fraction_bits) & 1u) != 0;
  if (exponent == ones) {
    if (has_infinity)
      number.kind = fraction == 0 ? NumberKind::infinite : NumberKind::not_a_number;
    else if (fraction == (1u << fraction_bits) - 1)
      number.kind = NumberKind::not_a_number;
  }
  number.significand = exponent == 0 ? fraction : fraction | 1u << fraction_bits;
  number.exponent = static_cast<int32_t>(std::max(exponent, 1u)) - bias;
  number.scale = number.exponent - fraction_bits;
  if (renormalised && number.significand != 0)
    number.exponent = number.scale + static_cast<int32_t>(std::bit_width(number.significand)) - 1;
  return number;
}

inline Number operand_number(const TensorCoreRules& rules, uint16_t bits) {
  return taken_apart(bits, rules.exponent_bits, rules.fraction_bits, rules.has_infinity, rules.operands_renormalised);
}

}  // namespace tessera::moe
