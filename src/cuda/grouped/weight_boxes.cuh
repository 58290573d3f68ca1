// The weight side of a stage: which boxes of the weights a tile multiplies by, brought by TMA.
//
// A tile takes C::kBoxes boxes of C::kBoxRows weight rows: in turns gate and up rows of the same columns, or row blocks
// one after another.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/grouped/problem.h"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::grouped {

// The weights of this shard's experts, and of the shared experts that follow them; maps of tensor_maps.h.
struct WeightMaps {
  __device__ WeightMaps(const CUtensorMap& routed_map, const CUtensorMap& shared_map, const Problem& problem)
      : routed(routed_map),
        shared(shared_map),
        num_routed_experts(problem.num_experts),
        front(problem.weight_front),
        gate_half(problem.gate_up_order == GateUpOrder::up_first ? 1 : 0) {}

  const CUtensorMap& routed;
  const CUtensorMap& shared;
  int32_t num_routed_experts;
  int32_t front;      // rows of gate_up, columns of down, that lie before the weight: TMA gives 0 for them
  int32_t gate_half;  // 1: the first of the weight's two halves is up; in the tile gate always comes first
};

// Loads box `box` of the tile's weights, columns k_begin on, to `target`; with kMulticastCtas > 1 into that many CTAs
// of the cluster. Coordinates are innermost first: K, row, gate/up, expert.
template <class C, int kMulticastCtas>
__device__ inline void load_weight_box(const WeightMaps& weights, const TileSlot& tile, void* target, uint64_t* barrier,
                                       int32_t k_begin, int box) {
  constexpr Role kRole = C::kRole;
  constexpr bool kGated = kRole == Role::gate_up;
  const int32_t row = kGated ? (tile.n_block * (C::kBoxes / 2) + box / 2) * C::kBoxRows
                             : (tile.n_block * C::kBoxes + box) * C::kBoxRows;
  const bool is_routed = tile.expert < weights.num_routed_experts;
  const CUtensorMap& map = is_routed ? weights.routed : weights.shared;
  const int32_t expert = is_routed ? tile.expert : tile.expert - weights.num_routed_experts;
  const int32_t coordinates[4] = {kRole == Role::down ? k_begin - weights.front : k_begin,
                                  kRole == Role::down ? row : row - weights.front,
                                  kGated ? box % 2 ^ weights.gate_half : 0, expert};
  if constexpr (kMulticastCtas > 1) {
    constexpr uint16_t kWholeCluster = (1u << kMulticastCtas) - 1;
    ptx::tma_load_4d_multicast(target, &map, coordinates, barrier, kWholeCluster);
  } else {
    ptx::tma_load_4d(target, &map, coordinates, barrier);
  }
}

}  // namespace tessera::grouped
