#include "moe/judge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/formats.h"
#include "moe/layer_data.h"
#include "tessera/core/check.h"

namespace tessera::testing {
namespace {

// Of the relative error of so many elements. fp32 rounds too finely for one element to weigh.
double limit_of(const LayerCase& c, size_t num_elements, const Sums& sums) {
  if (moe::format_row(c.format).quantizes_rows()) {
    return kQuantizedRowLimit * (sums.narrow_rows == 0.0 ? 1.0 : moe::narrow_row_factor(c.intermediate));
  }
  if (c.dtype == DType::f32) return 1e-5;
  const double wide = c.dtype == DType::bf16 ? 3e-3 : 4e-4;
  return wide * (1.0 + sums.narrow_rows / std::sqrt(static_cast<double>(num_elements)));
}

struct Norms {
  double error = 0.0, size = 0.0;  // squares
  size_t num_elements = 0;

  void add(double got, double expected) {
    error += (got - expected) * (got - expected);
    size += expected * expected;
    ++num_elements;
  }
  void add(const Norms& row) {
    if (row.size == 0.0) return;
    error += row.error;
    size += row.size;
    num_elements += row.num_elements;
  }
  double relative() const { return size == 0.0 ? 0.0 : std::sqrt(error / size); }
  std::string problem(const LayerCase& c, const Sums& sums) const {
    if (num_elements == 0) return "";
    const double limit = limit_of(c, num_elements, sums);
    if (std::sqrt(error) <= limit * std::sqrt(size)) return "";
    return str_cat("relative error ", std::sqrt(error / size), ", at most ", limit);
  }
};

// In bounds; infinite for NaN, and for anything but +0 where the bound is 0.
double distance(float got, double expected, double bound) {
  if (bound == 0.0) {
    const bool right = static_cast<double>(got) == expected && (expected != 0.0 || !std::signbit(got));
    return right ? 0.0 : std::numeric_limits<double>::infinity();
  }
  const double off = std::abs(got - expected) / bound;
  return std::isnan(off) ? std::numeric_limits<double>::infinity() : off;
}

// The middle one of the rows' relative errors.
std::string median_problem(const LayerCase& c, std::vector<double> errors) {
  if (errors.empty() || !moe::format_row(c.format).quantizes_rows()) return "";
  const auto middle = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
  std::nth_element(errors.begin(), middle, errors.end());
  if (*middle <= kQuantizedMedianLimit) return "";
  return str_cat("half of the rows have a relative error of at least ", *middle, ", at most ", kQuantizedMedianLimit);
}

class Findings {
 public:
  explicit Findings(size_t hidden) : hidden_(hidden) {}

  void element(size_t index, double off) {
    ++wrong_;
    if (wrong_ > 1 && !(off > worst_)) return;
    worst_ = off;
    place_ = index;
  }
  std::string text(const std::vector<float>& got, const moe::OracleResult& reference) const {
    if (wrong_ == 0) return "";
    return str_cat(wrong_, " of ", got.size(), " elements, the worst of them token ", place_ / hidden_, " column ",
                   place_ % hidden_, ": got ", got[place_], ", expected ", reference.out[place_], " +- ",
                   reference.bound[place_]);
  }

 private:
  size_t hidden_;
  size_t wrong_ = 0, place_ = 0;
  double worst_ = 0.0;
};

}  // namespace

double unit_of(const LayerCase& c, const Sums& sums) {
  const double unit = sums.accumulator_unit;
  return sums.tensor_cores ? std::max(unit, moe::format_row(c.format).product_roundoff) : unit;
}

std::string judge_rows(const LayerCase& c, const std::vector<float>& rows, const moe::OracleResult& reference,
                       const Sums& sums) {
  if (rows.size() != reference.out.size()) return str_cat(rows.size(), " elements, expected ", reference.out.size());
  const auto hidden = static_cast<size_t>(c.hidden);
  Findings findings(hidden);
  for (size_t i = 0; i < rows.size(); ++i) {
    const double off = distance(rows[i], reference.out[i], reference.bound[i]);
    if (off > 1.0) findings.element(i, off);
  }
  std::string problem = findings.text(rows, reference);
  Norms whole;
  std::vector<double> errors;
  for (size_t begin = 0; problem.empty() && begin < rows.size(); begin += hidden) {
    Norms row;
    for (size_t i = begin; i < begin + hidden; ++i) row.add(rows[i], reference.out[i]);
    whole.add(row);
    if (row.size != 0.0) errors.push_back(row.relative());
    if (const std::string off = row.problem(c, sums); !off.empty())
      problem = str_cat("token ", begin / hidden, ": ", off);
  }
  if (problem.empty()) problem = median_problem(c, std::move(errors));
  if (!problem.empty()) return problem;
  const std::string off = whole.problem(c, sums);
  return off.empty() ? "" : "all tokens together: " + off;
}

std::string judge(const LayerCase& c, const std::vector<std::byte>& out, const moe::OracleResult& reference,
                  const Sums& sums) {
  const std::vector<float> got = values_of(out, c.dtype);
  std::string problem = judge_rows(c, got, reference, sums);
  if (!problem.empty() || !c.integers) return problem;
  Findings findings(static_cast<size_t>(c.hidden));
  for (size_t i = 0; i < got.size(); ++i) {
    const double expected = moe::rounded_to(reference.out[i], c.dtype);
    if (got[i] != expected) findings.element(i, std::abs(got[i] - expected));
  }
  problem = findings.text(got, reference);
  return problem.empty() ? "" : "integers: " + problem;
}

}  // namespace tessera::testing
