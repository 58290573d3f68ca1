// The judgement of a layer's output by fp64: a bound for every element, a limit for every row, exact where it can be.
//
//   EXPECT_EQ(judge(c, data.run(layer), data.reference(unit_of(c, kCpuSums)), kCpuSums), "");
//
// planted_test.cc shows that it refuses what kernels get wrong.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "moe/case.h"
#include "moe/judge/oracle.h"

namespace tessera::testing {

/// How a back end adds products up.
struct Sums {
  double accumulator_unit;
  /// The limit of a row's error is that of rows thousands of columns wide times 1 + this / sqrt(H): where sums differ
  /// from the reference's in their last bits, one element in many rounds the other way, and the error of a narrow row
  /// of 16-bit elements spreads as its width to the power -1/2. The limit of all rows together shrinks with their
  /// number.
  double narrow_rows;
  bool tensor_cores = false;  ///< the unit is at least that of the format's products on a GPU
};
inline constexpr Sums kCpuSums{moe::kCpuAccumulatorUnit, 0.0};
inline constexpr Sums kWgmmaSums{moe::kWgmmaAccumulatorUnit, 8.0, true};

/// Unit roundoff of a case's products, for its reference.
double unit_of(const LayerCase& c, const Sums& sums);

/// Of a format that quantises rows (see moe::kQuantizedRowLimit): the limit of the middle one of all rows' errors.
using moe::kQuantizedRowLimit;
inline constexpr double kQuantizedMedianLimit = 6e-3;

/// What is wrong with `out`, the bytes of [T, H]: in how many elements, and the worst of them by its token, column and
/// distance in bounds; then the row beyond its limit, or all rows. Empty if nothing is. Where nothing contributes to a
/// row it must be +0 to the bit; of integers every element must equal the reference, rounded once.
std::string judge(const LayerCase& c, const std::vector<std::byte>& out, const moe::OracleResult& reference,
                  const Sums& sums);

/// The rows [T, H] one after the other, some tokens of a layer: the same without the exact equality.
std::string judge_rows(const LayerCase& c, const std::vector<float>& rows, const moe::OracleResult& reference,
                       const Sums& sums);

}  // namespace tessera::testing
