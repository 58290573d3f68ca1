// Products of rows in vectors: 16 rows of the second operand side by side, all their elements of K in 16-bit integers.
//
// The sums of one instruction's products fit 32 bits (checked); C joins them in doubles, where integers below 2^53 and
// powers of two are exact. What the vectors cannot hold (operands that are not finite, subnormal or infinite sums) is
// noticed and done again by multiply_add().
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/vector_clones.h"
#include "moe/judge/tensor_core.h"
#include "moe/judge/tensor_core_number.h"
#include "tessera/core/check.h"

namespace tessera::moe {
namespace {

constexpr int kLanes = 16;
constexpr int16_t kZeroExponent = -16000;  // of a zero operand: two of them stay below every other sum, and in 16 bits
constexpr int32_t kLeastTop = -300;        // below the exponent of any product and sum
constexpr double kLeastNormal = 0x1p-126;
constexpr double kBeyondFloat = 0x1p128;

uint16_t element(const TensorCoreRules& rules, const OperandRows& rows, int64_t row, int64_t column) {
  const int64_t number = rows.numbers == nullptr ? row : rows.numbers[row];
  const int64_t place = number * rows.stride + column;
  const bool is_byte = rules.exponent_bits + rules.fraction_bits < 8;
  return is_byte ? static_cast<const uint8_t*>(rows.data)[place] : static_cast<const uint16_t*>(rows.data)[place];
}

// `kGroup` rows side by side: [rows / kGroup][depth][kGroup], zeros where there is no row or no element.
template <int kGroup>
struct Packed {
  std::vector<int16_t> significand, exponent;
  std::vector<uint8_t> special;  // rows with elements that are not finite

  Packed(const TensorCoreRules& rules, const OperandRows& rows, int64_t depth, int64_t padded_depth) {
    const int64_t groups = (rows.num_rows + kGroup - 1) / kGroup;
    significand.assign(static_cast<size_t>(groups * kGroup * padded_depth), 0);
    const int32_t least = 2 - (1 << (rules.exponent_bits - 1));
    exponent.assign(significand.size(), rules.zeros_count ? static_cast<int16_t>(least) : kZeroExponent);
    special.assign(static_cast<size_t>(groups * kGroup), 0);
    for (int64_t row = 0; row < rows.num_rows; ++row) {
      for (int64_t k = 0; k < depth; ++k) {
        const Number number = operand_number(rules, element(rules, rows, row, k));
        if (number.kind != NumberKind::finite) special[static_cast<size_t>(row)] = 1;
        const auto place = static_cast<size_t>((row / kGroup * padded_depth + k) * kGroup + row % kGroup);
        const auto magnitude = static_cast<int16_t>(number.significand);
        significand[place] = number.negative ? static_cast<int16_t>(-magnitude) : magnitude;
        if (magnitude != 0) exponent[place] = static_cast<int16_t>(number.exponent);
      }
    }
  }
};

struct ChainRules {
  int32_t num_products;
  int32_t lift;  // of a product of significands, to term_bits fraction bits
  int32_t term_bits;
  uint64_t result_mask;  // of a double: the bits that the result keeps
  int32_t least_top;
  int32_t zero_sum_exponent;
};

ChainRules chain_rules(const TensorCoreRules& rules) {
  return {rules.num_products,
          rules.term_bits - 2 * rules.fraction_bits,
          rules.term_bits,
          ~((uint64_t{1} << (52 - rules.result_bits)) - 1),
          std::max(rules.least_top, kLeastTop),
          rules.zeros_count ? -126 : kLeastTop};
}

// Whether chain() computes by these rules.
bool fits_vectors(const TensorCoreRules& rules) {
  const int32_t lift = rules.term_bits - 2 * rules.fraction_bits;
  const uint64_t most = (uint64_t{2} << rules.fraction_bits) - 1;
  return !rules.floored && !rules.nearest && lift >= 0 && lift < 32 && rules.result_bits <= 52 &&
         (static_cast<uint64_t>(rules.num_products) * most * most << lift) < uint64_t{1} << 31;
}

// One instruction's products of row a with 16 rows of b: their largest exponents (at least those in `top`), their sums.
TESSERA_VECTOR_CLONES
void add_products(const ChainRules& rules, const int16_t* a_significand, const int16_t* a_exponent,
                  const int16_t* b_significand, const int16_t* b_exponent, int32_t* top, int32_t* sum) {
  for (int i = 0; i < rules.num_products; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int32_t exponent = int32_t{a_exponent[i]} + b_exponent[i * kLanes + lane];
      top[lane] = exponent > top[lane] ? exponent : top[lane];
    }
  }
  for (int i = 0; i < rules.num_products; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int32_t distance = top[lane] - (int32_t{a_exponent[i]} + b_exponent[i * kLanes + lane]);
      const int32_t shift = distance < 31 ? distance : 31;
      const int32_t product = int32_t{a_significand[i]} * b_significand[i * kLanes + lane];
      const int32_t sign = product >> 31;
      const uint32_t magnitude = static_cast<uint32_t>((product ^ sign) - sign) << rules.lift >> shift;
      sum[lane] += (static_cast<int32_t>(magnitude) ^ sign) - sign;
    }
  }
}

