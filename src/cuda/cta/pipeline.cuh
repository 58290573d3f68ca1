// A ring of shared-memory stages between producers and consumers.
//
//   producer: wait(empty[stage], phase ^ 1), fill, arrive(full[stage])
//   consumer: wait(full[stage], phase), use, arrive(empty[stage])
//
// Both sides walk the ring with a RingPosition; the phase bit flips each time the ring wraps.
#pragma once

#include <cstdint>

#include "cuda/ptx/fail.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace tessera::cta {

template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// A correct pipeline never waits this long: about a second of polling, far more when the hardware suspends the thread.
// After it the kernel ends with an error instead of hanging the GPU.
inline constexpr uint32_t kMaxWaitPolls = 1u << 26;

__device__ inline void wait_phase(uint64_t* barrier, uint32_t parity) {
  for (uint32_t polls = 0; !ptx::mbarrier_try_wait(barrier, parity); ++polls) {
    if (polls == kMaxWaitPolls) ptx::fail();
  }
}

// For barriers on which another CTA of the cluster arrives: acquires at cluster scope.
__device__ inline void wait_phase_cluster(uint64_t* barrier, uint32_t parity) {
  for (uint32_t polls = 0; !ptx::mbarrier_try_wait_cluster(barrier, parity); ++polls) {
    if (polls == kMaxWaitPolls) ptx::fail();
  }
}

}  // namespace tessera::cta
