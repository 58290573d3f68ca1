// Expert GEMM: for every expert e and its routed rows r,   out[r, :] = act(A[r, :] * W[e]^T + bias[e])   in one launch.
//
//   gate_up, up_only   A[r] = tokens[row_token[r]]  [T, H]    W [E, 2I, H] or [E, I, H]    out [R, I]
//   down               A[r] = intermediate row r    [R, I]    W [E, H, I]                  out [R, H]
//
// A CTA has three warpgroups. Per tile of 128 rows x 256 weight rows, per K step of 64:
//
//   scheduling     takes a tile number, decodes it, publishes a TileSlot       --tile_full-->  all other roles
//   loading warp   waits empty[s], TMA: half or all of W, in GEMM 2 also A     --full[s]--+
//                  (in GEMM 1 the same warp schedules, in GEMM 2 another)                 +--> consumers
//   gather warps   GEMM 1, three: wait empty[s], cp.async: 128 token rows      --full[s]--+
//   2 consumer WGs 64 rows each: wait full[s], 4 x WGMMA m64n256k16, one group kept in flight, arrive empty[s] of both
//                  CTAs; at the end activation, stmatrix, TMA stores that drain while the next tile is multiplied
//
// What is not this kernel's own lies in cuda/grouped: scheduler, gather, boxes of weights, epilogue.
#pragma once

#include <cuda.h>

#include "cuda/cta/mainloop.cuh"
#include "cuda/cta/mark.cuh"
#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/grouped/epilogue.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/row_gather.cuh"
#include "cuda/grouped/scheduler.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/grouped/weight_boxes.cuh"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::kernels::expert_gemm {

using grouped::Problem;
using grouped::Role;
using grouped::TileSlot;

// What a role's kernel is compiled for. Tuning: see launch.cu.
template <Role kRole_, class Tuning>
struct Config {
  using Element = typename Tuning::Element;
  static constexpr Role kRole = kRole_;
  static constexpr Policy kPolicy = default_policy(kRole, Tuning::kClusterSize);
  static constexpr bool kMarked = Tuning::kMarked;

  static constexpr int kCluster = kPolicy.cluster_size;
  static constexpr int kStages = kPolicy.stages;
  static constexpr int kTileK = kPolicy.tile_k;
  static constexpr int kBoxRows = 128;  // rows of one weight box: half a tile, one CTA's share of a tall tile
  static constexpr int kStageRowBytes = kTileK * static_cast<int>(sizeof(Element));
  static constexpr int kABytes = kPolicy.tile_rows * kStageRowBytes;
  static constexpr int kBBytes = kPolicy.tile_columns * kStageRowBytes;
  static constexpr int kBoxBytes = kBoxRows * kStageRowBytes;
  static constexpr int kOutColumns = grouped::tile_out_columns(kRole, kPolicy.tile_columns);

  static constexpr int kWarpgroupThreads = 128;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kThreads = kWarpgroupThreads * (1 + kConsumers);
  static constexpr int kGatherWarps = kPolicy.gather_warps;
  static constexpr bool kGathers = kGatherWarps > 0;
  // Warps that read a TileSlot: in GEMM 1 the loading warp is the one that writes it.
  static constexpr int kTileReaders = (kGathers ? kGatherWarps : 1) + kConsumerWarps;

  using Accumulators = ptx::Fragment<kPolicy.tile_columns>;
  using RowGather = grouped::RowGather<kPolicy.tile_rows, kGatherWarps>;
  using TileScheduler = grouped::TileScheduler<kCluster>;

  static_assert(kPolicy.tile_rows == kConsumers * cta::kWarpgroupRows && kStageRowBytes == cta::kSwizzleRowBytes);
  static_assert(kPolicy.tile_columns == 2 * kBoxRows && 1 + kGatherWarps <= 4);
};

template <class C>
struct SharedStorage {
  alignas(1024) uint8_t a[C::kStages][C::kABytes];
  alignas(1024) uint8_t b[C::kStages][C::kBBytes];
  alignas(1024) uint8_t staging[C::kConsumerWarps][C::kPolicy.staging_passes][grouped::kStagingBytes];
  grouped::TileMailbox mailbox;
  uint64_t full[C::kStages];   // bytes of TMA + arrivals of the gather threads
  uint64_t empty[C::kStages];  // every consumer warp of the cluster
};

template <class C>
__device__ inline void init_barriers(SharedStorage<C>& smem) {
  for (int s = 0; s < C::kStages; ++s) {
    ptx::mbarrier_init(&smem.full[s], 1 + C::kGatherWarps * 32);
    ptx::mbarrier_init(&smem.empty[s], C::kConsumerWarps * C::kCluster);
  }
  grouped::init_mailbox(smem.mailbox, C::kTileReaders);
  ptx::fence_mbarrier_init();
}

