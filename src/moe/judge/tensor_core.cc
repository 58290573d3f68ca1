#include "moe/judge/tensor_core.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "moe/judge/tensor_core_number.h"
#include "tessera/core/check.h"

namespace tessera::moe {
namespace {

constexpr size_t kMaxProducts = 32;
constexpr int32_t kNoExponent = std::numeric_limits<int32_t>::min();

using Kind = NumberKind;

Number product(const Number& a, const Number& b) {
  Number p;
  p.negative = a.negative != b.negative;
  p.significand = a.significand * b.significand;
  p.scale = a.scale + b.scale;
  p.exponent = a.exponent + b.exponent;
  if (a.kind == Kind::not_a_number || b.kind == Kind::not_a_number) {
    p.kind = Kind::not_a_number;
  } else if (a.kind == Kind::infinite || b.kind == Kind::infinite) {
    const bool times_zero =
        a.kind == Kind::infinite ? b.kind == Kind::finite && b.significand == 0 : a.significand == 0;
    p.kind = times_zero ? Kind::not_a_number : Kind::infinite;
  }
  return p;
}

// In units of 2^(top - term_bits).
int64_t aligned(const TensorCoreRules& rules, const Number& term, int32_t top) {
  const int32_t shift = term.scale - (top - rules.term_bits);
  if (term.significand == 0 || shift < -63) return rules.floored && term.negative && term.significand != 0 ? -1 : 0;
  if (shift >= 0) {
    // A term's exponent is at most `top`, unless it was renormalised: then it still fits by far.
    const auto magnitude = static_cast<int64_t>(term.significand << shift);
    return term.negative ? -magnitude : magnitude;
  }
  const uint64_t kept = term.significand >> -shift;
  const bool up = rules.floored && term.negative && kept << -shift != term.significand;
  const auto magnitude = static_cast<int64_t>(kept + (up ? 1 : 0));
  return term.negative ? -magnitude : magnitude;
}

// sum * 2^unit, cut or rounded as the result.
float finished(const TensorCoreRules& rules, int64_t sum, int32_t unit, bool all_negative) {
  const bool signed_cut = rules.zero_sign != ZeroSign::positive;
  if (sum == 0) return all_negative && rules.zero_sign == ZeroSign::ieee ? -0.0f : 0.0f;
  const auto magnitude = static_cast<uint64_t>(std::abs(sum));
  const int32_t exponent = unit + static_cast<int32_t>(std::bit_width(magnitude)) - 1;
  const int32_t last = std::max(exponent - rules.result_bits, rules.least_bit);  // weight of the last bit kept
  uint64_t kept = magnitude;
  if (last > unit) {
    const int32_t drop = last - unit;
    kept = drop > 63 ? 0 : magnitude >> drop;
    if (rules.nearest && drop <= 63) {
      const uint64_t rest = magnitude - (kept << drop);
      const uint64_t half = uint64_t{1} << (drop - 1);
      if (rest > half || (rest == half && (kept & 1u) != 0)) ++kept;
    }
  }
  double value = std::ldexp(static_cast<double>(kept), std::max(last, unit));
  if (rules.flushes_results && value < 0x1p-126) value = 0.0;
  if (value >= 0x1p128) {
    value = rules.overflows_to_infinity ? std::numeric_limits<double>::infinity()
                                        : static_cast<double>(std::numeric_limits<float>::max());
  }
  if (value == 0.0 && !signed_cut) return 0.0f;
  return static_cast<float>(sum < 0 ? -value : value);
}

// The result of terms of which one at least is infinite or not a number.
float special_result(const TensorCoreRules& rules, std::span<const Number> terms) {
  bool plus = false, minus = false;
  for (const Number& term : terms) {
    if (term.kind == Kind::not_a_number) return std::bit_cast<float>(rules.nan_bits);
    if (term.kind == Kind::infinite) (term.negative ? minus : plus) = true;
  }
  if (plus && minus) return std::bit_cast<float>(rules.nan_bits);
  const float infinity = std::numeric_limits<float>::infinity();
  return minus ? -infinity : infinity;
}

double exact_value(const Number& number) {
  if (number.kind == Kind::not_a_number) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = number.kind == Kind::infinite
                               ? std::numeric_limits<double>::infinity()
                               : std::ldexp(static_cast<double>(number.significand), number.scale);
  return number.negative ? -magnitude : magnitude;
}

// The terms' way to the result; `step` may be null.
float summed(const TensorCoreRules& rules, std::span<const Number> terms, TensorCoreStep* step) {
  int32_t top = rules.least_top;
  bool all_negative = true, special = false;
  for (const Number& term : terms) {
    special = special || term.kind != Kind::finite;
    all_negative = all_negative && term.negative;
    const bool counts = term.significand != 0 || rules.zeros_count;
    if (counts) top = std::max(top, term.exponent);
    if (step != nullptr) step->terms.push_back({exact_value(term), counts ? term.exponent : kNoExponent, 0});
  }
  int64_t sum = 0;
  for (size_t i = 0; i < terms.size() && !special; ++i) {
    const int64_t part = aligned(rules, terms[i], top);
    if (step != nullptr) step->terms[i].aligned = part;
    sum += part;
  }
  const float result =
      special ? special_result(rules, terms) : finished(rules, sum, top - rules.term_bits, all_negative);
  if (step != nullptr) {
    step->top = top;
    step->sum = sum;
    step->special = special;
    step->result = result;
  }
  return result;
}

}  // namespace

std::string_view tensor_core_type_name(TensorCoreType type) {
  return type == TensorCoreType::bf16 ? "bf16" : type == TensorCoreType::f16 ? "f16" : "e4m3";
}

TensorCoreType tensor_core_type(DType dtype) {
  TESSERA_CHECK(dtype != DType::f32, dtype_name(dtype));
  return dtype == DType::bf16 ? TensorCoreType::bf16 : TensorCoreType::f16;
}

TensorCoreRules tensor_core_rules(TensorCoreType type) {
  TensorCoreRules rules;
  if (type == TensorCoreType::f16) {
    rules.exponent_bits = 5;
    rules.fraction_bits = 10;
  } else if (type == TensorCoreType::e4m3) {
    rules.exponent_bits = 4;
    rules.fraction_bits = 3;
    rules.has_infinity = false;
    rules.num_products = 32;
    rules.term_bits = 13;
    rules.result_bits = 13;
  }
  return rules;
}

double operand_value(const TensorCoreRules& rules, uint16_t bits) { return exact_value(operand_number(rules, bits)); }

uint16_t nearest_operand(TensorCoreType type, double value) {
  if (type == TensorCoreType::bf16) return f32_to_bf16(static_cast<float>(value));
  const uint16_t half = f32_to_f16(static_cast<float>(value));
  if (type == TensorCoreType::f16) return half;
  // e4m3: the magnitudes are in the order of their patterns.
  static const std::array<double, 0x7F> kValues = [] {
    std::array<double, 0x7F> values{};
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = operand_value(tensor_core_rules(TensorCoreType::e4m3), static_cast<uint16_t>(i));
    return values;
  }();
  if (std::isnan(value)) return 0x7F;
  const double magnitude = std::fabs(value);
  const auto above = std::lower_bound(kValues.begin(), kValues.end(), magnitude);
  auto index = static_cast<size_t>(above - kValues.begin());
  if (index == kValues.size()) index = kValues.size() - 1;
  if (index > 0) {
    const double up = kValues[index] - magnitude, down = magnitude - kValues[index - 1];
    if (down < up || (down == up && index % 2 == 1)) --index;
  }
  return static_cast<uint16_t>(index | (std::signbit(value) ? 0x80u : 0u));
}

float multiply_add(const TensorCoreRules& rules, std::span<const uint16_t> a, std::span<const uint16_t> b, float c,
                   TensorCoreStep* step) {
  TESSERA_CHECK(a.size() == static_cast<size_t>(rules.num_products) && b.size() == a.size(), a.size(), b.size());
  TESSERA_CHECK(a.size() <= kMaxProducts, a.size());
  std::array<Number, kMaxProducts + 1> terms;
  for (size_t i = 0; i < a.size(); ++i) terms[i] = product(operand_number(rules, a[i]), operand_number(rules, b[i]));
  terms[a.size()] = taken_apart(std::bit_cast<uint32_t>(c), 8, 23, true, rules.sum_renormalised);
  if (step != nullptr) *step = {};
  return summed(rules, std::span(terms).first(a.size() + 1), step);
}

}  // namespace tessera::moe
