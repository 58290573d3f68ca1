// The multiplying warpgroups of the expert GEMM: a tile's sums in two halves of its columns, so that one half is
// finished (bias, activation, stores) while the tensor cores work on the other.
//
//   steps of K   0 1 | 2 ..... n-3 | n-2 n-1 | 0 1 of the next tile | 2 ..
//   products     l h |   l and h   |  l   h  |     l     h          | l and h
//   finished                             ^^^ l       ^^^ h              under the products above it
//
// In the first and the last kEdge steps the products of the low half (l) are issued before those of the high half (h);
// a stage of these steps is given back when both have read it, so the last of a tile and the first of the next fill the
// ring. ptxas wants a point at which nothing is in flight between the two halves that are finished under products
// (C7514), and no instruction that multiplies both halves (C7511): else it waits after every product.
#pragma once

#include <cuda.h>

#include "cuda/cta/mainloop.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/tile_epilogue.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace tessera::kernels::expert_gemm {

using grouped::Problem;
using grouped::Role;
using grouped::TileSlot;

template <class C>
using SharedStorage = grouped::TileStorage<C>;

// A consumer warpgroup: 64 rows of each tile, from shared memory through the tensor cores to global memory.
template <class C>
class Consumer {
 public:
  __device__ Consumer(SharedStorage<C>& smem, const CUtensorMap& out_map, const Problem& problem, int warpgroup)
      : smem_(smem),
        out_map_(out_map),
        problem_(problem),
        warpgroup_(warpgroup),
        a_(cta::wgmma_descriptor(cta::smem_address(smem.a) + warpgroup * cta::kWarpgroupRows * cta::kSwizzleRowBytes)),
        b_(cta::wgmma_descriptor(cta::smem_address(smem.b))) {}

  __device__ void run() {
    const int num_steps = grouped::num_k_steps<C>(problem_);
    if (num_steps < 2 * kEdge) {
      run_short(num_steps);
    } else {
      run_long(num_steps);
    }
    if (threadIdx.x % 32 == 0) ptx::bulk_wait_read();  // shared memory outlives the stores that read it
  }

 private:
  using Element = typename C::Element;
  static constexpr int kHalfColumns = C::kPolicy.part_columns;
  using Half = ptx::Fragment<kHalfColumns>;
  static constexpr int kEdge = C::kStages / 2;  // the last steps of a tile and the first of the next fill the ring
  static_assert(2 * kHalfColumns == C::kPolicy.tile_columns);

  __device__ void run_long(int num_steps) {
    Half low, high;
    TileSlot tile = next_with_rows(num_steps);
    while (tile.expert >= 0) {
      multiply_edge<0>(low, false);
      multiply_edge<1>(high, false);
      TileSlot next;
      while (true) {
        int held = kEdge;  // stages that are read by products in flight
        for (int step = 2 * kEdge; step < num_steps; ++step) {
          multiply(low, high, true);
          ptx::wgmma_wait<1>();
          release(held);
          held = 1;
        }
        multiply_edge<0>(low, true);
        ptx::wgmma_wait<1>();
        release(held);
        multiply_edge<1>(high, true);
        ptx::wgmma_wait<1>();
        finish(tile, 0, low);
        next = grouped::next_tile(smem_.mailbox, tile_phase_);
        ptx::wgmma_wait<0>();
        release(kEdge);
        if (!has_rows(next)) break;
        multiply_edge<0>(low, false);
        finish(tile, 1, high);
        multiply_edge<1>(high, false);
        tile = next;
      }
      finish(tile, 1, high);
      tile = skip_without_rows(next, num_steps);
    }
  }

  // Sums of fewer steps than two edges have.
  __device__ void run_short(int num_steps) {
    Half low, high;
    TileSlot tile = next_with_rows(num_steps);
    while (tile.expert >= 0) {
      for (int step = 0; step < num_steps; ++step) multiply(low, high, step > 0);
      ptx::wgmma_wait<0>();
      release(num_steps);
      finish(tile, 0, low);
      finish(tile, 1, high);
      tile = next_with_rows(num_steps);
    }
  }

