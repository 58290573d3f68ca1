// What a Hopper tensor core does to bits: one element of one WGMMA, in integers, on the host.
//
//   D = C + sum of a[i] b[i]        16 products at once (bf16, f16: k16), 32 (e4m3: k32)
//
// Every product and C is aligned to the largest exponent among them, keeps `term_bits` bits below it, cut toward zero;
// the sum of these integers is exact; the result is cut toward zero to `result_bits` fraction bits. A product's
// exponent is the sum of its operands' exponents, not renormalised: 1.5 * 1.5 has exponent 0 and the significand 2.25.
// The exponent aligned to is never below -133, and a zero result is +0.
// WGMMAs chain through C in order of K. Nothing depends on the instruction's N, on which operand is which, or on
// neighbours.
//
//   const TensorCoreRules rules = tensor_core_rules(TensorCoreType::bf16);
//   float d = multiply_add(rules, a, b, c);             // 16 bit patterns each; one instruction, one element
//
// products() is the same for matrices, in vectors: what whole layers are judged with. No result depends on the
// processor: integers, and doubles that are exact.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tessera/core/dtype.h"

namespace tessera::moe {

enum class TensorCoreType : uint8_t { bf16, f16, e4m3 };

std::string_view tensor_core_type_name(TensorCoreType type);
/// bf16 or f16.
TensorCoreType tensor_core_type(DType dtype);

enum class ZeroSign : uint8_t {
  positive,  ///< every zero result is +0
  cut,       ///< an exact zero is +0; what is cut to zero keeps its sign
  ieee,      ///< as `cut`, but a sum of negative zeros alone is -0
};

/// The arithmetic in full. tensor_core_rules() is what the device does; other values are what tests compare with it.
struct TensorCoreRules {
  // The operands' type.
  int32_t exponent_bits = 8;
  int32_t fraction_bits = 7;
  bool has_infinity = true;  ///< else the largest exponent is a normal one and all ones alone is NaN

  int32_t num_products = 16;  ///< summed at once
  int32_t term_bits = 25;     ///< below the largest exponent
  int32_t result_bits = 23;   ///< fraction bits of D

  bool zeros_count = false;  ///< zero products take part in the largest exponent
  bool operands_renormalised =
      false;                      ///< a subnormal operand's exponent is that of its leading bit, else the type's least
  bool sum_renormalised = false;  ///< the same of a subnormal C
  bool floored = false;           ///< terms are cut toward minus infinity
  bool nearest = false;           ///< D is rounded to nearest even
  bool overflows_to_infinity = true;  ///< else to the largest finite number
  bool flushes_results = false;       ///< subnormal results become zero
  /// The exponent that terms are aligned to is at least this: that of the least subnormal bf16. Only products of bf16
  /// come below it; those of f16 and e4m3 do not, nor does a C that is not zero.
  int32_t least_top = -133;
  int32_t least_bit = -149;                 ///< weight of the last bit that a subnormal D keeps
  ZeroSign zero_sign = ZeroSign::positive;  ///< as above: only sums of bf16 products can be cut to zero
  uint32_t nan_bits = 0x7FFFFFFFu;          ///< of every NaN result
};

/// What the device does, as tests/gpu/probe finds it.
TensorCoreRules tensor_core_rules(TensorCoreType type);

/// How one instruction came to one element.
struct TensorCoreStep {
  struct Term {
    double value;      ///< a[i] * b[i], or C, exactly
    int32_t exponent;  ///< what it counts with; the least int32 if it does not
    int64_t aligned;   ///< value / 2^(top - term_bits), cut
  };
  std::vector<Term> terms;  ///< products in order of K, then C
  int32_t top = 0;          ///< the largest exponent
  int64_t sum = 0;          ///< of the aligned
  bool special = false;     ///< not a number or infinite: nothing was aligned
  float result = 0;
};

/// One element of one instruction: num_products patterns of the type each (e4m3 in the low byte). `step`, if given, is
/// overwritten with the way there.
float multiply_add(const TensorCoreRules& rules, std::span<const uint16_t> a, std::span<const uint16_t> b, float c,
                   TensorCoreStep* step = nullptr);

/// A pattern's value, exactly.
double operand_value(const TensorCoreRules& rules, uint16_t bits);

/// The pattern nearest to a value, ties to even. Beyond the type: infinity, in e4m3 the largest number.
uint16_t nearest_operand(TensorCoreType type, double value);

/// Rows of an operand, K-major; elements of one byte (e4m3) or two.
struct OperandRows {
  const void* data = nullptr;
  int64_t num_rows = 0;
  int64_t stride = 0;                ///< elements from row to row
  const int32_t* numbers = nullptr;  ///< row i is row numbers[i] of data; null: i
};

/// out[i * out_stride + j] = row i of a times row j of b over `depth` elements, instruction after instruction; a last
/// one is filled up with zeros. Starts from zero, or with `accumulate` from out. One thread.
void products(const TensorCoreRules& rules, const OperandRows& a, const OperandRows& b, int64_t depth, float* out,
              int64_t out_stride, bool accumulate = false);

}  // namespace tessera::moe
