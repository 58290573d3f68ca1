// The tile scheduler: takes tile numbers from the plan's ticket counter and publishes decoded tiles to its CTA.
//
// Tickets are taken one tile ahead, so a cluster that is slow (few rows, cold weights) simply takes fewer. Which
// cluster computes a tile does not change its bits. The list has two ends: clusters chosen by `back_every` take from
// the back, where a heavy-first order has the experts with few rows, so that their weights stream from HBM while the
// other clusters keep the tensor cores busy. One 64-bit counter serves both ends: a ticket (f from the front, b from
// the back, before this one) is valid iff f + b < num_tiles, so every tile is taken exactly once.
#pragma once

#include "cuda/grouped/plan_view.h"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/grouped/tiling.h"
#include "cuda/ptx/cluster.cuh"
#include "tessera/batching/decode_warp.cuh"

namespace tessera::grouped {

inline constexpr uint32_t kNoTile = 0xFFFFFFFFu;

__device__ inline uint32_t take_ticket(const PlanView& plan, int gemm, int32_t num_tiles, bool from_back) {
  auto* tickets = reinterpret_cast<unsigned long long*>(&plan.header->tile_tickets[gemm]);
  const unsigned long long before = atomicAdd(tickets, from_back ? 1ull << 32 : 1ull);
  const uint32_t front = static_cast<uint32_t>(before);
  const uint32_t back = static_cast<uint32_t>(before >> 32);
  const uint32_t total = static_cast<uint32_t>(num_tiles);
  if (front + back >= total) return kNoTile;
  return from_back ? total - 1 - back : front;
}

// The part of a ticket's tile that CTA `rank` of the cluster computes; all lanes of a warp call it.
__device__ inline TileSlot decode_tile(const PlanView& plan, int gemm, const Tiling& tiling, uint32_t ticket,
                                       int32_t num_tasks, int32_t rank) {
  const batching::TilePrefix prefix{plan.tile_end[gemm], num_tasks};
  const batching::TileCoord coord = batching::decode_warp(batching::DeviceWarp{}, prefix, static_cast<int32_t>(ticket));
  const int32_t expert = plan.task_order[coord.task_idx];
  const int32_t first_row = plan.expert_offsets[expert];
  const int32_t rows = plan.expert_offsets[expert + 1] - first_row;
  const CtaTile tile = tiling.cta_tile(rows, coord.tile_idx, rank);
  const bool idle = tile.n_block >= tiling.num_n_blocks;
  return {expert, first_row + tile.row_begin, idle ? 0 : tile.num_rows, tile.n_block, tile.shares_weights};
}

// One warp's. request, forward and publish, in this order, for each tile; they may lie apart, so that none waits long.
template <int kCluster>
class TileScheduler {
 public:
  // back_every > 0: every back_every-th cluster takes from the back. References must outlive the scheduler.
  __device__ TileScheduler(TileMailbox& mailbox, const PlanView& plan, int gemm, const Tiling& tiling,
                           int32_t back_every)
      : mailbox_(mailbox),
        plan_(plan),
        tiling_(tiling),
        gemm_(gemm),
        num_tiles_(plan.header->num_tiles[gemm]),
        num_tasks_(plan.header->num_tasks),
        rank_(kCluster > 1 ? static_cast<int32_t>(ptx::cluster_cta_rank()) : 0) {
    const int32_t cluster = static_cast<int32_t>(blockIdx.x) / kCluster;
    from_back_ = back_every > 0 && cluster % back_every == back_every - 1;
  }

  // Takes a ticket; nobody waits for it yet.
  __device__ void request() {
    if (rank_ == 0 && is_lane_0()) ticket_ = take_ticket(plan_, gemm_, num_tiles_, from_back_);
  }

  // CTA 0: sends the ticket to the other CTA. The other CTA: announces that it will come.
  __device__ void forward() {
    if constexpr (kCluster > 1) {
      if (!is_lane_0()) return;
      if (rank_ == 0) {
        cta::wait_phase_cluster(&mailbox_.grant_empty, phase_ ^ 1);  // the other CTA has read the last grant
        ptx::store_async_u32(ptx::map_to_cta(&mailbox_.granted_tile, 1), ticket_,
                             ptx::map_to_cta(&mailbox_.grant_full, 1));
      } else {
        ptx::mbarrier_arrive_expect_tx(&mailbox_.grant_full, sizeof(uint32_t));
      }
    }
  }

  // Publishes the decoded tile to the other warps of the CTA, and returns it.
  __device__ TileSlot publish() {
    __syncwarp();
    if (rank_ != 0) receive();
    const uint32_t ticket = __shfl_sync(0xFFFFFFFFu, ticket_, 0);
    TileSlot tile{-1, 0, 0, 0, 0};
    if (ticket != kNoTile) tile = decode_tile(plan_, gemm_, tiling_, ticket, num_tasks_, rank_);
    cta::wait_phase(&mailbox_.tile_empty, phase_ ^ 1);  // all readers have read the previous tile
    if (is_lane_0()) {
      mailbox_.tile = tile;
      ptx::mbarrier_arrive(&mailbox_.tile_full);
    }
    __syncwarp();
    phase_ ^= 1;
    return tile;
  }

 private:
  __device__ static bool is_lane_0() { return threadIdx.x % 32 == 0; }

  __device__ void receive() {
    cta::wait_phase_cluster(&mailbox_.grant_full, phase_);
    ticket_ = mailbox_.granted_tile;
    __syncwarp();  // every lane has read the grant before lane 0 gives the word back
    if (is_lane_0()) ptx::mbarrier_arrive_cluster(ptx::map_to_cta(&mailbox_.grant_empty, 0));
  }

  TileMailbox& mailbox_;
  const PlanView& plan_;
  const Tiling& tiling_;
  int gemm_;
  int32_t num_tiles_;
  int32_t num_tasks_;
  int32_t rank_;
  bool from_back_;
  uint32_t phase_ = 0;
  uint32_t ticket_ = kNoTile;
};

}  // namespace tessera::grouped
