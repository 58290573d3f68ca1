// The tensor core model: sums done by hand, exact arithmetic where nothing is cut, the vectors against the definition.
#include "moe/judge/tensor_core.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

namespace tessera::testing {
namespace {

using moe::multiply_add;
using moe::TensorCoreRules;
using moe::TensorCoreStep;
using moe::TensorCoreType;

constexpr TensorCoreType kTypes[] = {TensorCoreType::bf16, TensorCoreType::f16, TensorCoreType::e4m3};

// The pattern of a value that the type has.
uint16_t pattern(TensorCoreType type, double value) {
  const TensorCoreRules rules = moe::tensor_core_rules(type);
  const uint32_t count = 1u << (1 + rules.exponent_bits + rules.fraction_bits);
  for (uint32_t bits = 0; bits < count; ++bits) {
    if (moe::operand_value(rules, static_cast<uint16_t>(bits)) == value) return static_cast<uint16_t>(bits);
  }
  ADD_FAILURE() << value << " is no " << moe::tensor_core_type_name(type);
  return 0;
}

// One instruction on the products given as pairs; the other products are zero.
struct Instruction {
  TensorCoreType type;
  TensorCoreRules rules = moe::tensor_core_rules(type);
  std::vector<uint16_t> a = std::vector<uint16_t>(static_cast<size_t>(rules.num_products));
  std::vector<uint16_t> b = a;

  Instruction(TensorCoreType kind, const std::vector<std::pair<double, double>>& factors) : type(kind) {
    for (size_t i = 0; i < factors.size(); ++i) {
      a[i] = pattern(kind, factors[i].first);
      b[i] = pattern(kind, factors[i].second);
    }
  }
  float result(float c = 0.0f, TensorCoreStep* step = nullptr) const { return multiply_add(rules, a, b, c, step); }
};

uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }

TEST(TensorCore, OperandValues) {
  const auto value = [](TensorCoreType type, uint16_t bits) {
    return moe::operand_value(moe::tensor_core_rules(type), bits);
  };
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto pattern16 = static_cast<uint16_t>(bits);
    const double as_bf16 = bf16_to_f32(pattern16), as_f16 = f16_to_f32(pattern16);
    const auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
    EXPECT_TRUE(same(value(TensorCoreType::bf16, pattern16), as_bf16)) << bits;
    EXPECT_TRUE(same(value(TensorCoreType::f16, pattern16), as_f16)) << bits;
  }
  EXPECT_EQ(value(TensorCoreType::e4m3, 0x7E), 448.0);
  EXPECT_EQ(value(TensorCoreType::e4m3, 0x01), 0x1p-9);
  EXPECT_EQ(value(TensorCoreType::e4m3, 0xB8), -1.0);
  EXPECT_TRUE(std::isnan(value(TensorCoreType::e4m3, 0x7F)));
  EXPECT_TRUE(std::isnan(value(TensorCoreType::e4m3, 0xFF)));
}

TEST(TensorCore, ATermKeeps25BitsBelowTheLargestExponent) {
  // Cancellation shows the last bits: 2^d - 2^d + 2^-e.
  const auto left = [](int d, double small) {
    return Instruction(TensorCoreType::bf16, {{std::ldexp(1.0, d), 1.0}, {std::ldexp(-1.0, d), 1.0}, {small, 1.0}})
        .result();
  };
  EXPECT_EQ(left(20, 0x1p-5), 0x1p-5f);
  EXPECT_EQ(left(20, 0x1p-6), 0.0f);
  EXPECT_EQ(left(20, 0x1.8p-5), 0x1p-5f);    // cut, not rounded
  EXPECT_EQ(left(20, -0x1.8p-5), -0x1p-5f);  // toward zero
  // The exponent of 1.5 * 1.5 is 0, so it is not the 2.25 that decides what is kept.
  const Instruction wide(TensorCoreType::bf16, {{1.5, 1.5}, {-1.5, 1.5}, {0x1p-25, 1.0}});
  EXPECT_EQ(wide.result(), 0x1p-25f);
  const Instruction normal(TensorCoreType::bf16, {{2.25, 1.0}, {-2.25, 1.0}, {0x1p-25, 1.0}});
  EXPECT_EQ(normal.result(), 0.0f);
}

