#include "gpu/probe/operand_classes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>

namespace tessera::testing {
namespace {

using moe::TensorCoreType;

struct Format {
  int exponent_bits, fraction_bits, least, largest;  // exponents of normal numbers
  uint16_t largest_finite;
};

Format format_of(TensorCoreType type) {
  if (type == TensorCoreType::bf16) return {8, 7, -126, 127, 0x7F7F};
  if (type == TensorCoreType::f16) return {5, 10, -14, 15, 0x7BFF};
  return {4, 3, -6, 8, 0x7E};
}

// Draws numbers without any library's distribution, whose results differ from library to library.
class Draw {
 public:
  explicit Draw(uint32_t seed) : random_(seed) {}
  uint32_t bits() { return static_cast<uint32_t>(random_()); }
  int below(int end) { return static_cast<int>(bits() % static_cast<uint32_t>(end)); }
  int between(int first, int last) { return first + below(last - first + 1); }
  bool one_in(int n) { return below(n) == 0; }
  double uniform() { return static_cast<double>(bits()) * 0x1p-32; }
  double normal() {  // the sum of twelve uniform numbers
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  uint16_t finite(TensorCoreType type) {  // any finite pattern
    const Format format = format_of(type);
    const auto magnitude = static_cast<uint16_t>(bits() % (uint32_t{format.largest_finite} + 1u));
    return signed_pattern(type, magnitude);
  }
  uint16_t signed_pattern(TensorCoreType type, uint16_t magnitude) {
    const Format format = format_of(type);
    const int sign = format.exponent_bits + format.fraction_bits;
    return static_cast<uint16_t>(magnitude | (bits() & 1u) << sign);
  }
  // A normal number with this exponent, any fraction, any sign.
  uint16_t with_exponent(TensorCoreType type, int exponent) {
    const Format format = format_of(type);
    const int field = std::clamp(exponent, format.least, format.largest) - format.least + 1;
    const uint32_t fraction = bits() & ((1u << format.fraction_bits) - 1u);
    const auto magnitude = static_cast<uint16_t>(static_cast<uint32_t>(field) << format.fraction_bits | fraction);
    return signed_pattern(type, std::min(magnitude, format.largest_finite));
  }

 private:
  std::mt19937 random_;
};

template <class Element>
ProbeOperands filled(int rows, int64_t depth, Draw& draw, const Element& element) {
  ProbeOperands operands;
  for (auto* values : {&operands.a, &operands.b}) {
    values->resize(static_cast<size_t>(rows * depth));
    const bool second = values == &operands.b;
    for (uint16_t& value : *values) value = element(draw, second);
  }
  return operands;
}

template <class Value>
void give_start(ProbeOperands& operands, int rows, Draw& draw, const Value& value) {
  operands.start.resize(static_cast<size_t>(rows) * static_cast<size_t>(rows));
  for (float& c : operands.start) c = value(draw);
}

double scale_of(TensorCoreType type) { return type == TensorCoreType::e4m3 ? 64.0 : 1.0; }

ProbeOperands normal(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  return filled(rows, depth, draw,
                [&](Draw& d, bool) { return moe::nearest_operand(type, d.normal() * scale_of(type)); });
}

ProbeOperands same_sign(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  return filled(rows, depth, draw,
                [&](Draw& d, bool) { return moe::nearest_operand(type, std::fabs(d.normal()) * scale_of(type)); });
}

ProbeOperands wide(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const Format format = format_of(type);
  const int low = std::max(format.least, -30), high = std::min(format.largest, 30);
  return filled(rows, depth, draw, [&](Draw& d, bool) { return d.with_exponent(type, d.between(low, high)); });
}

ProbeOperands given_sums(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  ProbeOperands operands =
      filled(rows, depth, draw, [&](Draw& d, bool) { return moe::nearest_operand(type, d.normal() * scale_of(type)); });
  give_start(operands, rows, draw,
             [](Draw& d) { return static_cast<float>(std::ldexp(d.normal(), d.between(-30, 34))); });
  return operands;
}

ProbeOperands subnormal_operands(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const Format format = format_of(type);
  // bf16: the other factor is large, so that the sums are normal numbers of fp32.
  const int partner = type == TensorCoreType::bf16 ? 100 : 0;
  return filled(rows, depth, draw, [&](Draw& d, bool second) {
    const int kind = d.below(8);
    if (kind == 0) return d.with_exponent(type, format.least + d.below(3));
    if (kind == 1 && second) return d.with_exponent(type, partner + d.between(-3, 3));
    if (kind < 5 && second && type == TensorCoreType::bf16) return d.with_exponent(type, partner + d.between(-8, 2));
    return d.signed_pattern(type, static_cast<uint16_t>(d.bits() & ((1u << format.fraction_bits) - 1u)));
  });
}

// Sums around the least normal number of fp32: products of bf16 reach there, the others by the sum they start from.
ProbeOperands subnormal_sums(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  ProbeOperands operands = filled(rows, depth, draw, [&](Draw& d, bool) {
    if (type == TensorCoreType::bf16) return d.with_exponent(type, d.between(-78, -60));
    return d.signed_pattern(type, 0);
  });
  give_start(operands, rows, draw, [](Draw& d) {
    const uint32_t magnitude = d.one_in(2) ? d.bits() & 0x7FFFFFu : d.bits() & 0x1FFFFFFu;
    return std::bit_cast<float>((d.bits() & 0x80000000u) | magnitude >> d.below(24));
  });
  return operands;
}

// What is left of bf16 products below the last bit of a subnormal number, in either sign.
ProbeOperands underflow(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  return filled(rows, depth, draw, [&](Draw& d, bool) {
    if (type == TensorCoreType::bf16) return d.one_in(3) ? d.with_exponent(type, d.between(-80, -70)) : uint16_t{0};
    const Format format = format_of(type);
    return d.one_in(2) ? d.signed_pattern(type, 0)
                       : d.signed_pattern(type, static_cast<uint16_t>(d.bits() & ((2u << format.fraction_bits) - 1u)));
  });
}

// Every product down there: which bits of each are kept decides the sum. Only bf16 comes so low.
ProbeOperands far_underflow(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  return filled(rows, depth, draw, [&](Draw& d, bool) {
    if (type == TensorCoreType::bf16) return d.with_exponent(type, d.between(-83, -71));
    return d.signed_pattern(type, static_cast<uint16_t>(d.bits() & ((1u << format_of(type).fraction_bits) - 1u)));
  });
}

ProbeOperands zeros(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const uint16_t one = moe::nearest_operand(type, 1.0);
  // Whole rows of one sign: sums of negative zeros alone.
  ProbeOperands operands = filled(rows, depth, draw, [&](Draw& d, bool) {
    return d.one_in(24) ? d.signed_pattern(type, one) : d.signed_pattern(type, 0);
  });
  const Format format = format_of(type);
  const auto minus = static_cast<uint16_t>(1u << (format.exponent_bits + format.fraction_bits));
  for (int64_t row = 0; row < rows; row += 2) {
    for (int64_t k = 0; k < depth; ++k) {
      operands.a[static_cast<size_t>(row * depth + k)] = row % 4 == 0 ? minus : uint16_t{0};
      operands.b[static_cast<size_t>(row * depth + k)] = row % 8 == 0 ? one : uint16_t{0};
    }
  }
  give_start(operands, rows, draw, [](Draw& d) {
    constexpr float kStarts[] = {0.0f, -0.0f, -0.0f, 0x1p-149f, -0x1p-149f, -1.0f};
    return kStarts[d.below(6)];
  });
  return operands;
}

// Zeros beside large factors: if zero products counted, the small ones beside them would be cut away.
ProbeOperands zeros_beside_large(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const Format format = format_of(type);
  const int small = std::max(format.least, -20);
  ProbeOperands operands;
  for (auto* values : {&operands.a, &operands.b}) {
    for (int64_t i = 0; i < rows * depth; ++i) {
      const bool has_zeros = i % 2 == (values == &operands.a ? 0 : 1);
      const bool beside = i % 16 < 4;  // of K: a zero here, a large factor there
      const uint16_t zero = draw.signed_pattern(type, 0);
      const uint16_t number = draw.with_exponent(type, beside ? format.largest - 1 : small + draw.below(4));
      values->push_back(beside && has_zeros ? zero : number);
    }
  }
  give_start(operands, rows, draw, [&](Draw& d) { return static_cast<float>(std::ldexp(d.normal(), 2 * small)); });
  return operands;
}

// Products that cancel in pairs, and small ones that remain.
ProbeOperands cancellation(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const Format format = format_of(type);
  const auto sign = static_cast<uint16_t>(1u << (format.exponent_bits + format.fraction_bits));
  const int spread = type == TensorCoreType::e4m3 ? 3 : 6;
  ProbeOperands operands;
  operands.a.resize(static_cast<size_t>(rows * depth));
  operands.b.resize(operands.a.size());
  std::vector<size_t> order(static_cast<size_t>(depth));  // pairs are neighbours in this order, the same in every row
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t begin = 0; begin < order.size(); begin += 16) {
    for (size_t i = 15; i > 0; --i)
      std::swap(order[begin + i], order[begin + static_cast<size_t>(draw.below(static_cast<int>(i) + 1))]);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < order.size(); i += 2) {
      const size_t first = static_cast<size_t>(row * depth) + order[i];
      const size_t second = static_cast<size_t>(row * depth) + order[i + 1];
      const bool remains = i % 16 == 14;
      operands.a[first] = draw.with_exponent(type, remains ? -spread : draw.between(0, spread));
      operands.a[second] = remains ? draw.with_exponent(type, -spread) : operands.a[first];
      operands.b[first] = draw.with_exponent(type, remains ? -spread : draw.between(0, spread));
      operands.b[second] =
          remains ? draw.with_exponent(type, -spread) : static_cast<uint16_t>(operands.b[first] ^ sign);
    }
  }
  return operands;
}

ProbeOperands overflow(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const Format format = format_of(type);
  ProbeOperands operands = filled(rows, depth, draw, [&](Draw& d, bool second) {
    if (type == TensorCoreType::bf16) return d.with_exponent(type, second ? d.between(50, 64) : d.between(50, 62));
    return d.with_exponent(type, format.largest - d.below(2));
  });
  give_start(operands, rows, draw, [](Draw& d) {
    const uint32_t magnitude = 0x7F7FFFFFu - (d.one_in(3) ? static_cast<uint32_t>(d.below(4)) : d.bits() % 0x1000000u);
    return std::bit_cast<float>((d.bits() & 0x80000000u) | magnitude);
  });
  return operands;
}

ProbeOperands infinities_and_nans(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const bool has_infinity = type != TensorCoreType::e4m3;
  const uint16_t infinity = type == TensorCoreType::bf16 ? 0x7F80 : 0x7C00;
  ProbeOperands operands = filled(rows, depth, draw, [&](Draw& d, bool) {
    if (!d.one_in(60)) return d.one_in(40) ? d.signed_pattern(type, 0) : moe::nearest_operand(type, d.normal());
    if (!has_infinity) return d.signed_pattern(type, 0x7F);
    const auto payload =
        static_cast<uint16_t>(d.one_in(3) ? 1u + d.bits() % (type == TensorCoreType::bf16 ? 0x7Fu : 0x3FFu) : 0u);
    return d.signed_pattern(type, static_cast<uint16_t>(infinity | payload));
  });
  give_start(operands, rows, draw, [](Draw& d) {
    if (!d.one_in(8)) return static_cast<float>(d.normal());
    return std::bit_cast<float>((d.bits() & 0x80000000u) | 0x7F800000u | (d.one_in(3) ? d.bits() & 0x7FFFFFu : 0u));
  });
  return operands;
}

ProbeOperands finite_patterns(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  ProbeOperands operands = filled(rows, depth, draw, [&](Draw& d, bool) { return d.finite(type); });
  give_start(operands, rows, draw, [](Draw& d) {
    const uint32_t bits = d.bits();
    return std::bit_cast<float>((bits & 0x7F800000u) == 0x7F800000u ? bits ^ 0x40000000u : bits);
  });
  return operands;
}

ProbeOperands any_patterns(TensorCoreType type, int rows, int64_t depth, uint32_t seed) {
  Draw draw(seed);
  const uint32_t mask = type == TensorCoreType::e4m3 ? 0xFFu : 0xFFFFu;
  ProbeOperands operands =
      filled(rows, depth, draw, [&](Draw& d, bool) { return static_cast<uint16_t>(d.bits() & mask); });
  give_start(operands, rows, draw, [](Draw& d) { return std::bit_cast<float>(d.bits()); });
  return operands;
}

}  // namespace

