// The one array a batched launch needs: running totals of tiles over the tasks of the launch.
//
//   tasks of 3, 1 and 4 tiles:   tile_end = {3, 4, 8}      flat tiles 0 1 2 | 3 | 4 5 6 7
//   decode(prefix, 5) == {.task_idx = 2, .tile_idx = 1}
//
// Invariants: tile_end is non-decreasing and inclusive; tile_end[num_tasks - 1] is the number of tiles; a task whose
// entry equals its predecessor's is empty and owns no tile. Every flat tile in [0, num_tiles) belongs to exactly one
// (task, tile). After "Static batching of irregular workloads", arXiv 2501.16103.
#pragma once

#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera::batching {

struct TilePrefix {
  const int32_t* tile_end = nullptr;  ///< [num_tasks], host or device memory
  int32_t num_tasks = 0;

  TESSERA_HOST_DEVICE constexpr int32_t num_tiles() const { return num_tasks == 0 ? 0 : tile_end[num_tasks - 1]; }
};

/// A tile of a task. Straight from `decode`, task_idx is a position in the prefix (a rank); a plan's task_order maps it
/// to the caller's task.
struct TileCoord {
  int32_t task_idx = 0;
  int32_t tile_idx = 0;

  constexpr bool operator==(const TileCoord&) const = default;
};

}  // namespace tessera::batching