TEST(TensorCore, TheSumIsCutToFp32) {
  const Instruction up(TensorCoreType::f16, {{0x1p-12, 0x1.8p-11}});  // 1.5 units in the last place of 1
  EXPECT_EQ(up.result(1.0f), 1.0f + 0x1p-23f);
  EXPECT_EQ(up.result(-1.0f), -1.0f + 0x1.8p-23f);  // a number of fp32: below 1 they are twice as dense
  const Instruction down(TensorCoreType::f16, {{-0x1p-12, 0x1p-13}});
  EXPECT_EQ(down.result(1.0f), 1.0f - 0x1p-24f);  // -2^-25 is kept with the terms, then cut
}

TEST(TensorCore, CCountsWithItsExponentAndZeroesDoNot) {
  const Instruction small(TensorCoreType::bf16, {{0x1p-13, 0x1p-13}, {0.0, 0x1p100}});
  EXPECT_EQ(small.result(), 0x1p-26f);
  EXPECT_EQ(small.result(1.0f), 1.0f);
  EXPECT_EQ(Instruction(TensorCoreType::bf16, {{1.0, 1.0}}).result(0x1p-26f), 1.0f);
}

TEST(TensorCore, E4m3Keeps13Bits) {
  EXPECT_EQ(Instruction(TensorCoreType::e4m3, {{1.0, 1.0}, {0x1p-7, 0x1p-6}}).result(), 1.0f + 0x1p-13f);
  EXPECT_EQ(Instruction(TensorCoreType::e4m3, {{1.0, 1.0}, {0x1p-7, 0x1p-7}}).result(), 1.0f);
  // 31 products of 2^-14 beside 1 are all lost, each by itself.
  std::vector<std::pair<double, double>> many(32, {0x1p-7, 0x1p-7});
  many[0] = {1.0, 1.0};
  EXPECT_EQ(Instruction(TensorCoreType::e4m3, many).result(), 1.0f);
  EXPECT_EQ(Instruction(TensorCoreType::e4m3, {}).result(1.0f + 0x1p-20f), 1.0f);  // C is cut too
}

TEST(TensorCore, SpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const TensorCoreType type : {TensorCoreType::bf16, TensorCoreType::f16}) {
    Instruction i(type, {{1.0, 2.0}, {-3.0, 1.0}});
    const uint16_t inf = pattern(type, infinity);
    i.a[2] = inf;
    EXPECT_EQ(bits_of(i.result()), 0x7FFFFFFFu);  // infinity times zero
    i.b[2] = pattern(type, -1.0);
    EXPECT_EQ(i.result(), -infinity);
    EXPECT_EQ(bits_of(i.result(infinity)), 0x7FFFFFFFu);
    EXPECT_EQ(i.result(-infinity), -infinity);
    i.a[3] = static_cast<uint16_t>(inf | 1u);
    EXPECT_EQ(bits_of(i.result()), 0x7FFFFFFFu);
  }
  const Instruction large(TensorCoreType::bf16, {{0x1p127, 0x1p1}});
  EXPECT_EQ(large.result(), infinity);
  const Instruction twice(TensorCoreType::bf16, {{0x1p127, 1.0}, {0x1p127, 1.0}});
  EXPECT_EQ(twice.result(), infinity);  // only the sum is too large
  const Instruction cancels(TensorCoreType::bf16, {{0x1p127, 0x1p100}, {-0x1p127, 0x1p100}});
  EXPECT_EQ(bits_of(cancels.result()), 0u);
}

TEST(TensorCore, SubnormalOperandsAndResults) {
  EXPECT_EQ(Instruction(TensorCoreType::f16, {{0x1p-24, 0x1p-14}}).result(), 0x1p-38f);
  // 2^-24 of fp16 counts with the exponent -14, so its square with -28: 2^-53 is the last bit kept, also of C.
  EXPECT_EQ(Instruction(TensorCoreType::f16, {{0x1p-24, 0x1p-24}}).result(0x1p-53f), 0x1p-48f + 0x1p-53f);
  EXPECT_EQ(Instruction(TensorCoreType::f16, {{0x1p-24, 0x1p-24}}).result(0x1p-54f), 0x1p-48f);
  EXPECT_EQ(Instruction(TensorCoreType::bf16, {{0x1p-126, 0x1p-23}}).result(), 0x1p-149f);
  EXPECT_EQ(Instruction(TensorCoreType::bf16, {{0x1p-126, 0x1.8p-23}}).result(), 0x1p-149f);
  EXPECT_EQ(Instruction(TensorCoreType::bf16, {{0x1p-126, 0x1.8p-24}}).result(), 0.0f);
  EXPECT_EQ(Instruction(TensorCoreType::bf16, {{0x1p-126, 0x1p-20}}).result(0x1p-149f), 0x1p-146f + 0x1p-149f);
}

