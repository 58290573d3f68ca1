// Marks the time of an instant in a kernel's life, where that was asked for (cuda/core/marks.h).
//
// A kernel that can be marked is a template on bool kMarked: a branch on a null pointer, outside of every loop, was
// enough for ptxas to allocate the registers of the main loop differently.
#pragma once

#include "cuda/core/marks.h"
#include "cuda/ptx/timer.cuh"

namespace tessera::cta {

// By every thread of the CTA; thread `marker` marks. Atomics without a result: it does not wait for them.
template <bool kMarked>
__device__ inline void mark(cuda::KernelMarks* marks, cuda::MarkRange cuda::KernelMarks::*instant,
                            unsigned marker = 0) {
  if constexpr (kMarked) {
    if (threadIdx.x != marker) return;
    static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
    const unsigned long long now = ptx::global_timer();
    cuda::MarkRange& range = marks->*instant;
    atomicMin(reinterpret_cast<unsigned long long*>(&range.first), now);
    atomicMax(reinterpret_cast<unsigned long long*>(&range.last), now);
  }
}

// At a CTA's end, by every thread that has not left: the barrier makes the mark the last thread's. Thread 0 must be
// there.
template <bool kMarked>
__device__ inline void mark_end(cuda::KernelMarks* marks) {
  if constexpr (kMarked) {
    __syncthreads();  // every thread has done its work
    mark<kMarked>(marks, &cuda::KernelMarks::end);
  }
}

}  // namespace tessera::cta