template <class C>
__device__ inline int num_k_steps(const Problem& problem) {
  return (problem.sum_length(C::kRole) + C::kTileK - 1) / C::kTileK;
}

template <class C>
__device__ inline typename C::TileScheduler make_scheduler(SharedStorage<C>& smem, const Problem& problem,
                                                           const grouped::LaunchOptions& options) {
  constexpr int kGemm = grouped::gemm_idx(C::kRole);
  return {smem.mailbox, problem.plan, kGemm, problem.tilings[kGemm], options.back_every};
}

// By one thread: announces the bytes of the stage and starts its TMA loads. Of a tile whose weights the cluster shares,
// each CTA loads one box into all.
template <class C>
__device__ inline void load_boxes(SharedStorage<C>& smem, const grouped::WeightMaps& weights, const CUtensorMap& a_map,
                                  const TileSlot& tile, int stage, int32_t k_begin) {
  constexpr uint32_t kStageBytes = C::kBBytes + (C::kGathers ? 0 : C::kABytes);
  uint64_t* const full = &smem.full[stage];
  ptx::mbarrier_arrive_expect_tx(full, kStageBytes);
  if constexpr (!C::kGathers) ptx::tma_load_2d(smem.a[stage], &a_map, k_begin, tile.row_begin, full);
  if (C::kCluster > 1 && tile.shares_weights) {
    const int half = static_cast<int>(ptx::cluster_cta_rank());
    grouped::load_weight_box<C::kRole, C::kBoxRows, C::kCluster>(weights, tile, smem.b[stage] + half * C::kBoxBytes,
                                                                 full, k_begin, half);
  } else {
    grouped::load_weight_box<C::kRole, C::kBoxRows, 1>(weights, tile, smem.b[stage], full, k_begin, 0);
    grouped::load_weight_box<C::kRole, C::kBoxRows, 1>(weights, tile, smem.b[stage] + C::kBoxBytes, full, k_begin, 1);
  }
}

// Consumers of both CTAs have released the stage: a multicast box also lands in the other CTA.
template <class C>
__device__ inline void wait_until_empty(SharedStorage<C>& smem, const cta::RingPosition<C::kStages>& ring) {
  cta::wait_phase(&smem.empty[ring.stage], ring.phase ^ 1);
}

template <class C>
__device__ inline void load_step(SharedStorage<C>& smem, const grouped::WeightMaps& weights, const CUtensorMap& a_map,
                                 const TileSlot& tile, cta::RingPosition<C::kStages>& ring, int step) {
  wait_until_empty(smem, ring);
  if (threadIdx.x % 32 == 0) load_boxes(smem, weights, a_map, tile, ring.stage, step * C::kTileK);
  ring.advance();
  __syncwarp();
}

// The first warp of GEMM 1, whose other three gather: loads weights, and meanwhile chooses the next tile, in parts that
// never wait long.
template <class C>
__device__ inline void load_and_schedule(SharedStorage<C>& smem, const grouped::WeightMaps& weights,
                                         const CUtensorMap& a_map, const Problem& problem,
                                         const grouped::LaunchOptions& options) {
  constexpr int kForwardStep = 2;
  constexpr int kPublishStep = C::kStages + 1;  // a stage was reused: the consumers have begun this tile
  const int num_steps = num_k_steps<C>(problem);
  auto scheduler = make_scheduler<C>(smem, problem, options);
  cta::RingPosition<C::kStages> ring;
  scheduler.request();
  scheduler.forward();
  TileSlot tile = scheduler.publish();
  while (tile.expert >= 0) {
    TileSlot next = tile;
    scheduler.request();
    for (int step = 0; step < num_steps; ++step) {
      load_step(smem, weights, a_map, tile, ring, step);
      if (step == min(kForwardStep, num_steps - 1)) scheduler.forward();
      if (step == min(kPublishStep, num_steps - 1)) next = scheduler.publish();
    }
    tile = next;
  }
}

// GEMM 2 has warps to spare: one loads, one chooses tiles.
template <class C>
__device__ inline void load_tiles(SharedStorage<C>& smem, const grouped::WeightMaps& weights, const CUtensorMap& a_map,
                                  const Problem& problem) {
  const int num_steps = num_k_steps<C>(problem);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  while (true) {
    const TileSlot tile = grouped::next_tile(smem.mailbox, tile_phase);
    if (tile.expert < 0) return;
    for (int step = 0; step < num_steps; ++step) load_step(smem, weights, a_map, tile, ring, step);
  }
}

