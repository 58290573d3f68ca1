#include "cpu/row_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/vector_clones.h"

namespace tessera::cpu {
namespace {

constexpr uint32_t kExponentMask = 0x7F800000u;  // all ones in infinities and NaNs only

// Rounds a value that is no NaN; f32_to_bf16 without its branch, so that loops vectorise.
inline uint32_t bf16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
}

// The larger of the two, or NaN once either is one: an overflow in the products must not hide behind the maximum.
inline float larger(float maximum, float value) { return (maximum >= value) | (maximum != maximum) ? maximum : value; }

// A block of channels is read position by position while its lines are in the first-level cache.
constexpr int64_t kChannelBlock = 16;

template <class Out>
inline __attribute__((always_inline)) bool transpose(const float* record, int64_t channels, int64_t positions, Out* out,
                                                     int64_t position_stride) {
  uint32_t not_finite = 0;
  for (int64_t begin = 0; begin < channels; begin += kChannelBlock) {
    const int64_t count = std::min(kChannelBlock, channels - begin);
    const float* block = record + begin * positions;
    for (int64_t position = 0; position < positions; ++position) {
      Out* row = out + position * position_stride + begin;
      for (int64_t channel = 0; channel < count; ++channel) {
        const float value = block[channel * positions + position];
        if constexpr (sizeof(Out) == 2) {
          // NaNs must be seen before rounding (a payload may carry out of the exponent), infinities after it.
          const uint32_t rounded = bf16_bits(value);
          not_finite |= static_cast<uint32_t>((std::bit_cast<uint32_t>(value) & kExponentMask) == kExponentMask) |
                        static_cast<uint32_t>(((rounded << 16) & kExponentMask) == kExponentMask);
          row[channel] = static_cast<Out>(rounded);
        } else {
          not_finite |= static_cast<uint32_t>((std::bit_cast<uint32_t>(value) & kExponentMask) == kExponentMask);
          row[channel] = value;
        }
      }
    }
  }
  return not_finite == 0;
}

}  // namespace

TESSERA_VECTOR_CLONES bool transpose_record(const float* record, int64_t channels, int64_t positions, float* out,
                                            int64_t position_stride) {
  return transpose(record, channels, positions, out, position_stride);
}

TESSERA_VECTOR_CLONES bool transpose_record(const float* record, int64_t channels, int64_t positions, uint16_t* out,
                                            int64_t position_stride) {
  return transpose(record, channels, positions, out, position_stride);
}

TESSERA_VECTOR_CLONES void round_to_bf16(const float* values, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<uint16_t>(bf16_bits(values[i]));
}

void store_operand(const float* values, int64_t size, DType operand, std::byte* out) {
  if (operand == DType::bf16) {
    round_to_bf16(values, size, reinterpret_cast<uint16_t*>(out));
  } else {
    std::memcpy(out, values, static_cast<size_t>(size) * sizeof(float));
  }
}

TESSERA_VECTOR_CLONES void max_into(const float* values, int64_t size, float* maxima) {
  for (int64_t i = 0; i < size; ++i) maxima[i] = larger(maxima[i], values[i]);
}

TESSERA_VECTOR_CLONES void add_bias(const float* bias, int64_t size, float* values) {
  for (int64_t i = 0; i < size; ++i) values[i] += bias[i];
}

TESSERA_VECTOR_CLONES void add_bias_relu(const float* bias, int64_t size, float* values) {
  for (int64_t i = 0; i < size; ++i) {
    const float sum = values[i] + bias[i];
    values[i] = sum <= 0.0f ? 0.0f : sum;  // NaN stays
  }
}

TESSERA_VECTOR_CLONES void add_scaled(const float* values, const float* bias, float scale, int64_t size, float* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += scale * (values[i] + bias[i]);
}

TESSERA_VECTOR_CLONES void gather_add_max(const float* const* rows, int64_t num_windows, int64_t width, int64_t size,
                                          float* out) {
  constexpr int64_t kBlock = 64;  // four vectors of AVX-512: sums and maxima stay in registers
  const float kLowest = -std::numeric_limits<float>::infinity();
  std::fill_n(out, size, kLowest);
  const int64_t num_whole = size / kBlock * kBlock;
  for (int64_t window = 0; window < num_windows; ++window) {
    const float* const* row = rows + window;
    for (int64_t begin = 0; begin < num_whole; begin += kBlock) {
      float sum[kBlock];
      for (int64_t i = 0; i < kBlock; ++i) sum[i] = row[0][begin + i];
      for (int64_t tap = 1; tap < width; ++tap) {
        const float* values = row[tap] + tap * size + begin;
        for (int64_t i = 0; i < kBlock; ++i) sum[i] += values[i];
      }
      for (int64_t i = 0; i < kBlock; ++i) out[begin + i] = larger(out[begin + i], sum[i]);
    }
    for (int64_t i = num_whole; i < size; ++i) {
      float sum = row[0][i];
      for (int64_t tap = 1; tap < width; ++tap) sum += row[tap][tap * size + i];
      out[i] = larger(out[i], sum);
    }
  }
}

void softmax(const float* logits, int64_t size, float* weights) {
  const float largest = *std::max_element(logits, logits + size);
  float total = 0;
  for (int64_t i = 0; i < size; ++i) {
    weights[i] = std::exp(logits[i] - largest);
    total += weights[i];
  }
  for (int64_t i = 0; i < size; ++i) weights[i] /= total;
}

}  // namespace tessera::cpu
