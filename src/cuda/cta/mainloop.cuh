// The multiplying side of a GEMM's ring: 64 rows of A in shared memory times the columns of B, stage after stage.
//
// A storage has, for each of its stages, a[stage] (rows of 64 elements), b[stage], full[stage] and empty[stage]; the
// producers fill them as pipeline.cuh says. With a cluster, a stage is given back to the producers of all its CTAs,
// because each of them may write into it.
#pragma once

#include <cstdint>

#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::cta {

inline constexpr int kWarpgroupRows = 64;
inline constexpr int kStageColumns = 64;  // elements of K a stage holds: one 128-byte row

// Gives a stage back to the producers of every CTA of the cluster. One arrival a warp and CTA: each warp vouches for
// its own WGMMA reads.
template <int kCluster, class Storage>
__device__ inline void release_stage(Storage& smem, int stage) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (kCluster > 1) {
    if (lane < kCluster) ptx::mbarrier_arrive_cluster(ptx::map_to_cta(&smem.empty[stage], lane));
  } else {
    if (lane == 0) ptx::mbarrier_arrive(&smem.empty[stage]);
  }
}

// The first kColumns of acc = A[64 rows of this warpgroup] * B^T over num_k_steps stages. One WGMMA group stays in
// flight.
template <class Element, int kColumns, int kCluster, class Storage, int kStages, int kWidth>
__device__ inline void multiply_k_steps(Storage& smem, RingPosition<kStages>& ring, int num_k_steps, int warpgroup,
                                        ptx::Fragment<kWidth>& acc) {
  const uint64_t a_desc = wgmma_descriptor(smem_address(smem.a) + warpgroup * kWarpgroupRows * kSwizzleRowBytes);
  const uint64_t b_desc = wgmma_descriptor(smem_address(smem.b));
  int previous_stage = 0;
  for (int step = 0; step < num_k_steps; ++step) {
    wait_phase(&smem.full[ring.stage], ring.phase);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kStageColumns / 16; ++i) {
      ptx::wgmma<Element, kColumns>(acc, a_desc + ring.stage * (sizeof(smem.a[0]) >> 4) + i * kDescriptorKStep,
                                    b_desc + ring.stage * (sizeof(smem.b[0]) >> 4) + i * kDescriptorKStep,
                                    step > 0 || i > 0);
    }
    ptx::wgmma_commit();
    if (step > 0) {
      ptx::wgmma_wait<1>();
      release_stage<kCluster>(smem, previous_stage);
    }
    previous_stage = ring.stage;
    ring.advance();
  }
  ptx::wgmma_wait<0>();
  release_stage<kCluster>(smem, previous_stage);
}

// A warpgroup without work in a tile keeps in step with the ring.
template <int kCluster, class Storage, int kStages>
__device__ inline void skip_k_steps(Storage& smem, RingPosition<kStages>& ring, int num_k_steps) {
  for (int step = 0; step < num_k_steps; ++step) {
    wait_phase(&smem.full[ring.stage], ring.phase);
    release_stage<kCluster>(smem, ring.stage);
    ring.advance();
  }
}

}  // namespace tessera::cta
