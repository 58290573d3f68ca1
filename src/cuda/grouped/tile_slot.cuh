// A tile on its way from the warp that chooses it to the warps of the CTA that work on it.
//
//   scheduling warp   waits tile_empty, writes the slot, arrives tile_full      (scheduler.cuh)
//   reading warps     next_tile: wait tile_full, read the slot, arrive tile_empty
//
// One slot is enough: a tile is published while the one before it is multiplied.
#pragma once

#include <cstdint>

#include "cuda/cta/pipeline.cuh"

namespace tessera::grouped {

// A tile as the roles of one CTA see it.
struct TileSlot {
  int32_t expert;     // -1: no more tiles
  int32_t row_begin;  // routed row
  int32_t num_rows;   // 0..tile_rows
  int32_t n_block;
  int32_t shares_weights;
};

// In shared memory.
struct TileMailbox {
  TileSlot tile;
  uint32_t granted_tile;             // written by CTA 0 of the cluster into the others
  uint64_t tile_full, tile_empty;    // TileSlot published / read by all lanes of the reading warps
  uint64_t grant_full, grant_empty;  // granted_tile of this CTA written / the other CTA's read
};

// By one thread, before the barriers' fence.
__device__ inline void init_mailbox(TileMailbox& mailbox, int reading_warps) {
  ptx::mbarrier_init(&mailbox.tile_full, 1);
  ptx::mbarrier_init(&mailbox.tile_empty, reading_warps * 32);
  ptx::mbarrier_init(&mailbox.grant_full, 1);
  ptx::mbarrier_init(&mailbox.grant_empty, 1);
}

// Reads the next TileSlot; all lanes of a reading warp call it, and each gives the slot back for itself. `phase` starts
// at 0.
__device__ inline TileSlot next_tile(TileMailbox& mailbox, uint32_t& phase) {
  cta::wait_phase(&mailbox.tile_full, phase);
  const TileSlot tile = mailbox.tile;
  phase ^= 1;
  ptx::mbarrier_arrive(&mailbox.tile_empty);
  return tile;
}

}  // namespace tessera::grouped
