// Random normal numbers for weights and tokens of any size, quickly: a pattern that repeats after a prime number of
// elements, so that no two rows or experts of a tensor are alike. And which tensors the weights of a format are.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tessera/core/dtype.h"
#include "tessera/moe/layer_config.h"

namespace tessera::cli {

inline constexpr float kTokenScale = 1.0f;
inline constexpr float kWeightScale = 0.02f;  ///< as trained weights have it; keeps every product in range

/// Of a matrix.
constexpr size_t elements(int64_t rows, int64_t columns) {
  return static_cast<size_t>(rows) * static_cast<size_t>(columns);
}

enum class WeightKind : uint8_t { numbers, codes, scales };  ///< of the layer's dtype, e4m3, f32

/// A tensor of the routed experts' weights.
struct WeightTensor {
  const void* moe::LayerWeights::*field;
  WeightKind kind;
  size_t element_bytes;
  size_t expert_bytes;  ///< of an expert; 0: the format has no such tensor
};

/// Weights of the first and the second product, then the scales of each.
std::array<WeightTensor, 4> weight_tensors(const moe::LayerConfig& config);

/// Bytes of an expert in all of them.
size_t expert_bytes(const moe::LayerConfig& config);

class NormalPattern {
 public:
  static constexpr size_t kMaxElements = 16'777'259;  // the first prime above 2^24: 32 MiB of 16-bit elements

  /// Of min(num_elements, kMaxElements) elements at least 1: a tensor that is smaller needs no more.
  NormalPattern(size_t num_elements, uint64_t seed);

  size_t size() const { return values_.size(); }

  /// Element i becomes `scale` * pattern[(offset + i) mod size()], rounded to `dtype`.
  void fill(DType dtype, void* data, size_t count, float scale, size_t offset) const;

  /// Elements of such a tensor, from the pattern's `offset` on. Codes times scales are about as large as numbers are;
  /// neighbouring scales differ.
  void fill(const WeightTensor& tensor, DType dtype, void* data, size_t count, size_t offset) const;

 private:
  template <class Visit>
  void each(size_t count, size_t offset, const Visit& visit) const;  // visit(i, value) of elements 0..count-1

  std::vector<float> values_;
};

}  // namespace tessera::cli