const std::vector<OperandClass>& operand_classes() {
  static const std::vector<OperandClass> kClasses = {
      {"normal", "the usual", {1, 4, 32, 128, 448}, normal},
      {"one sign", "sums that grow with K", {1, 4, 32, 128, 448}, same_sign},
      {"wide exponents", "terms cut away", {1, 4, 32, 128, 448}, wide},
      {"cancellation", "the last bits kept", {1, 4, 32, 128, 448}, cancellation},
      {"given sums", "C of any size", {1, 4, 32}, given_sums},
      {"subnormal operands", "which exponent they count with", {1, 4, 32}, subnormal_operands},
      {"subnormal sums", "C and D below 2^-126", {1, 4}, subnormal_sums},
      {"underflow", "signs of what is cut to zero", {1, 4}, underflow},
      {"far underflow", "which bits are kept there", {1, 4}, far_underflow},
      {"zeros", "signs of zero", {1, 4}, zeros},
      {"zeros beside large", "whether zero products count", {1, 4, 32}, zeros_beside_large},
      {"overflow", "infinity or the largest number", {1, 4}, overflow},
      {"infinities and NaN", "which win, and NaN's bits", {1, 4}, infinities_and_nans},
      {"finite patterns", "any finite bits", {1, 2}, finite_patterns},
      {"any patterns", "any bits at all", {1, 2}, any_patterns},
  };
  return kClasses;
}

}  // namespace tessera::testing