// Products far below the least subnormal number of fp32: 2^-158 is the last bit of a term that is kept.
TEST(TensorCore, TermsAreAlignedTo2ToTheMinus133AtLeast) {
  // 510 units of 2^-158, two fewer than 2^-149 has, and four small terms.
  const auto with_four = [](double sign, double small) {
    std::vector<std::pair<double, double>> factors(5, {0x1p-80, sign * small});
    factors[0] = {0x1p-80, sign * 0x1.FEp-70};
    return Instruction(TensorCoreType::bf16, factors);
  };
  EXPECT_EQ(with_four(1.0, 0x1p-78).result(), 0x1p-149f);  // a unit each
  EXPECT_EQ(with_four(-1.0, 0x1p-78).result(), -0x1p-149f);
  TensorCoreStep step;
  EXPECT_EQ(bits_of(with_four(1.0, 0x1.8p-79).result(0.0f, &step)), 0u);  // three quarters each, all lost
  EXPECT_EQ(step.top, -133);
  EXPECT_EQ(step.terms[0].aligned, 510);
  EXPECT_EQ(step.terms[1].aligned, 0);
  EXPECT_EQ(step.sum, 510);
  EXPECT_EQ(bits_of(with_four(-1.0, 0x1.8p-79).result(0.0f, &step)), 0u);  // +0, though the sum is negative
  EXPECT_EQ(step.sum, -510);
  // A C that is not zero counts with -126 at least.
  EXPECT_EQ(with_four(1.0, 0x1p-78).result(0x1p-149f, &step), 0x1p-149f);
  EXPECT_EQ(step.top, -126);
}

// Where nothing is cut the result is the sum: integers small enough.
TEST(TensorCore, ExactWhereNothingIsCut) {
  std::mt19937 random(3);
  for (const TensorCoreType type : kTypes) {
    const TensorCoreRules rules = moe::tensor_core_rules(type);
    for (int round = 0; round < 2000; ++round) {
      std::vector<uint16_t> a(static_cast<size_t>(rules.num_products)), b = a;
      const int range = type == TensorCoreType::e4m3 ? 3 : 60;
      double expected = static_cast<int>(random() % 101) - 50;
      const auto c = static_cast<float>(expected);
      for (size_t i = 0; i < a.size(); ++i) {
        const auto draw = [&] { return static_cast<double>(static_cast<int>(random() % (2u * range + 1)) - range); };
        const double left = draw(), right = draw();
        a[i] =
            type == TensorCoreType::bf16 ? f32_to_bf16(static_cast<float>(left)) : f32_to_f16(static_cast<float>(left));
        b[i] = type == TensorCoreType::bf16 ? f32_to_bf16(static_cast<float>(right))
                                            : f32_to_f16(static_cast<float>(right));
        if (type == TensorCoreType::e4m3) {  // 0 to 3 in either sign
          constexpr uint16_t kDigits[] = {0x00, 0x38, 0x40, 0x44};
          a[i] = static_cast<uint16_t>(kDigits[static_cast<int>(std::fabs(left))] | (left < 0 ? 0x80 : 0));
          b[i] = static_cast<uint16_t>(kDigits[static_cast<int>(std::fabs(right))] | (right < 0 ? 0x80 : 0));
        }
        expected += left * right;
      }
      ASSERT_EQ(multiply_add(rules, a, b, c), expected);
    }
  }
}

// Random patterns with every kind of number, and their bits.
struct Matrices {
  TensorCoreType type;
  int64_t rows, columns, depth;
  std::vector<uint16_t> a, b;
  std::vector<uint8_t> a_bytes, b_bytes;
  std::vector<float> start;

