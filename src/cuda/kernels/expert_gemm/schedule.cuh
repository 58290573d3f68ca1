// The tile scheduler: takes tile numbers from the plan's ticket counter and publishes decoded tiles to its CTA.
//
// Tickets are taken one tile ahead, so a cluster that is slow (few rows, cold weights) simply takes fewer. Which
// cluster computes a tile does not change its bits. The list has two ends: clusters chosen by `back_every` take from
// the back, where a heavy-first order has the experts with few rows, so that their weights stream from HBM while the
// other clusters keep the tensor cores busy. One 64-bit counter serves both ends: a ticket (f from the front, b from
// the back, before this one) is valid iff f + b < num_tiles, so every tile is taken exactly once.
#pragma once

#include "cuda/kernels/expert_gemm/kernel.cuh"
#include "tessera/batching/decode_warp.cuh"

namespace tessera::kernels::expert_gemm {

inline constexpr uint32_t kNoTile = 0xFFFFFFFFu;

__device__ inline uint32_t take_ticket(const Params& params, int32_t num_tiles, bool from_back) {
  auto* tickets = reinterpret_cast<unsigned long long*>(&params.plan.header->tile_tickets[params.gemm_idx]);
  const unsigned long long before = atomicAdd(tickets, from_back ? 1ull << 32 : 1ull);
  const uint32_t front = static_cast<uint32_t>(before);
  const uint32_t back = static_cast<uint32_t>(before >> 32);
  const uint32_t total = static_cast<uint32_t>(num_tiles);
  if (front + back >= total) return kNoTile;
  return from_back ? total - 1 - back : front;
}

__device__ inline TileSlot decode_tile(const Params& params, uint32_t ticket, int32_t num_tasks, int32_t rank) {
  const batching::TilePrefix prefix{params.plan.tile_end[params.gemm_idx], num_tasks};
  const batching::TileCoord coord = batching::decode_warp(batching::DeviceWarp{}, prefix, static_cast<int32_t>(ticket));
  const int32_t expert = params.plan.task_order[coord.task_idx];
  const int32_t first_row = params.plan.expert_offsets[expert];
  const int32_t rows = params.plan.expert_offsets[expert + 1] - first_row;
  const cta::CtaTile tile = params.tiling.cta_tile(rows, coord.tile_idx, rank);
  const bool idle = tile.n_block >= params.tiling.num_n_blocks;
  return {expert, first_row + tile.row_begin, idle ? 0 : tile.num_rows, tile.n_block, tile.shares_weights};
}

// Chooses the next tile in three parts, so that the calling warp can load meanwhile. All lanes call all parts, in this
// order, once a tile; only CTA 0 of a cluster takes tickets, and hands them to the other CTA through its shared memory.
template <class C>
class TileScheduler {
 public:
  __device__ TileScheduler(SharedStorage<C>& smem, const Params& params)
      : smem_(smem),
        params_(params),
        num_tiles_(params.plan.header->num_tiles[params.gemm_idx]),
        num_tasks_(params.plan.header->num_tasks),
        rank_(C::kCluster > 1 ? static_cast<int32_t>(ptx::cluster_cta_rank()) : 0) {
    const int32_t cluster = static_cast<int32_t>(blockIdx.x) / C::kCluster;
    from_back_ = params.back_every > 0 && cluster % params.back_every == params.back_every - 1;
  }

  // Takes a ticket; nobody waits for it yet.
  __device__ void request() {
    if (rank_ == 0 && is_lane_0()) ticket_ = take_ticket(params_, num_tiles_, from_back_);
  }

  // CTA 0: sends the ticket to the other CTA. The other CTA: announces that it will come.
  __device__ void forward() {
    if constexpr (C::kCluster > 1) {
      if (!is_lane_0()) return;
      if (rank_ == 0) {
        cta::wait_phase_cluster(&smem_.grant_empty, phase_ ^ 1);  // the other CTA has read the last grant
        ptx::store_async_u32(ptx::map_to_cta(&smem_.granted_tile, 1), ticket_, ptx::map_to_cta(&smem_.grant_full, 1));
      } else {
        ptx::mbarrier_arrive_expect_tx(&smem_.grant_full, sizeof(uint32_t));
      }
    }
  }

  // Publishes the decoded tile to the other warps of the CTA, and returns it.
  __device__ TileSlot publish() {
    __syncwarp();
    if (rank_ != 0) receive();
    const uint32_t ticket = __shfl_sync(0xFFFFFFFFu, ticket_, 0);
    TileSlot tile{-1, 0, 0, 0, 0};
    if (ticket != kNoTile) tile = decode_tile(params_, ticket, num_tasks_, rank_);
    cta::wait_phase(&smem_.tile_empty, phase_ ^ 1);  // all readers have read the previous tile
    if (is_lane_0()) {
      smem_.tile = tile;
      ptx::mbarrier_arrive(&smem_.tile_full);
    }
    __syncwarp();
    phase_ ^= 1;
    return tile;
  }

 private:
  __device__ static bool is_lane_0() { return threadIdx.x % 32 == 0; }

  __device__ void receive() {
    cta::wait_phase_cluster(&smem_.grant_full, phase_);
    ticket_ = smem_.granted_tile;
    __syncwarp();  // every lane has read the grant before lane 0 gives the word back
    if (is_lane_0()) ptx::mbarrier_arrive_cluster(ptx::map_to_cta(&smem_.grant_empty, 0));
  }

  SharedStorage<C>& smem_;
  const Params& params_;
  int32_t num_tiles_;
  int32_t num_tasks_;
  int32_t rank_;
  bool from_back_;
  uint32_t phase_ = 0;
  uint32_t ticket_ = kNoTile;
};

}  // namespace tessera::kernels::expert_gemm
