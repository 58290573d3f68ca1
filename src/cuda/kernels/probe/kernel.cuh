// A streaming read, and the step of the device's timer.
#pragma once

#include <cstdint>

#include "cuda/kernels/probe/policy.h"
#include "cuda/ptx/timer.cuh"

namespace tessera::kernels::probe {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int64_t kCtaChunks = int64_t{kPolicy.threads} * kPolicy.loads;

struct ReadParams {
  const uint4* data;   // [num_chunks]
  int64_t num_chunks;  // of 16 bytes
  uint32_t key;
  uint32_t* found;  // [1]
};

// The compiler cannot leave a load out: whether the key is found depends on every one.
__global__ void __launch_bounds__(kPolicy.threads, kPolicy.ctas_per_sm_min)
    read_kernel(const __grid_constant__ ReadParams params) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kCtaChunks + threadIdx.x;
  uint4 chunk[kPolicy.loads];
#pragma unroll
  for (int i = 0; i < kPolicy.loads; ++i) {
    const int64_t index = begin + int64_t{i} * kPolicy.threads;
    chunk[i] = index < params.num_chunks ? __ldcs(&params.data[index]) : make_uint4(0, 0, 0, 0);
  }
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kPolicy.loads; ++i) sum ^= chunk[i].x ^ chunk[i].y ^ chunk[i].z ^ chunk[i].w;
  if (sum == params.key) *params.found = 1;
}

// By one thread: the smallest step that the timer makes, of kTimerSteps.
inline constexpr int kTimerSteps = 64;

__global__ void timer_step_kernel(uint64_t* step) {
  uint64_t smallest = UINT64_MAX;
  uint64_t last = ptx::global_timer();
  for (int steps = 0; steps < kTimerSteps;) {
    const uint64_t now = ptx::global_timer();
    if (now == last) continue;
    smallest = now - last < smallest ? now - last : smallest;
    last = now;
    ++steps;
  }
  *step = smallest;
}

}  // namespace tessera::kernels::probe