  __device__ bool has_rows(const TileSlot& tile) const {
    return tile.expert >= 0 && tile.num_rows > warpgroup_ * cta::kWarpgroupRows;
  }

  __device__ TileSlot skip_without_rows(TileSlot tile, int num_steps) {
    while (tile.expert >= 0 && !has_rows(tile)) {
      cta::skip_k_steps<C::kCluster>(smem_, ring_, num_steps);
      oldest_ = ring_.stage;
      tile = grouped::next_tile(smem_.mailbox, tile_phase_);
    }
    return tile;
  }

  __device__ TileSlot next_with_rows(int num_steps) {
    return skip_without_rows(grouped::next_tile(smem_.mailbox, tile_phase_), num_steps);
  }

  __device__ void wait(const cta::RingPosition<C::kStages>& at) {
    cta::wait_phase(&smem_.full[at.stage], at.phase);
    // Some of A was written by other threads' cp.async (generic proxy), WGMMA reads through the asynchronous one.
    if constexpr (C::kGathers) ptx::fence_proxy_async();
  }

  // One step of both halves, as a group.
  __device__ void multiply(Half& low, Half& high, bool accumulate) {
    wait(ring_);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < cta::kStageColumns / 16; ++i) {
      ptx::wgmma<Element, kHalfColumns>(low, a_of(ring_.stage, i), b_of(ring_.stage, i, 0), accumulate || i > 0);
      ptx::wgmma<Element, kHalfColumns>(high, a_of(ring_.stage, i), b_of(ring_.stage, i, 1), accumulate || i > 0);
    }
    ptx::wgmma_commit();
    ring_.advance();
  }

  // kEdge steps of one half, as a group. The ring goes on with the high half's.
  template <int kHalf>
  __device__ void multiply_edge(Half& half, bool accumulate) {
    cta::RingPosition<C::kStages> at = ring_;
#pragma unroll
    for (int step = 0; step < kEdge; ++step) {
      if constexpr (kHalf == 0) wait(at);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < cta::kStageColumns / 16; ++i) {
        ptx::wgmma<Element, kHalfColumns>(half, a_of(at.stage, i), b_of(at.stage, i, kHalf),
                                          accumulate || step > 0 || i > 0);
      }
      at.advance();
    }
    ptx::wgmma_commit();
    if constexpr (kHalf == 1) ring_ = at;
  }

  // Gives the oldest stages back.
  __device__ void release(int stages) {
    for (int i = 0; i < stages; ++i) {
      cta::release_stage<C::kCluster>(smem_, oldest_);
      oldest_ = oldest_ + 1 == C::kStages ? 0 : oldest_ + 1;
    }
  }

  __device__ void finish(TileSlot tile, int half, Half& sums) {
    tile.n_block = 2 * tile.n_block + half;
    const int warp_in_group = static_cast<int>(threadIdx.x) / 32 % 4;
    grouped::finish_tile<C>(smem_, out_map_, problem_, tile, warpgroup_, warp_in_group, sums);
  }

  __device__ uint64_t a_of(int stage, int i) const {
    return a_ + stage * (C::kABytes >> 4) + i * cta::kDescriptorKStep;
  }
  __device__ uint64_t b_of(int stage, int i, int half) const {
    return b_ + (stage * C::kBBytes + half * kHalfColumns * C::kStageRowBytes) / 16 + i * cta::kDescriptorKStep;
  }

  SharedStorage<C>& smem_;
  const CUtensorMap& out_map_;
  const Problem& problem_;
  const int warpgroup_;
  const uint64_t a_, b_;  // of stage 0
  cta::RingPosition<C::kStages> ring_;
  int oldest_ = 0;
  uint32_t tile_phase_ = 0;
};

}  // namespace tessera::kernels::expert_gemm
