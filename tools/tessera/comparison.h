// Logits against the logits they should be, under two rules.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tessera::cli {

/// Bounds for one precision. `ours`: |o - a| <= ours * max(1, |a|). The school's: min(|o - a|, |o - a| / |a|) <=
/// school.
struct Tolerance {
  double ours = 0;
  double school = 0;
};

/// Of "fp32" (and "fp64"), "fp16", "bf16"; Error naming the option for anything else.
Tolerance tolerance_of(const std::string& precision);

struct WorstRecord {
  int64_t record = 0;    ///< row of the two arrays
  double deviation = 0;  ///< the largest |o - a| / max(1, |a|) of its logits; infinite where one is not finite
};

struct Comparison {
  int64_t num_records = 0;
  int64_t num_classes = 0;
  int64_t num_not_finite = 0;   ///< values of outputs or answers; they break both rules, though the school's own
                                ///< program, whose test is false for NaN, lets them pass
  int64_t num_over_ours = 0;    ///< values
  int64_t num_over_school = 0;  ///< values
  int64_t num_same_label = 0;   ///< records whose largest logit is the same class
  double max_difference = 0;    ///< |o - a| over finite values
  double mean_difference = 0;
  std::vector<WorstRecord> worst;  ///< descending, at most kMaxWorst, only where something differs
};

inline constexpr size_t kMaxWorst = 5;

/// `outputs` and `answers`: [num_records, num_classes].
Comparison compare_logits(std::span<const float> outputs, std::span<const float> answers, int64_t num_classes,
                          const Tolerance& tolerance);

}  // namespace tessera::cli
