// The device's clock.
#pragma once

#include <cstdint>

namespace tessera::ptx {

// Nanoseconds, the same clock on every multiprocessor; it advances in steps that the device chooses. Not moved across
// other volatile instructions or memory accesses.
__device__ inline uint64_t global_timer() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds)::"memory");
  return nanoseconds;
}

}  // namespace tessera::ptx
