#include "moe_data.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "moe/formats.h"
#include "tessera/core/e4m3.h"

namespace tessera::cli {
namespace {

constexpr float kCodeScale = 100.0f;  // the largest of a block of normal numbers comes near 448
constexpr float kScaleSpread = 0.25f;

}  // namespace

std::array<WeightTensor, 4> weight_tensors(const moe::LayerConfig& config) {
  using Weights = moe::LayerWeights;
  const moe::FormatRow& format = moe::format_row(config.weight_format);
  const WeightKind kind = format.has_scales() ? WeightKind::codes : WeightKind::numbers;
  const size_t element_bytes = format.has_scales() ? 1 : dtype_size(config.dtype);
  const int64_t hidden = config.hidden_size, width = config.intermediate_size;
  const size_t parts = config.gated ? 2 : 1;  // whose scales lie apart
  return {{{&Weights::gate_up, kind, element_bytes, parts * weight_bytes(format, config.dtype, width, hidden)},
           {&Weights::down, kind, element_bytes, weight_bytes(format, config.dtype, hidden, width)},
           {&Weights::gate_up_scale, WeightKind::scales, sizeof(float), parts * scale_bytes(format, width, hidden)},
           {&Weights::down_scale, WeightKind::scales, sizeof(float), scale_bytes(format, hidden, width)}}};
}

size_t expert_bytes(const moe::LayerConfig& config) {
  size_t bytes = 0;
  for (const WeightTensor& tensor : weight_tensors(config)) bytes += tensor.expert_bytes;
  return bytes;
}

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

template <class Visit>
void NormalPattern::each(size_t count, size_t offset, const Visit& visit) const {
  size_t position = offset % values_.size();
  for (size_t i = 0; i < count; ++i) {
    visit(i, values_[position]);
    if (++position == values_.size()) position = 0;
  }
}

void NormalPattern::fill(DType dtype, void* data, size_t count, float scale, size_t offset) const {
  each(count, offset, [&](size_t i, float number) {
    const float value = number * scale;
    switch (dtype) {
      case DType::f32: static_cast<float*>(data)[i] = value; break;
      case DType::f16: static_cast<uint16_t*>(data)[i] = f32_to_f16(value); break;
      case DType::bf16: static_cast<uint16_t*>(data)[i] = f32_to_bf16(value); break;
    }
  });
}

void NormalPattern::fill(const WeightTensor& tensor, DType dtype, void* data, size_t count, size_t offset) const {
  switch (tensor.kind) {
    case WeightKind::numbers: return fill(dtype, data, count, kWeightScale, offset);
    case WeightKind::codes:
      return each(count, offset,
                  [&](size_t i, float number) { static_cast<uint8_t*>(data)[i] = f32_to_e4m3(number * kCodeScale); });
    case WeightKind::scales:
      return each(count, offset, [&](size_t i, float number) {
        static_cast<float*>(data)[i] = kWeightScale / kCodeScale * std::exp2(number * kScaleSpread);
      });
  }
}

}  // namespace tessera::cli
