// 8-bit floating point numbers, e4m3 (e4m3fn: no infinity, one NaN), and how rows of numbers become such with scales.
//
//   group of values x[0..n) -> scale s, codes q:     s = max(amax, 1e-10) * (1 / 448),  q[i] = e4m3(x[i] * (1 / s))
//
// A scale that is given (a static one) takes the place of the first step.
//
// Every step is one fp32 operation, rounded to nearest even, so that host and device have the same bits; no sum is
// fused, nothing is flushed (host code is compiled without contraction). A NaN makes the group's scale and all its
// codes NaN. An infinity makes the scale infinite, finite values of the group 0 and infinite ones NaN.
#pragma once

#include <bit>
#include <cstdint>

#include "tessera/core/exact_math.h"
#include "tessera/core/host_device.h"

namespace tessera {

/// The largest e4m3 number; its code is 0x7E.
inline constexpr float kE4m3Largest = 448.0f;
/// Of either sign bit: a code with these seven bits is not a number.
inline constexpr uint8_t kE4m3Nan = 0x7F;

/// The value of a code, exactly: sign, 4 bits of exponent (bias 7), 3 of fraction.
TESSERA_HOST_DEVICE constexpr float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7Fu;
  const uint32_t normal = (magnitude + (120u << 3)) << 20;
  const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
  const uint32_t number = magnitude < 8 ? subnormal : normal;
  return std::bit_cast<float>(sign | (magnitude == kE4m3Nan ? 0x7FFFFFFFu : number));
}

/// The nearest code, ties to even; beyond 448 (infinity too) 448 of that sign; NaN becomes 0x7F.
TESSERA_HOST_DEVICE constexpr uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return kE4m3Nan;
  if (magnitude >= std::bit_cast<uint32_t>(kE4m3Largest)) return static_cast<uint8_t>(sign | 0x7Eu);
  if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {
    // Adding 2^14 puts the subnormal grid (2^-9) at the float's last place, so the addition itself rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0x1p14f)));
  }
  const uint32_t rounded = magnitude + 0x7FFFFu + (magnitude >> 20 & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

/// Columns of a row that share a scale, and rows and columns of a weight's block that do; the last may be fewer.
inline constexpr int32_t kScaleGroup = 128;
/// How many groups so many columns are, or blocks a side of a weight.
template <class Int>
TESSERA_HOST_DEVICE constexpr Int scale_groups(Int extent) {
  return (extent + kScaleGroup - 1) / kScaleGroup;
}
/// In place of kScaleGroup where all columns of a row share a scale, however many they are.
inline constexpr int32_t kWholeRow = INT32_MAX;
/// How many groups of `group` columns (or rows) so many are.
TESSERA_HOST_DEVICE constexpr int64_t scale_groups(int64_t extent, int64_t group) {
  return (extent + group - 1) / group;
}
/// The least amax that a scale is made from: of a row of zeros too.
inline constexpr float kLeastAmax = 1e-10f;

/// What the largest magnitude of a group is found by: the maximum of these, as integers, of all its values. Those of
/// NaN are the largest.
TESSERA_HOST_DEVICE constexpr uint32_t magnitude_bits(float value) {
  return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu;
}

/// The scale of a group whose largest magnitude has these bits; every NaN is 0x7FFFFFFF, as the device's.
TESSERA_HOST_DEVICE inline float e4m3_scale(uint32_t amax_bits) {
  if (amax_bits > 0x7F800000u) return std::bit_cast<float>(0x7FFFFFFFu);
  const float amax = std::bit_cast<float>(amax_bits);
  return exact_mul(amax < kLeastAmax ? kLeastAmax : amax, 1.0f / kE4m3Largest);
}

/// What values of a group are multiplied by.
TESSERA_HOST_DEVICE inline float e4m3_inverse_scale(float scale) { return exact_div(1.0f, scale); }

/// The code of a value of a group.
TESSERA_HOST_DEVICE inline uint8_t e4m3_code(float value, float inverse_scale) {
  return f32_to_e4m3(exact_mul(value, inverse_scale));
}

}  // namespace tessera