  Matrices(TensorCoreType kind, int64_t m, int64_t n, int64_t k, int spread, uint32_t seed)
      : type(kind), rows(m), columns(n), depth(k) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (auto* values : {&a, &b}) {
      for (int64_t i = 0; i < (values == &a ? m : n) * k; ++i) {
        const float value =
            std::ldexp(normal(random), spread == 0 ? 0 : static_cast<int>(random() % spread) - spread / 2);
        uint16_t bits = kind == TensorCoreType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
        if (kind == TensorCoreType::e4m3) bits = static_cast<uint16_t>(random() % 0x7Fu | (random() % 2) << 7);
        if (spread < 0) bits = static_cast<uint16_t>(kind == TensorCoreType::e4m3 ? random() % 256 : random());
        if (random() % 9 == 0) bits = 0;
        values->push_back(bits);
      }
    }
    a_bytes.assign(a.begin(), a.end());
    b_bytes.assign(b.begin(), b.end());
    for (int64_t i = 0; i < m * n; ++i)
      start.push_back(i % 7 == 0 ? std::bit_cast<float>(static_cast<uint32_t>(random())) : normal(random));
  }
  moe::OperandRows left() const {
    return {type == TensorCoreType::e4m3 ? static_cast<const void*>(a_bytes.data()) : a.data(), rows, depth, nullptr};
  }
  moe::OperandRows right() const {
    return {type == TensorCoreType::e4m3 ? static_cast<const void*>(b_bytes.data()) : b.data(), columns, depth,
            nullptr};
  }
  std::vector<float> in_vectors(const TensorCoreRules& rules, bool accumulate) const {
    std::vector<float> out = start;
    moe::products(rules, left(), right(), depth, out.data(), columns, accumulate);
    return out;
  }
  float by_definition(const TensorCoreRules& rules, int64_t i, int64_t j, bool accumulate) const {
    float c = accumulate ? start[static_cast<size_t>(i * columns + j)] : 0.0f;
    const auto count = static_cast<size_t>(rules.num_products);
    for (int64_t k = 0; k < depth; k += rules.num_products) {
      std::vector<uint16_t> x(count), y(count);
      for (int64_t q = 0; q < std::min<int64_t>(rules.num_products, depth - k); ++q) {
        x[static_cast<size_t>(q)] = a[static_cast<size_t>(i * depth + k + q)];
        y[static_cast<size_t>(q)] = b[static_cast<size_t>(j * depth + k + q)];
      }
      c = multiply_add(rules, x, y, c);
    }
    return c;
  }
};

size_t num_different(const std::vector<float>& x, const std::vector<float>& y) {
  size_t different = 0;
  for (size_t i = 0; i < x.size(); ++i) different += bits_of(x[i]) != bits_of(y[i]) ? 1u : 0u;
  return different;
}

TEST(TensorCore, VectorsEqualTheDefinition) {
  for (const TensorCoreType type : kTypes) {
    for (const int spread : {0, 12, 60, 250, -1}) {
      for (const int64_t depth : {8, 16, 40, 136}) {
        const Matrices m(type, 9, 37, depth, spread, static_cast<uint32_t>(depth + spread + 2));
        for (const bool zeros_count : {false, true}) {
          for (const bool accumulate : {false, true}) {
            TensorCoreRules rules = moe::tensor_core_rules(type);
            rules.zeros_count = zeros_count;
            const std::vector<float> got = m.in_vectors(rules, accumulate);
            for (int64_t i = 0; i < m.rows; ++i) {
              for (int64_t j = 0; j < m.columns; ++j) {
                ASSERT_EQ(bits_of(got[static_cast<size_t>(i * m.columns + j)]),
                          bits_of(m.by_definition(rules, i, j, accumulate)))
                    << moe::tensor_core_type_name(type) << " spread " << spread << " depth " << depth << " at " << i
                    << ", " << j;
              }
            }
          }
        }
      }
    }
  }
}

TEST(TensorCore, NumberedRowsAreThoseRows) {
  const Matrices m(TensorCoreType::bf16, 6, 20, 48, 4, 5);
  const TensorCoreRules rules = moe::tensor_core_rules(m.type);
  const std::vector<float> all = m.in_vectors(rules, false);
  const int32_t chosen[] = {5, 0, 0, 3};
  moe::OperandRows rows = m.left();
  rows.num_rows = 4;
  rows.numbers = chosen;
  std::vector<float> out(4 * 20);
  moe::products(rules, rows, m.right(), m.depth, out.data(), 20);
  for (size_t i = 0; i < 4; ++i) {
    for (size_t j = 0; j < 20; ++j)
      ASSERT_EQ(bits_of(out[i * 20 + j]), bits_of(all[static_cast<size_t>(chosen[i]) * 20 + j]));
  }
}

