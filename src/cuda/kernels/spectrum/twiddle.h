// cos(2 pi k / 16) in fp32, for the kernels that have their factors compiled in. The values of twiddle_table(16).
#pragma once

#include <cstdint>

namespace tessera::kernels::spectrum {

inline constexpr int32_t kUnrolledPositions = 16;

constexpr float cosine_of_16(int32_t k) {
  constexpr float kFirstQuarter[] = {1.0f, 0.923879532511286756f, 0.707106781186547524f, 0.382683432365089772f, 0.0f};
  const int32_t turned = k % 16;
  const int32_t half = turned <= 8 ? turned : 16 - turned;
  return half <= 4 ? kFirstQuarter[half] : -kFirstQuarter[8 - half];
}

// sin(2 pi k / 16) for k >= 0: a cosine a quarter turn (12 = -4 steps) on.
constexpr float sine_of_16(int32_t k) { return cosine_of_16(k + 12); }

}  // namespace tessera::kernels::spectrum
