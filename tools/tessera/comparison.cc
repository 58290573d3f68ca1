#include "comparison.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

/// The first of the largest values; a NaN is never the largest.
size_t label_of(std::span<const float> logits) {
  size_t label = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[label] || (std::isnan(logits[label]) && !std::isnan(logits[i]))) label = i;
  }
  return label;
}

/// One value against its answer; returns its deviation.
double compare_value(double output, double answer, const Tolerance& tolerance, Comparison& result) {
  if (!std::isfinite(output) || !std::isfinite(answer)) {
    ++result.num_not_finite;
    ++result.num_over_ours;
    ++result.num_over_school;
    return std::numeric_limits<double>::infinity();
  }
  const double difference = std::abs(output - answer);
  const double deviation = difference / std::max(1.0, std::abs(answer));
  result.num_over_ours += deviation > tolerance.ours;
  // An answer of 0 makes the relative error infinite (or 0 / 0), and the absolute one decides.
  const double relative = answer != 0 ? difference / std::abs(answer) : difference;
  result.num_over_school += std::min(difference, relative) > tolerance.school;
  result.max_difference = std::max(result.max_difference, difference);
  result.mean_difference += difference;
  return deviation;
}

}  // namespace

Tolerance tolerance_of(const std::string& precision) {
  if (precision == "fp32" || precision == "fp64") return {.ours = 1e-3, .school = 1e-3};
  if (precision == "fp16") return {.ours = 2e-2, .school = 5e-2};
  if (precision == "bf16") return {.ours = 0.15, .school = 5e-2};
  throw Error("--precision", "'" + escaped(precision) + "'", "fp32, fp16, bf16 or fp64");
}

Comparison compare_logits(std::span<const float> outputs, std::span<const float> answers, int64_t num_classes,
                          const Tolerance& tolerance) {
  const size_t classes = static_cast<size_t>(num_classes);
  TESSERA_CHECK(classes >= 1 && outputs.size() == answers.size() && outputs.size() % classes == 0, classes,
                outputs.size(), answers.size());
  Comparison result;
  result.num_classes = num_classes;
  result.num_records = static_cast<int64_t>(outputs.size() / classes);
  for (size_t begin = 0; begin < outputs.size(); begin += classes) {
    const std::span<const float> output = outputs.subspan(begin, classes);
    const std::span<const float> answer = answers.subspan(begin, classes);
    double deviation = 0;
    for (size_t i = 0; i < classes; ++i) {
      deviation = std::max(
          deviation, compare_value(static_cast<double>(output[i]), static_cast<double>(answer[i]), tolerance, result));
    }
    result.num_same_label += label_of(output) == label_of(answer);
    if (deviation > 0) result.worst.push_back({static_cast<int64_t>(begin / classes), deviation});
  }
  const int64_t num_finite = static_cast<int64_t>(outputs.size()) - result.num_not_finite;
  if (num_finite > 0) result.mean_difference /= static_cast<double>(num_finite);
  std::stable_sort(result.worst.begin(), result.worst.end(),
                   [](const WorstRecord& a, const WorstRecord& b) { return a.deviation > b.deviation; });
  result.worst.resize(std::min(result.worst.size(), kMaxWorst));
  return result;
}

}  // namespace tessera::cli
