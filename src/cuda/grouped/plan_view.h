// Device arrays of a plan: which routed rows each expert has and how both expert GEMMs are cut into tiles.
//
// Built by the plan kernels (or copied from a host-built plan: kernels cannot tell). T tokens, k slots a token, E
// experts of this shard, R = num_rows <= T * k routed rows; where there are shared experts, k and E count theirs too.
// Routed rows are grouped by expert, and ordered by (token, slot) inside one.
#pragma once

#include <cstdint>

namespace tessera::grouped {

inline constexpr int kNumGemms = 2;

struct PlanHeader {
  int32_t num_rows;              // R
  int32_t num_tasks;             // experts with rows
  int32_t num_tiles[kNumGemms];  // of each GEMM
  // Tiles handed out so far: from the front (low half), from the back (high half).
  uint64_t tile_tickets[kNumGemms];
};

struct PlanView {
  PlanHeader* header;            // [1]
  int32_t* expert_counts;        // [E] rows of each expert
  int32_t* expert_offsets;       // [E + 1] first row of each expert; [E] is R
  int32_t* row_token;            // [T * k], first R used: token of each routed row
  int32_t* token_row;            // [T * k] routed row of (token, slot), -1 if its id is outside the shard
  int32_t* task_order;           // [E], first num_tasks used: expert at each launch rank
  int32_t* tile_end[kNumGemms];  // [E], first num_tasks used: tile prefix of each GEMM, by launch rank
  int32_t* chunk_counts;         // [num_chunks][E] scratch of the plan kernels
};

}  // namespace tessera::grouped
