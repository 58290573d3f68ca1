// What a kernel that works in tiles of 128 rows is made of: what it is compiled for, its shared memory, how its CTAs
// begin and end.
//
//   template <Role kRole, class Tuning>
//   struct Config : grouped::TileConfig<kRole, Tuning, default_policy(kRole, Tuning::kClusterSize)> {};
//
//   kernel:   enter<C>(smem, ...);  the first warpgroup: load_warpgroup (tile_loading.cuh);  the others: products and
//             finish_tile (tile_epilogue.cuh);  leave<C>(options);
//
// tile_launch.cuh launches it.
#pragma once

#include <cuda.h>
#include <cuda/std/type_traits>

#include "cuda/cta/mainloop.cuh"
#include "cuda/cta/mark.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/epilogue.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/row_gather.cuh"
#include "cuda/grouped/scales.cuh"
#include "cuda/grouped/scheduler.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::grouped {

// What a kernel is compiled for beside its role.
template <class Element_, int32_t kClusterSize_, bool kMarked_>
struct Tuning {
  using Element = Element_;
  static constexpr int32_t kClusterSize = kClusterSize_;
  static constexpr bool kMarked = kMarked_;  // see cta/mark.cuh
};

// What follows from a policy for a role's kernel. The policy is one of expert_gemm's kind: tile_rows, tile_columns,
// tile_k, stages, cluster_size, gather_warps, staging_passes.
template <Role kRole_, class Tuning, auto kPolicy_>
struct TileConfig {
  using Element = typename Tuning::Element;  // of biases and of GEMM 2's rows
  static constexpr bool kMarked = Tuning::kMarked;
  static constexpr Role kRole = kRole_;
  static constexpr auto kPolicy = kPolicy_;

  static constexpr int kCluster = kPolicy.cluster_size;
  static constexpr int kStages = kPolicy.stages;
  // Rows of one weight box. Half of a tile's boxes are one CTA's share of a tall tile. Where a tile is finished in
  // parts, each part of a gated tile has its gate and its up rows side by side.
  static constexpr int kBoxRows = kRole == Role::gate_up ? kPolicy.part_columns / 2 : 128;
  static constexpr int kStageRowBytes = cta::kSwizzleRowBytes;
  static constexpr int kElementBytes = kStageRowBytes / kPolicy.tile_k;  // of A and of the weights
  static constexpr int kABytes = kPolicy.tile_rows * kStageRowBytes;
  static constexpr int kBBytes = kPolicy.tile_columns * kStageRowBytes;
  static constexpr int kBoxBytes = kBoxRows * kStageRowBytes;
  static constexpr int kOutColumns = tile_out_columns(kRole, kPolicy.tile_columns);

  static constexpr int kWarpgroupThreads = 128;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kThreads = kWarpgroupThreads * (1 + kConsumers);
  static constexpr int kGatherWarps = kPolicy.gather_warps;
  static constexpr bool kGathers = kGatherWarps > 0;
  static constexpr bool kHasScales = kElementBytes == 1;
  static constexpr bool kWeightRowsScaled = false;  // a weight has a scale each row, see Problem
  using StageScales = ::cuda::std::conditional_t<kHasScales, grouped::StageScales, NoStageScales>;
  // That arrive when what they copied is there.
  static constexpr int kCopyThreads = kGathers ? kGatherWarps * 32 : kHasScales ? kScaleCopyLanes : 0;
  // Warps that read a TileSlot: in GEMM 1 the loading warp is the one that writes it.
  static constexpr int kTileReaders = (kGathers ? kGatherWarps : 1) + kConsumerWarps;

  using Accumulators = ptx::Fragment<kPolicy.tile_columns>;
  using RowGather = grouped::RowGather<kPolicy.tile_rows, kGatherWarps>;
  using TileScheduler = grouped::TileScheduler<kCluster>;

  static_assert(kPolicy.tile_rows == kConsumers * cta::kWarpgroupRows);
  static constexpr int kBoxes = kPolicy.tile_columns / kBoxRows;

  static_assert(kPolicy.tile_columns % (2 * kBoxRows) == 0 && 1 + kGatherWarps <= 4);
  static_assert(kElementBytes == sizeof(Element) || kElementBytes == 1, "operands of two bytes have the layer's type");
  static_assert(!kHasScales || kPolicy.tile_rows + kScaleAlignment == kTileScales);
};

template <class C>
struct TileStorage {
  alignas(1024) uint8_t a[C::kStages][C::kABytes];
  alignas(1024) uint8_t b[C::kStages][C::kBBytes];
  alignas(1024) uint8_t staging[C::kConsumerWarps][C::kPolicy.staging_passes][kStagingBytes];
  typename C::StageScales scales[C::kStages];
  TileMailbox mailbox;
  uint64_t full[C::kStages];   // bytes of TMA + arrivals of the copying threads
  uint64_t empty[C::kStages];  // every consumer warp of the cluster
};

template <class C>
__device__ inline void init_barriers(TileStorage<C>& smem) {
  for (int s = 0; s < C::kStages; ++s) {
    ptx::mbarrier_init(&smem.full[s], 1 + C::kCopyThreads);
    ptx::mbarrier_init(&smem.empty[s], C::kConsumerWarps * C::kCluster);
  }
  init_mailbox(smem.mailbox, C::kTileReaders);
  ptx::fence_mbarrier_init();
}

template <class C>
__device__ inline int num_k_steps(const Problem& problem) {
  return (problem.sum_length(C::kRole) + C::kPolicy.tile_k - 1) / C::kPolicy.tile_k;
}

// Of a thread in its CTA; uniform for the compiler.
struct WarpNumbers {
  int warp;
  int warpgroup;
};

// By all threads, first. What overlaps the end of the kernel before ends here.
template <class C>
__device__ inline WarpNumbers enter(TileStorage<C>& smem, const CUtensorMap& weight_map, const CUtensorMap& a_map,
                                    const CUtensorMap& out_map, const LaunchOptions& options) {
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);
  const int warpgroup = warp / 4;
  // A consumer marks: it waits for the first stage anyway.
  cta::mark<C::kMarked>(options.marks, &cuda::KernelMarks::begin, C::kWarpgroupThreads);
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    ptx::prefetch_tensor_map(&out_map);
    if constexpr (!C::kGathers) ptx::prefetch_tensor_map(&a_map);
    init_barriers(smem);
  }
  // Barriers are initialised before any thread of the cluster arrives on them.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
  ptx::wait_for_prerequisites();
  cta::mark<C::kMarked>(options.marks, &cuda::KernelMarks::work, C::kWarpgroupThreads);
  return {warp, warpgroup};
}

// By all threads, last.
template <class C>
__device__ inline void leave(const LaunchOptions& options) {
  // No CTA leaves while the other may still arrive on its barriers.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  cta::mark_end<C::kMarked>(options.marks);
}

}  // namespace tessera::grouped
