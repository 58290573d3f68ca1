// The loading side of an expert GEMM: rings of A rows and weight boxes, and the warps that fill them.
//
//   scheduling     takes a tile number, decodes it, publishes a TileSlot           --tile_full-->  all other roles
//   loading warp   waits empty[s], TMA: half or all of W, in GEMM 2 also A         --full[s]--+
//                  (in GEMM 1 the same warp schedules, in GEMM 2 another)                     +--> consumers
//   gather warps   GEMM 1, three: wait empty[s], cp.async: rows of A               --full[s]--+
//
// By a kernel's config C (tile_config.cuh): what a stage holds is bytes here, whatever the elements.
#pragma once

#include <cuda.h>

#include "cuda/cta/pipeline.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/scales.cuh"
#include "cuda/grouped/scheduler.cuh"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/grouped/weight_boxes.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::grouped {

template <class C>
__device__ inline typename C::TileScheduler make_scheduler(TileStorage<C>& smem, const Problem& problem,
                                                           const LaunchOptions& options) {
  constexpr int kGemm = gemm_idx(C::kRole);
  return {smem.mailbox, problem.plan, kGemm, problem.tilings[kGemm], options.back_every};
}

// By one thread: announces the bytes of the stage and starts its TMA loads. Of a tile whose weights the cluster shares,
// each CTA loads its share of the boxes into all.
template <class C>
__device__ inline void load_boxes(TileStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                  const TileSlot& tile, int stage, int32_t k_begin) {
  constexpr uint32_t kScaleBytes = C::kHasScales ? sizeof(grouped::StageScales::rows) : 0;
  constexpr uint32_t kStageBytes = C::kBBytes + (C::kGathers ? 0 : C::kABytes + kScaleBytes);
  uint64_t* const full = &smem.full[stage];
  ptx::mbarrier_arrive_expect_tx(full, kStageBytes);
  if constexpr (!C::kGathers) ptx::tma_load_2d(smem.a[stage], &a_map, k_begin, tile.row_begin, full);
  if (C::kCluster > 1 && tile.shares_weights) {
    constexpr int kShare = C::kBoxes / C::kCluster;
    const int first = static_cast<int>(ptx::cluster_cta_rank()) * kShare;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      load_weight_box<C, C::kCluster>(weights, tile, smem.b[stage] + (first + i) * C::kBoxBytes, full, k_begin,
                                      first + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < C::kBoxes; ++i)
      load_weight_box<C, 1>(weights, tile, smem.b[stage] + i * C::kBoxBytes, full, k_begin, i);
  }
}

// Consumers of both CTAs have released the stage: a multicast box also lands in the other CTA.
template <class C>
__device__ inline void wait_until_empty(TileStorage<C>& smem, const cta::RingPosition<C::kStages>& ring) {
  cta::wait_phase(&smem.empty[ring.stage], ring.phase ^ 1);
}

// By a warp: one step of K of a tile. `scales` copies those of a stage that TMA brings, by some of the lanes.
template <class C, class Scales>
__device__ inline void load_step(TileStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                 const TileSlot& tile, cta::RingPosition<C::kStages>& ring, int step, Scales& scales) {
  wait_until_empty(smem, ring);
  if (threadIdx.x % 32 == 0) load_boxes(smem, weights, a_map, tile, ring.stage, step * C::kPolicy.tile_k);
  scales.load(ring.stage, &smem.full[ring.stage]);
  ring.advance();
  __syncwarp();
}

// The first warp of GEMM 1, whose other three gather: loads weights, and meanwhile chooses the next tile, in parts that
// never wait long.
template <class C>
__device__ inline void load_and_schedule(TileStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                         const Problem& problem, const LaunchOptions& options) {
  constexpr int kForwardStep = 2;
  constexpr int kPublishStep = C::kStages + 1;  // a stage was reused: the consumers have begun this tile
  const int num_steps = num_k_steps<C>(problem);
  NoScaleCopy scales;  // rows that are gathered have none
  auto scheduler = make_scheduler<C>(smem, problem, options);
  cta::RingPosition<C::kStages> ring;
  scheduler.request();
  scheduler.forward();
  TileSlot tile = scheduler.publish();
  while (tile.expert >= 0) {
    TileSlot next = tile;
    scheduler.request();
    for (int step = 0; step < num_steps; ++step) {
      load_step(smem, weights, a_map, tile, ring, step, scales);
      if (step == min(kForwardStep, num_steps - 1)) scheduler.forward();
      if (step == min(kPublishStep, num_steps - 1)) next = scheduler.publish();
    }
    tile = next;
  }
}

// The loading warp where rows come by TMA.
template <class C, class Scales>
__device__ inline void load_tiles(TileStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                  const Problem& problem, Scales scales) {
  const int num_steps = num_k_steps<C>(problem);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  while (true) {
    const TileSlot tile = next_tile(smem.mailbox, tile_phase);
    if (tile.expert < 0) return;
    scales.select(tile);
    for (int step = 0; step < num_steps; ++step) load_step(smem, weights, a_map, tile, ring, step, scales);
  }
}

template <class C>
__device__ inline void schedule_tiles(TileStorage<C>& smem, const Problem& problem, const LaunchOptions& options) {
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
__device__ inline void gather_tiles(TileStorage<C>& smem, const Problem& problem, int warp) {
  const int32_t row_bytes = problem.hidden_size * C::kElementBytes;
  typename C::RowGather gather(smem.a, {problem.tokens, problem.plan.row_token, row_bytes}, warp);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  while (true) {
    const TileSlot tile = next_tile(smem.mailbox, tile_phase);
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

// The first warpgroup's part: loads, gathers and chooses tiles until there are none. Where rows come by TMA, `scales`
// copies those of a stage.
template <class C, class Scales>
__device__ inline void load_warpgroup(TileStorage<C>& smem, const WeightMaps& weights, const CUtensorMap& a_map,
                                      const Problem& problem, const LaunchOptions& options, int warp, Scales scales) {
  if constexpr (C::kGathers) {
    if (warp == 0) load_and_schedule<C>(smem, weights, a_map, problem, options);
    if (warp > 0) gather_tiles<C>(smem, problem, warp - 1);
  } else {
    if (warp == 0) load_tiles<C>(smem, weights, a_map, problem, scales);
    if (warp == 1) schedule_tiles<C>(smem, problem, options);
  }
}

}  // namespace tessera::grouped
