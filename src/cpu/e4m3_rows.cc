#include "cpu/e4m3_rows.h"

#include <algorithm>

#include "cpu/vector_clones.h"
#include "tessera/core/e4m3.h"

namespace tessera::cpu {
namespace {

// One of two words, by masks: a choice that compilers make a branch of keeps a loop from becoming vectors.
inline uint32_t choose(bool first, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return (a & mask) | (b & ~mask);
}

}  // namespace

TESSERA_VECTOR_CLONES uint32_t largest_magnitude(const float* values, int64_t size, uint32_t so_far) {
  uint32_t largest = so_far;
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]) & 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// The three cases of f32_to_e4m3 side by side, of which one is taken.
TESSERA_VECTOR_CLONES void encode_e4m3(const float* values, int64_t size, float inverse_scale, uint8_t* codes) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i] * inverse_scale);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    const uint32_t normal = ((magnitude + 0x7FFFFu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
    const uint32_t subnormal =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - std::bit_cast<uint32_t>(0x1p14f);
    uint32_t code = choose(magnitude < std::bit_cast<uint32_t>(0x1p-6f), subnormal, normal);
    code = choose(magnitude >= std::bit_cast<uint32_t>(kE4m3Largest), 0x7Eu, code);
    code |= bits >> 24 & 0x80u;
    codes[i] = static_cast<uint8_t>(choose(magnitude > 0x7F800000u, kE4m3Nan, code));
  }
}

TESSERA_VECTOR_CLONES void decode_e4m3(const uint8_t* codes, int64_t size, float scale, float* out) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t code = codes[i];
    const uint32_t magnitude = code & 0x7Fu;
    const uint32_t normal = (magnitude + (120u << 3)) << 20;
    const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
    const uint32_t number = choose(magnitude < 8, subnormal, normal) | (0u - (magnitude == kE4m3Nan)) >> 1;
    out[i] = std::bit_cast<float>(number | (code & 0x80u) << 24) * scale;
  }
}

void quantize_row(const float* values, int64_t size, int64_t group, uint8_t* codes, float* scales) {
  for (int64_t begin = 0; begin < size; begin += group) {
    const int64_t count = std::min(group, size - begin);
    const float scale = e4m3_scale(largest_magnitude(values + begin, count));
    encode_e4m3(values + begin, count, e4m3_inverse_scale(scale), codes + begin);
    *scales++ = scale;
  }
}

void round_row_by_e4m3(float* values, int64_t size, int64_t group) {
  for (int64_t begin = 0; begin < size; begin += group) {
    const int64_t count = std::min(group, size - begin);
    round_by_e4m3(values + begin, count, e4m3_scale(largest_magnitude(values + begin, count)));
  }
}

void round_by_e4m3(float* values, int64_t size, float scale) {
  constexpr int64_t kAtOnce = 256;
  uint8_t codes[kAtOnce];
  const float inverse = e4m3_inverse_scale(scale);
  for (int64_t begin = 0; begin < size; begin += kAtOnce) {
    const int64_t count = std::min(kAtOnce, size - begin);
    encode_e4m3(values + begin, count, inverse, codes);
    decode_e4m3(codes, count, scale, values + begin);
  }
}

}  // namespace tessera::cpu
