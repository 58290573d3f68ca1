// How a numeric result is judged. Every check fails on NaN, and numeric_check_test.cc shows that each fails for results
// that are wrong in the ways kernels are wrong.
//
//   GuardedArray<float> out(rows * columns);                 // poisoned, with guard zones on both sides
//   gemm.run(a, out.data(), scratch);
//   EXPECT_TRUE(out.intact());                               // all written, nothing beside it
//   EXPECT_TRUE(rows_within(out.span(), reference, columns, 1e-5));
//   EXPECT_TRUE(elements_within(out.span(), reference, magnitude, kUnitF32, kUnitF32));
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace tessera::test {

inline constexpr double kUnitF32 = 0x1p-24;  ///< unit roundoff
inline constexpr double kUnitBf16 = 0x1p-9;

/// Largest error of a logit: |out - reference| <= tau * max(1, |reference|).
inline constexpr double kLogitTauF32 = 1e-3;
inline constexpr double kLogitTauBf16 = 0.15;

/// Relative Frobenius error of a row that is computed in fp32 from the same operands as its reference.
inline constexpr double kRowLimitF32 = 1e-5;

/// Bit for bit, so that NaN equals NaN and +0 differs from -0.
inline ::testing::AssertionResult same_bits(std::span<const float> out, std::span<const float> reference) {
  if (out.size() != reference.size()) return ::testing::AssertionFailure() << out.size() << " != " << reference.size();
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::bit_cast<uint32_t>(out[i]) != std::bit_cast<uint32_t>(reference[i])) {
      return ::testing::AssertionFailure()
             << "element " << i << ": " << out[i] << " is not the same as " << reference[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// Values that are exact in fp32: equal as numbers.
inline ::testing::AssertionResult exactly(std::span<const float> out, std::span<const double> reference) {
  if (out.size() != reference.size()) return ::testing::AssertionFailure() << out.size() << " != " << reference.size();
  for (size_t i = 0; i < out.size(); ++i) {
    if (!(double{out[i]} == reference[i])) {
      return ::testing::AssertionFailure() << "element " << i << ": " << out[i] << ", expected " << reference[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// Per row of `columns`: ||out - reference|| <= limit * ||reference||; a row whose reference is zero is exactly zero.
inline ::testing::AssertionResult rows_within(std::span<const float> out, std::span<const double> reference,
                                              size_t columns, double limit) {
  if (out.size() != reference.size()) return ::testing::AssertionFailure() << out.size() << " != " << reference.size();
  for (size_t begin = 0; begin < out.size(); begin += columns) {
    double error = 0;
    double size = 0;
    for (size_t i = begin; i < begin + columns; ++i) {
      error += (out[i] - reference[i]) * (out[i] - reference[i]);
      size += reference[i] * reference[i];
    }
    if (!(std::sqrt(error) <= limit * std::sqrt(size))) {
      return ::testing::AssertionFailure() << "row " << begin / columns << ": error " << std::sqrt(error / size);
    }
  }
  return ::testing::AssertionSuccess();
}

/// |out - reference| <= 2 u_out |reference| + 4 u_acc magnitude, where magnitude is the sum of the absolute products.
inline ::testing::AssertionResult elements_within(std::span<const float> out, std::span<const double> reference,
                                                  std::span<const double> magnitude, double u_out, double u_acc) {
  if (out.size() != reference.size() || out.size() != magnitude.size()) {
    return ::testing::AssertionFailure() << out.size() << ", " << reference.size() << ", " << magnitude.size();
  }
  for (size_t i = 0; i < out.size(); ++i) {
    const double bound = 2 * u_out * std::abs(reference[i]) + 4 * u_acc * magnitude[i];
    if (!(std::abs(out[i] - reference[i]) <= bound)) {
      return ::testing::AssertionFailure()
             << "element " << i << ": " << out[i] << ", expected " << reference[i] << " +- " << bound;
    }
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult logits_within(std::span<const float> out, std::span<const float> reference,
                                                double tau) {
  if (out.size() != reference.size()) return ::testing::AssertionFailure() << out.size() << " != " << reference.size();
  for (size_t i = 0; i < out.size(); ++i) {
    if (!(std::abs(double{out[i]} - double{reference[i]}) <= tau * std::max(1.0, std::abs(double{reference[i]})))) {
      return ::testing::AssertionFailure() << "logit " << i << ": " << out[i] << ", expected " << reference[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// An output as a kernel must treat it: elements it has not written are recognised, and so is a write beside it.
template <class T>
class GuardedArray {
 public:
  explicit GuardedArray(size_t size) : size_(size), memory_((size + 2 * kGuard) * sizeof(T), kPoison) {}

  T* data() { return reinterpret_cast<T*>(memory_.data()) + kGuard; }
  std::span<const T> span() const { return {reinterpret_cast<const T*>(memory_.data()) + kGuard, size_}; }
  void poison() { std::fill(memory_.begin(), memory_.end(), kPoison); }

  /// Every element written, the guard zones untouched.
  ::testing::AssertionResult intact() const {
    for (size_t i = 0; i < size_ + 2 * kGuard; ++i) {
      const bool is_guard = i < kGuard || i >= kGuard + size_;
      const bool poisoned = std::all_of(memory_.begin() + static_cast<std::ptrdiff_t>(i * sizeof(T)),
                                        memory_.begin() + static_cast<std::ptrdiff_t>((i + 1) * sizeof(T)),
                                        [](unsigned char byte) { return byte == kPoison; });
      if (is_guard && !poisoned) {
        return ::testing::AssertionFailure()
               << "written beside the array, at element " << static_cast<int64_t>(i) - static_cast<int64_t>(kGuard);
      }
      if (!is_guard && poisoned) return ::testing::AssertionFailure() << "element " << i - kGuard << " not written";
    }
    return ::testing::AssertionSuccess();
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kPoison = 0xFF;  // as fp32 a NaN that no computation produces

  size_t size_;
  std::vector<unsigned char> memory_;
};

}  // namespace tessera::test
