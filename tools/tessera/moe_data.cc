#include "moe_data.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

namespace tessera::cli {

// Box and Muller's method, two numbers a pair of uniform ones; the standard's distributions differ between libraries.
NormalPattern::NormalPattern(size_t num_elements, uint64_t seed)
    : values_(std::clamp(num_elements, size_t{1}, kMaxElements)) {
  std::mt19937_64 random(seed);
  for (size_t i = 0; i < values_.size(); i += 2) {
    const float radius_uniform = (static_cast<float>(random() >> 40) + 0.5f) * 0x1p-24f;
    const float angle = static_cast<float>(random() >> 40) * 0x1p-23f * std::numbers::pi_v<float>;
    const float radius = std::sqrt(-2.0f * std::log(radius_uniform));
    values_[i] = radius * std::cos(angle);
    if (i + 1 < values_.size()) values_[i + 1] = radius * std::sin(angle);
  }
}

void NormalPattern::fill(DType dtype, void* data, size_t count, float scale, size_t offset) const {
  size_t position = offset % values_.size();
  for (size_t i = 0; i < count; ++i) {
    const float value = values_[position] * scale;
    switch (dtype) {
      case DType::f32: static_cast<float*>(data)[i] = value; break;
      case DType::f16: static_cast<uint16_t*>(data)[i] = f32_to_f16(value); break;
      case DType::bf16: static_cast<uint16_t*>(data)[i] = f32_to_bf16(value); break;
    }
    if (++position == values_.size()) position = 0;
  }
}

}  // namespace tessera::cli
