// exp and sigmoid with the same bits on every processor and on the GPU: nothing but additions, products and divisions,
// each rounded to nearest, in a fixed order, without a branch (so loops over them vectorise).
//
// What is chosen by comparing such values, the experts of a router, is then the same everywhere. Host code that
// includes this must be compiled without contraction (-ffp-contract=off, as this library is): a fused product and sum
// rounds once instead of twice.
#pragma once

#include <bit>
#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera {

TESSERA_HOST_DEVICE inline float exact_add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

TESSERA_HOST_DEVICE inline float exact_mul(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

TESSERA_HOST_DEVICE inline float exact_div(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// Below it exp is taken as 0: a little above the smallest normal number, so that no result is subnormal.
inline constexpr float kExpLowest = -87.0f;

/// exp(x) for x <= 0 within 2 units in the last place; 0 for x < kExpLowest, for -inf and for NaN; 1 for 0. Other x > 0
/// are outside the contract.
TESSERA_HOST_DEVICE inline float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kRound = 0x1.8p23f;         // adding it leaves the nearest integer in the low bits
  constexpr float kLn2High = 0x1.62e4p-1f;    // 14 bits: times an integer below 2^10 it is exact
  constexpr float kLn2Low = 0x1.7f7d1cp-20f;  // ln 2 - kLn2High
  const float clamped = x >= kExpLowest ? x : kExpLowest;
  const float shifted = exact_add(exact_mul(clamped, kLog2E), kRound);
  const float n = exact_add(shifted, -kRound);  // x / ln 2 to the nearest integer
  const float r = exact_add(exact_add(clamped, exact_mul(n, -kLn2High)), exact_mul(n, -kLn2Low));
  // The power series up to r^7 / 7!, |r| <= ln 2 / 2: the rest is below 2^-27.
  float series = 1.0f / 5040.0f;
  series = exact_add(exact_mul(series, r), 1.0f / 720.0f);
  series = exact_add(exact_mul(series, r), 1.0f / 120.0f);
  series = exact_add(exact_mul(series, r), 1.0f / 24.0f);
  series = exact_add(exact_mul(series, r), 1.0f / 6.0f);
  series = exact_add(exact_mul(series, r), 0.5f);
  series = exact_add(exact_mul(series, exact_mul(r, r)), r);
  series = exact_add(series, 1.0f);
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127u) << 23);  // 2^n
  const float value = exact_mul(series, power);
  return x >= kExpLowest ? value : 0.0f;
}

/// 1 / (1 + exp(-x)): with e = exp(-|x|), 1 / (1 + e) for x >= 0, else e / (1 + e). NaN stays NaN.
TESSERA_HOST_DEVICE inline float exact_sigmoid(float x) {
  const float e = exp_nonpositive(x >= 0.0f ? -x : x);
  const float value = exact_div(x >= 0.0f ? 1.0f : e, exact_add(1.0f, e));
  return x != x ? x : value;
}

}  // namespace tessera