template <class C>
__device__ inline void schedule_tiles(SharedStorage<C>& smem, const Problem& problem,
                                      const grouped::LaunchOptions& options) {
  auto scheduler = make_scheduler<C>(smem, problem, options);
  TileSlot tile{};
  while (tile.expert >= 0) {
    scheduler.request();
    scheduler.forward();
    tile = scheduler.publish();
  }
}

// The other loading warps of GEMM 1.
template <class C>
__device__ inline void gather_tiles(SharedStorage<C>& smem, const Problem& problem, int warp) {
  constexpr int kElementBytes = sizeof(typename C::Element);
  const int32_t row_bytes = problem.hidden_size * kElementBytes;
  typename C::RowGather gather(smem.a, {problem.tokens, problem.plan.row_token, row_bytes}, warp);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  while (true) {
    const TileSlot tile = grouped::next_tile(smem.mailbox, tile_phase);
    if (tile.expert < 0) return;
    gather.select(tile);
    for (int32_t begin = 0; begin < row_bytes; begin += C::kStageRowBytes) {
      wait_until_empty(smem, ring);
      gather.load(ring.stage, row_bytes - begin);
      ptx::cp_async_arrive_noinc(&smem.full[ring.stage]);
      ring.advance();
    }
  }
}

// A consumer warpgroup: 64 rows of the tile, from shared memory through the tensor cores to global memory.
template <class C>
__device__ inline void consume(SharedStorage<C>& smem, const CUtensorMap& out_map, const Problem& problem,
                               int warpgroup) {
  using Element = typename C::Element;
  const int warp_in_group = static_cast<int>(threadIdx.x) / 32 % 4;
  const int num_steps = num_k_steps<C>(problem);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  typename C::Accumulators acc;
  while (true) {
    const TileSlot tile = grouped::next_tile(smem.mailbox, tile_phase);
    if (tile.expert < 0) break;
    if (tile.num_rows <= warpgroup * cta::kWarpgroupRows) {
      cta::skip_k_steps<C::kCluster>(smem, ring, num_steps);
      continue;
    }
    cta::multiply_k_steps<Element, C::kPolicy.tile_columns, C::kCluster, C::kGathers>(smem, ring, num_steps, warpgroup,
                                                                                      acc);
    if (problem.bias(C::kRole) != nullptr && tile.expert < problem.num_experts)
      grouped::add_bias<C::kRole, Element>(acc, problem, tile);
    grouped::activate<C::kRole>(problem.activation, acc);
    const int row_in_tile = warpgroup * cta::kWarpgroupRows + warp_in_group * grouped::kStagingRows;
    const grouped::OutRows out{out_map,
                               problem.out(C::kRole),
                               problem.out_columns(C::kRole),
                               tile.row_begin + row_in_tile,
                               tile.num_rows - row_in_tile,
                               tile.n_block * C::kOutColumns};
    grouped::store_tile<Element, C::kOutColumns>(smem.staging[warpgroup * 4 + warp_in_group], out, acc);
  }
  if (threadIdx.x % 32 == 0) ptx::bulk_wait_read();  // shared memory outlives the stores that read it
}

template <Role kRole, class Tuning>
__global__ void __launch_bounds__(Config<kRole, Tuning>::kThreads, 1)
    expert_gemm_kernel(const __grid_constant__ CUtensorMap weight_map,
                       const __grid_constant__ CUtensorMap shared_weight_map, const __grid_constant__ CUtensorMap a_map,
                       const __grid_constant__ CUtensorMap out_map, const __grid_constant__ Problem problem,
                       const __grid_constant__ grouped::LaunchOptions options) {
  using C = Config<kRole, Tuning>;
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<C>*>(shared_bytes);
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);  // uniform for the compiler
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

  const grouped::WeightMaps weight_maps(weight_map, shared_weight_map, problem);
  if constexpr (C::kGathers) {
    if (warp == 0) load_and_schedule<C>(smem, weight_maps, a_map, problem, options);
    if (warp > 0 && warpgroup == 0) gather_tiles<C>(smem, problem, warp - 1);
  } else {
    if (warp == 0) load_tiles<C>(smem, weight_maps, a_map, problem);
    if (warp == 1) schedule_tiles<C>(smem, problem, options);
  }
  if (warpgroup > 0) consume<C>(smem, out_map, problem, warpgroup - 1);
  // No CTA leaves while the other may still arrive on its barriers.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  cta::mark_end<C::kMarked>(options.marks);
}

}  // namespace tessera::kernels::expert_gemm
