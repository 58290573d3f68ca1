// Shared-memory barriers (mbarrier): one instruction a function, over the toolkit's cuda::ptx where it has the
// instruction.
#pragma once

#include <cuda/ptx>

#include <cstdint>

namespace tessera::ptx {

// Sets the number of arrivals a phase needs. Must be followed by fence_mbarrier_init() and a barrier before first use.
__device__ inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  ::cuda::ptx::mbarrier_init(barrier, arrivals);
}

// Makes initialised barriers visible to the cluster and to the asynchronous proxy.
__device__ inline void fence_mbarrier_init() {
  ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
}

// Arrives once; earlier writes of this thread are visible to whoever sees the phase complete.
__device__ inline void mbarrier_arrive(uint64_t* barrier) { ::cuda::ptx::mbarrier_arrive(barrier); }

// Arrives once on a barrier given by its cluster address (see map_to_cta), possibly in another CTA of the cluster. For
// giving back what was only read: it publishes no writes to the other CTA (release.cluster would cost a GPU-wide fence
// each time).
__device__ inline void mbarrier_arrive_cluster(uint32_t cluster_address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address) : "memory");
}

// Arrives once and announces `bytes` that asynchronous copies will deliver in this phase.
__device__ inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta, ::cuda::ptx::space_shared,
                                         barrier, bytes);
}

// True once the phase of this parity is complete; sleeps a bounded, hardware-chosen time before it says false.
__device__ inline bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  return ::cuda::ptx::mbarrier_try_wait_parity(barrier, parity);
}

// The same with visibility of what other CTAs of the cluster wrote before they arrived.
__device__ inline bool mbarrier_try_wait_cluster(uint64_t* barrier, uint32_t parity) {
  return ::cuda::ptx::mbarrier_try_wait_parity(::cuda::ptx::sem_acquire, ::cuda::ptx::scope_cluster, barrier, parity);
}

// This thread arrives on `barrier` when all its earlier cp.async have landed; the arrival is counted in the barrier's
// init.
__device__ inline void cp_async_arrive_noinc(uint64_t* barrier) {
  ::cuda::ptx::cp_async_mbarrier_arrive_noinc(barrier);
}

}  // namespace tessera::ptx
