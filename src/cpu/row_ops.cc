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
inline float larger(float maximum, float value) {
  return ((maximum >= value) | (maximum != maximum)) ? maximum : value;
}

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

// out[0 .. kCount) of one window of gather_add_max, for kCount sums that stay in registers.
template <int64_t kCount>
static inline __attribute__((always_inline)) void add_window(const float* const* rows, int64_t width, int64_t size,
                                                             int64_t begin, float* out) {
  float sum[kCount];
  for (int64_t i = 0; i < kCount; ++i) sum[i] = rows[0][begin + i];
  for (int64_t tap = 1; tap < width; ++tap) {
    const float* values = rows[tap] + tap * size + begin;
    for (int64_t i = 0; i < kCount; ++i) sum[i] += values[i];
  }
  for (int64_t i = 0; i < kCount; ++i) out[begin + i] = larger(out[begin + i], sum[i]);
}

TESSERA_VECTOR_CLONES void gather_add_max(const float* const* rows, int64_t num_windows, int64_t width, int64_t size,
                                          float* out) {
  std::fill_n(out, size, -std::numeric_limits<float>::infinity());
  for (int64_t window = 0; window < num_windows; ++window) {
    int64_t begin = 0;
    for (; begin + 64 <= size; begin += 64) add_window<64>(rows + window, width, size, begin, out);
    for (; begin + 16 <= size; begin += 16) add_window<16>(rows + window, width, size, begin, out);
    for (; begin < size; ++begin) add_window<1>(rows + window, width, size, begin, out);
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
