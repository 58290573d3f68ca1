// Random normal numbers for weights and tokens of any size, quickly: a pattern that repeats after a prime number of
// elements, so that no two rows or experts of a tensor are alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tessera/core/dtype.h"

namespace tessera::cli {

inline constexpr float kTokenScale = 1.0f;
inline constexpr float kWeightScale = 0.02f;  ///< as trained weights have it; keeps every product in range

/// Of a matrix.
constexpr size_t elements(int64_t rows, int64_t columns) {
  return static_cast<size_t>(rows) * static_cast<size_t>(columns);
}

class NormalPattern {
 public:
  static constexpr size_t kMaxElements = 16'777'259;  // the first prime above 2^24: 32 MiB of 16-bit elements

  /// Of min(num_elements, kMaxElements) elements at least 1: a tensor that is smaller needs no more.
  NormalPattern(size_t num_elements, uint64_t seed);

  size_t size() const { return values_.size(); }

  /// Element i becomes `scale` * pattern[(offset + i) mod size()], rounded to `dtype`.
  void fill(DType dtype, void* data, size_t count, float scale, size_t offset) const;

 private:
  std::vector<float> values_;
};

}  // namespace tessera::cli