// sum += C, cut; `lost` becomes nonzero where the result is subnormal or beyond fp32.
TESSERA_VECTOR_CLONES
void add_sum(const ChainRules& rules, const int32_t* top, const int32_t* sum, float* c, int32_t* lost) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const double up = std::bit_cast<double>(static_cast<uint64_t>(1023 + rules.term_bits - top[lane]) << 52);
    const double down = std::bit_cast<double>(static_cast<uint64_t>(1023 - rules.term_bits + top[lane]) << 52);
    const auto aligned_c = static_cast<int32_t>(static_cast<double>(c[lane]) * up);
    const double exact = static_cast<double>(sum[lane]) + static_cast<double>(aligned_c);
    const double kept = std::bit_cast<double>(std::bit_cast<uint64_t>(exact) & rules.result_mask) * down;
    const double magnitude = kept < 0 ? -kept : kept;
    const bool beyond = magnitude >= kBeyondFloat || (magnitude > 0 && magnitude < kLeastNormal);
    lost[lane] |= beyond ? 1 : 0;
    c[lane] = beyond ? 0.0f : static_cast<float>(kept);
  }
}

// Whether a chain may start from this sum in vectors.
bool is_plain(float c) {
  const uint32_t bits = std::bit_cast<uint32_t>(c);
  const uint32_t exponent = bits >> 23 & 0xFFu;
  return bits == 0 || (exponent != 0 && exponent != 0xFFu);
}

class Products {
 public:
  Products(const TensorCoreRules& rules, const OperandRows& a, const OperandRows& b, int64_t depth)
      : rules_(rules),
        chain_(chain_rules(rules)),
        a_(a),
        b_(b),
        depth_(depth),
        num_steps_((depth + rules.num_products - 1) / rules.num_products) {}

  // Row `row` times every row of b, in vectors.
  void row_in_vectors(int64_t row, const Packed<1>& a, const Packed<kLanes>& b, float* out, bool accumulate) const {
    const int64_t padded = num_steps_ * rules_.num_products;
    const int16_t* a_significand = a.significand.data() + row * padded;
    const int16_t* a_exponent = a.exponent.data() + row * padded;
    for (int64_t begin = 0; begin < b_.num_rows; begin += kLanes) {
      const auto count = static_cast<int>(std::min<int64_t>(kLanes, b_.num_rows - begin));
      float c[kLanes] = {};
      int32_t lost[kLanes] = {};
      for (int lane = 0; lane < count; ++lane) {
        const float start = accumulate ? out[begin + lane] : 0.0f;
        const auto column = static_cast<size_t>(begin + lane);
        if (a.special[static_cast<size_t>(row)] != 0 || b.special[column] != 0 || !is_plain(start)) lost[lane] = 1;
        c[lane] = lost[lane] != 0 ? 0.0f : start;
      }
      chain(a_significand, a_exponent, b.significand.data() + begin * padded, b.exponent.data() + begin * padded, c,
            lost);
      for (int lane = 0; lane < count; ++lane) {
        float& result = out[begin + lane];
        result = lost[lane] != 0 ? one(row, begin + lane, accumulate ? result : 0.0f) : c[lane];
      }
    }
  }

  // One element, by the definition.
  float one(int64_t row, int64_t column, float c) const {
    std::vector<uint16_t> left(static_cast<size_t>(rules_.num_products)), right(left.size());
    for (int64_t begin = 0; begin < depth_; begin += rules_.num_products) {
      for (int64_t i = 0; i < rules_.num_products; ++i) {
        const bool inside = begin + i < depth_;
        left[static_cast<size_t>(i)] = inside ? element(rules_, a_, row, begin + i) : uint16_t{0};
        right[static_cast<size_t>(i)] = inside ? element(rules_, b_, column, begin + i) : uint16_t{0};
      }
      c = multiply_add(rules_, left, right, c);
    }
    return c;
  }

  int64_t padded_depth() const { return num_steps_ * rules_.num_products; }

 private:
  void chain(const int16_t* a_significand, const int16_t* a_exponent, const int16_t* b_significand,
             const int16_t* b_exponent, float* c, int32_t* lost) const {
    for (int64_t step = 0; step < num_steps_; ++step) {
      int32_t top[kLanes], sum[kLanes] = {};
      for (int lane = 0; lane < kLanes; ++lane) {
        const auto exponent = static_cast<int32_t>(std::bit_cast<uint32_t>(c[lane]) >> 23 & 0xFFu) - 127;
        top[lane] = std::max(c[lane] == 0.0f ? chain_.zero_sum_exponent : exponent, chain_.least_top);
      }
      const int64_t k = step * rules_.num_products;
      add_products(chain_, a_significand + k, a_exponent + k, b_significand + k * kLanes, b_exponent + k * kLanes, top,
                   sum);
      add_sum(chain_, top, sum, c, lost);
    }
  }

  const TensorCoreRules& rules_;
  ChainRules chain_;
  OperandRows a_, b_;
  int64_t depth_, num_steps_;
};

}  // namespace

void products(const TensorCoreRules& rules, const OperandRows& a, const OperandRows& b, int64_t depth, float* out,
              int64_t out_stride, bool accumulate) {
  TESSERA_CHECK(depth >= 0 && a.num_rows >= 0 && b.num_rows >= 0 && out_stride >= b.num_rows, depth, out_stride);
  const Products job(rules, a, b, depth);
  if (!fits_vectors(rules)) {
    for (int64_t i = 0; i < a.num_rows; ++i) {
      for (int64_t j = 0; j < b.num_rows; ++j) {
        float& result = out[i * out_stride + j];
        result = job.one(i, j, accumulate ? result : 0.0f);
      }
    }
    return;
  }
  const Packed<1> rows(rules, a, depth, job.padded_depth());
  const Packed<kLanes> columns(rules, b, depth, job.padded_depth());
  for (int64_t i = 0; i < a.num_rows; ++i) job.row_in_vectors(i, rows, columns, out + i * out_stride, accumulate);
}

}  // namespace tessera::moe
