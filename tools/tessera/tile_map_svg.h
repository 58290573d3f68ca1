// A picture of a predicted run: one lane a cluster, one rectangle a tile, coloured by expert, time to the right.
#pragma once

#include <string>

#include "moe/model/explain.h"

namespace tessera::cli {

/// GEMM 1 and, from where it ends, GEMM 2. Every rectangle of the file is a tile; hovering names it.
std::string tile_map_svg(const std::string& title, const moe::Explanation& plan);

}  // namespace tessera::cli