// What must show: each of these is another arithmetic, and a comparison of bits sees it.
TEST(TensorCore, OtherArithmeticsShow) {
  for (const TensorCoreType type : kTypes) {
    const Matrices m(type, 8, 64, 512, type == TensorCoreType::e4m3 ? 0 : 6, 11);
    const TensorCoreRules rules = moe::tensor_core_rules(type);
    const std::vector<float> right = m.in_vectors(rules, false);
    const auto differs = [&](auto change) {
      TensorCoreRules other = rules;
      change(other);
      return num_different(m.in_vectors(other, false), right);
    };
    EXPECT_GT(differs([](TensorCoreRules& r) { --r.term_bits; }), 20u);
    EXPECT_GT(differs([](TensorCoreRules& r) { ++r.term_bits; }), 20u);
    EXPECT_GT(differs([](TensorCoreRules& r) { r.nearest = true; }), 100u);
    EXPECT_GT(differs([](TensorCoreRules& r) { r.floored = true; }), 100u);
    EXPECT_GT(differs([](TensorCoreRules& r) { r.num_products /= 2; }), 100u);
    Matrices swapped = m;  // two instructions' worth of K change places
    for (auto* values : {&swapped.a, &swapped.b}) {
      for (size_t row = 0; row < values->size(); row += 512)
        std::swap_ranges(values->begin() + static_cast<ptrdiff_t>(row),
                         values->begin() + static_cast<ptrdiff_t>(row) + 32,
                         values->begin() + static_cast<ptrdiff_t>(row) + 256);
    }
    swapped.a_bytes.assign(swapped.a.begin(), swapped.a.end());
    swapped.b_bytes.assign(swapped.b.begin(), swapped.b.end());
    EXPECT_GT(num_different(swapped.in_vectors(rules, false), right), 20u);
  }
}

// How terms far below every subnormal number are aligned, and the sign of what is cut to zero: only bf16 has them.
TEST(TensorCore, OnlyBf16ComesBelowTheLeastTop) {
  for (const TensorCoreType type : kTypes) {
    size_t by_alignment = 0, by_sign = 0;
    for (const int spread : {-1, 0, 12}) {
      Matrices m(type, 16, 64, 128, spread, 77);
      for (auto* values : {&m.a, &m.b}) {
        for (uint16_t& bits : *values) {  // by 2^-74 smaller: products around 2^-149
          if (type == TensorCoreType::bf16 && (bits & 0x7F80u) > 74u << 7)
            bits = static_cast<uint16_t>(bits - (74u << 7));
        }
      }
      for (size_t i = 0; i < m.start.size(); ++i) m.start[i] = i % 2 == 0 ? 0.0f : m.start[i] * 0x1p-130f;
      const std::vector<float> right = m.in_vectors(moe::tensor_core_rules(type), true);
      TensorCoreRules other = moe::tensor_core_rules(type);
      other.least_top = -1000;
      by_alignment += num_different(m.in_vectors(other, true), right);
      other = moe::tensor_core_rules(type);
      other.zero_sign = moe::ZeroSign::cut;
      by_sign += num_different(m.in_vectors(other, true), right);
    }
    if (type == TensorCoreType::bf16) {
      EXPECT_GT(by_alignment, 0u);
      EXPECT_GT(by_sign, 0u);
    } else {
      EXPECT_EQ(by_alignment, 0u) << moe::tensor_core_type_name(type);
      EXPECT_EQ(by_sign, 0u) << moe::tensor_core_type_name(type);
    }
  }
}

TEST(TensorCore, AStepSaysHowItCame) {
  TensorCoreStep step;
  const Instruction i(TensorCoreType::bf16, {{1.5, 1.5}, {0x1p-26, 1.0}});
  EXPECT_EQ(i.result(0.25f, &step), 2.5f);
  ASSERT_EQ(step.terms.size(), 17u);
  EXPECT_EQ(step.top, 0);
  EXPECT_EQ(step.terms[0].value, 2.25);
  EXPECT_EQ(step.terms[0].aligned, int64_t{9} << 23);
  EXPECT_EQ(step.terms[1].exponent, -26);
  EXPECT_EQ(step.terms[1].aligned, 0);
  EXPECT_EQ(step.terms[2].exponent, std::numeric_limits<int32_t>::min());
  EXPECT_EQ(step.terms[16].aligned, int64_t{1} << 23);
  EXPECT_EQ(step.sum, int64_t{5} << 24);
  EXPECT_FALSE(step.special);
}

}  // namespace
}  // namespace tessera::testing
