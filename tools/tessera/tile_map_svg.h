// A picture of a predicted run: one row a cluster, one rectangle a tile, coloured by expert, time to the right.
#pragma once

#include <string>

#include "moe/model/explain.h"

namespace tessera::cli {

/// Plan, GEMM 1, GEMM 2 and combine one behind the other, with a legend and the floor of the time. Every <rect> of the
/// file is a tile; hovering names it.
std::string tile_map_svg(const std::string& title, const moe::Explanation& plan);

/// "#rrggbb" of an expert's tiles, which every converter knows: hue by expert, dark in GEMM 2, pale where the tile
/// waits for memory.
std::string tile_color(int32_t expert, bool is_second, bool waits_for_memory);

/// Whether the run of a tile takes longer than its products.
bool waits_for_memory(const moe::ExplainedTile& tile, const moe::TileRun& run);

/// "cluster" or, where each stands alone, "CTA": what a row of the picture is.
std::string lane_name(const moe::Explanation& plan);

}  // namespace tessera::cli
