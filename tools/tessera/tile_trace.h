// A predicted run as a trace that Perfetto and chrome://tracing show: a track a cluster, a slice a tile.
#pragma once

#include <string>

#include "moe/model/explain.h"

namespace tessera::cli {

/// JSON in the Trace Event Format; times are microseconds.
std::string tile_trace(const std::string& title, const moe::Explanation& plan);

}  // namespace tessera::cli
