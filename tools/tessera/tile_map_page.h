// Predicted runs as one page of HTML that needs nothing else: hovering names a tile, a slider goes through the plans.
#pragma once

#include <string>
#include <vector>

#include "moe/model/explain.h"

namespace tessera::cli {

struct TitledPlan {
  std::string title;
  moe::Explanation plan;
};

/// `plans`: at least one; those of several routings or token counts are what the slider goes through.
std::string tile_map_page(const std::vector<TitledPlan>& plans);

}  // namespace tessera::cli
