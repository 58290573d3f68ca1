// The end of a tile: from a warpgroup's sums to the role's output.
#pragma once

#include <cuda.h>

#include "cuda/cta/mainloop.cuh"
#include "cuda/grouped/epilogue.cuh"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/quantize_rows.cuh"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/tile_slot.cuh"

namespace tessera::grouped {

// Bias, activation, rows: of the layer's type, or where the next product has e4m3 operands as such with their scales.
// By warp `warp_in_group` of consumer warpgroup `warpgroup`, whose 64 rows of the tile are in `acc`: all its columns,
// or a part of them that is a tile of kColumns weight rows for itself (`tile.n_block` counts such parts).
template <class C, int kColumns>
__device__ inline void finish_tile(TileStorage<C>& smem, const CUtensorMap& out_map, const Problem& problem,
                                   const TileSlot& tile, int warpgroup, int warp_in_group,
                                   ptx::Fragment<kColumns>& acc) {
  using Element = typename C::Element;
  constexpr bool kQuantizes = C::kHasScales && C::kRole != Role::down;
  constexpr int kRegisters = ptx::Fragment<kColumns>::kRegisters;
  constexpr int kOutColumns = tile_out_columns(C::kRole, kColumns);
  if constexpr (C::kWeightRowsScaled) scale_columns<C::kRole>(acc, problem, tile);
  if (problem.bias(C::kRole) != nullptr && tile.expert < problem.num_experts)
    add_bias<C::kRole, Element>(acc, problem, tile);
  if constexpr (kQuantizes) {
    if (problem.round_like_engines) round_to<Element, 0, kRegisters>(acc);
  }
  activate<C::kRole>(problem.activation, acc);
  if constexpr (kQuantizes) {
    if (problem.round_like_engines) round_to<Element, 0, kOutColumns / 2>(acc);
  }
  const int row_in_tile = warpgroup * cta::kWarpgroupRows + warp_in_group * kStagingRows;
  const OutRows out{out_map,
                    problem.out(C::kRole),
                    problem.out_columns(C::kRole),
                    tile.row_begin + row_in_tile,
                    tile.num_rows - row_in_tile,
                    tile.n_block * kOutColumns};
  auto& staging = smem.staging[warpgroup * 4 + warp_in_group];
  if constexpr (kQuantizes) {
    const float* const given = C::kWeightRowsScaled ? problem.given_scale(tile.expert) : nullptr;
    store_quantized<kOutColumns>(staging, out, problem.intermediate_scales, problem.scale_stride, acc, given);
  } else {
    store_tile<Element, kOutColumns>(staging, out, acc);
  }
}

}  // namespace tessera::grouped
