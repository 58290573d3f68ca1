// How the CTAs of one launch do two products that depend on each other, whether or not all of them are resident.
//
// Each product is cut into as many even shares as there are CTAs. A CTA takes one by a ticket, and another as long as
// there are any: so the shares of the first product are all in the hands of CTAs that run before any CTA waits for one
// of its results, and those who wait never keep out those who are waited for. What is waited for are the results of one
// pass, counted by whoever writes them.
#pragma once

#include <cuda/atomic>

#include <cstdint>

#include "cuda/cta/pipeline.cuh"
#include "cuda/ptx/fail.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace tessera::kernels::expert_gemm_rows {

// The shares of a CTA, from the warp that takes them to all others. In shared memory.
struct ShareQueue {
  static constexpr int kPlaces = 2;
  static constexpr int kTakers = 7;  // warps

  uint32_t shares[kPlaces];
  uint64_t full[kPlaces];
  uint64_t empty[kPlaces];

  // By one thread.
  __device__ void init() {
    for (int place = 0; place < kPlaces; ++place) {
      ptx::mbarrier_init(&full[place], 1);
      ptx::mbarrier_init(&empty[place], kTakers);
    }
  }
};

using SharePosition = cta::RingPosition<ShareQueue::kPlaces>;

// By all lanes of the one warp that gives. A share that is not there ends a product.
__device__ inline void give_share(ShareQueue& queue, SharePosition& at, uint32_t share) {
  cta::wait_phase(&queue.empty[at.stage], at.phase ^ 1);
  if (threadIdx.x % 32 == 0) {
    queue.shares[at.stage] = share;
    ptx::mbarrier_arrive(&queue.full[at.stage]);
  }
  at.advance();
}

// By all lanes of each of the other warps.
__device__ inline uint32_t take_share(ShareQueue& queue, SharePosition& at) {
  cta::wait_phase(&queue.full[at.stage], at.phase);
  const uint32_t share = queue.shares[at.stage];
  __syncwarp();  // every lane has read it
  if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&queue.empty[at.stage]);
  at.advance();
  return share;
}

// By one thread.
__device__ inline uint32_t take_ticket(uint32_t* ticket) { return atomicAdd(ticket, 1u); }

// By one lane, after __syncwarp: what the warp has written is seen by whoever has seen the count and calls
// `see_arrivals`. Returns the count before.
__device__ inline int32_t count_arrival(int32_t* counter) {
  return ::cuda::atomic_ref<int32_t, ::cuda::thread_scope_device>(*counter).fetch_add(1, ::cuda::memory_order_release);
}

// Empties L1, so it is for when all have arrived, not for each look at the count.
__device__ inline void see_arrivals() {
  ::cuda::atomic_thread_fence(::cuda::memory_order_acquire, ::cuda::thread_scope_device);
}

// By one thread a CTA, and not without a pause: the counts of all passes lie side by side, and hundreds of CTAs that
// look at them keep out those that count.
__device__ inline void wait_for_arrivals(int32_t* counter, int32_t expected) {
  constexpr unsigned kPauseNanoseconds = 100;
  const ::cuda::atomic_ref<int32_t, ::cuda::thread_scope_device> arrivals(*counter);
  for (uint32_t polls = 0; arrivals.load(::cuda::memory_order_relaxed) < expected; ++polls) {
    if (polls == cta::kMaxWaitPolls) ptx::fail();
    __nanosleep(kPauseNanoseconds);
  }
  see_arrivals();
}

}  // namespace tessera::kernels::expert_gemm_rows
