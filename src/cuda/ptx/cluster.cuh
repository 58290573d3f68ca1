// Thread-block clusters and programmatic dependent launch.
#pragma once

#include <cuda/ptx>

#include <cstdint>

namespace tessera::ptx {

// Rank of this CTA in its cluster.
__device__ inline uint32_t cluster_cta_rank() { return ::cuda::ptx::get_sreg_cluster_ctarank(); }

// Address, in the cluster's shared window, of the same shared variable in CTA `cta_rank`.
__device__ inline uint32_t map_to_cta(const void* smem, uint32_t cta_rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(smem))), "r"(cta_rank));
  return address;
}

// Writes 4 bytes into another CTA's shared memory and completes them on a barrier of that CTA.
__device__ inline void store_async_u32(uint32_t cluster_address, uint32_t value, uint32_t cluster_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(cluster_address),
               "r"(value), "r"(cluster_barrier)
               : "memory");
}

// Arrive with release and wait with acquire: every thread of the cluster has passed the first before any leaves the
// second.
__device__ inline void cluster_arrive() { ::cuda::ptx::barrier_cluster_arrive(); }
__device__ inline void cluster_wait() { ::cuda::ptx::barrier_cluster_wait(); }

// Lets the next kernel of the stream start its prologue; waits until the kernels before this one have finished and
// flushed.
__device__ inline void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ inline void wait_for_prerequisites() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace tessera::ptx
