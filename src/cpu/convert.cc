#include "cpu/convert.h"

#include <algorithm>
#include <bit>

#include "cpu/vector_clones.h"

namespace tessera::cpu {
namespace {

constexpr uint32_t kMagnitude = 0x7FFFFFFFu;
constexpr uint32_t kInfinity = 0x7F800000u;

TESSERA_VECTOR_CLONES void bf16_to_f32_row(const uint16_t* values, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(values[i]) << 16);
}

// The exponent moves from bias 15 to bias 127 by a product with 2^112, which also normalises subnormals.
TESSERA_VECTOR_CLONES void f16_to_f32_row(const uint16_t* values, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t half = values[i];
    const uint32_t shifted = (half & 0x7FFFu) << 13;
    const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(shifted) * 0x1p112f);
    const uint32_t magnitude = (half & 0x7C00u) == 0x7C00u ? shifted | kInfinity : finite;
    out[i] = std::bit_cast<float>((half & 0x8000u) << 16 | magnitude);
  }
}

TESSERA_VECTOR_CLONES void f32_to_bf16_row(const float* values, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40u;
    out[i] = static_cast<uint16_t>((bits & kMagnitude) > kInfinity ? quiet : rounded);
  }
}

// Three cases side by side, of which one is taken: see f32_to_f16 for what the constants mean.
TESSERA_VECTOR_CLONES void f32_to_f16_row(const float* values, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t magnitude = bits & kMagnitude;
    const uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    const uint32_t subnormal =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;
    half = magnitude > kInfinity ? 0x7E00u : half;
    out[i] = static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
  }
}

}  // namespace

void to_f32(const void* values, DType dtype, int64_t size, float* out) {
  switch (dtype) {
    case DType::f32: std::copy_n(static_cast<const float*>(values), size, out); return;
    case DType::f16: return f16_to_f32_row(static_cast<const uint16_t*>(values), size, out);
    case DType::bf16: return bf16_to_f32_row(static_cast<const uint16_t*>(values), size, out);
  }
}

void from_f32(const float* values, int64_t size, DType dtype, void* out) {
  switch (dtype) {
    case DType::f32: std::copy_n(values, size, static_cast<float*>(out)); return;
    case DType::f16: return f32_to_f16_row(values, size, static_cast<uint16_t*>(out));
    case DType::bf16: return f32_to_bf16_row(values, size, static_cast<uint16_t*>(out));
  }
}

}  // namespace tessera::cpu
