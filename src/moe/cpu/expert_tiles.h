// The launch that gate_up and down have in common: which rows and columns of which expert make a tile.
//
//   tile of a product = (up to a product's tallest tile of rows of one expert) x (a run of column panels)
//
//   launch_expert_tiles(run, &ExpertProducts::down, down_tile);
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/cpu/steps.h"

namespace tessera::moe::cpu_steps {

/// Rows [first_row, first_row + num_rows) of all routed rows or, shared, of all tokens; panels [panel_begin,
/// panel_end) of the task's product.
struct RowTile {
  int32_t task;
  bool is_shared;
  const ExpertProducts& expert;
  int64_t first_row;
  int64_t num_rows;
  int64_t panel_begin;
  int64_t panel_end;
};

/// Of the thread that computes a tile; see LayerProducts.
struct TileScratch {
  std::byte* a;
  float* c;
  float* decoded;
  std::byte* library;
};

using ComputeTile = void(const CpuRun& run, const RowTile& tile, const TileScratch& scratch);

/// Every tile of one of the experts' two products, heavy experts first.
void launch_expert_tiles(const CpuRun& run, PanelProduct ExpertProducts::*product, ComputeTile* compute);

}  // namespace tessera::moe::cpu_steps
