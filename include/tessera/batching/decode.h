// Flat tile -> (task, tile). `decode` is the definition; `decode_warp` is the form that a warp computes with one
// compare a lane and one ballot per 32 tasks, and must agree with it for every input.
//
//   TileCoord c = decode(prefix, flat_tile);                    // one thread
//   TileCoord c = decode_warp(warp, prefix, flat_tile);         // 32 lanes together, all get the same answer
//
// Cost: log2(num_tasks) dependent loads for `decode`; one ballot for up to 32 tasks, two for up to 1024, one more for
// every further 1024 for `decode_warp`. The caller keeps flat_tile in [0, prefix.num_tiles()).
#pragma once

#include <bit>
#include <cstdint>

#include "tessera/batching/tile_prefix.h"

namespace tessera::batching {

inline constexpr int32_t kWarpSize = 32;

namespace detail {

TESSERA_HOST_DEVICE constexpr TileCoord coord_in_task(TilePrefix prefix, int32_t task_idx, int32_t flat_tile) {
  return {task_idx, flat_tile - (task_idx == 0 ? 0 : prefix.tile_end[task_idx - 1])};
}

}  // namespace detail

/// The first task whose running total exceeds flat_tile.
TESSERA_HOST_DEVICE constexpr TileCoord decode(TilePrefix prefix, int32_t flat_tile) {
  int32_t begin = 0;
  int32_t end = prefix.num_tasks;
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (prefix.tile_end[middle] <= flat_tile) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return detail::coord_in_task(prefix, begin, flat_tile);
}

/// The same by ballots. `Warp` has one member, `uint32_t ballot(predicate)`, where predicate(lane) is true or false for
/// each of the 32 lanes; on the device each lane evaluates its own, HostWarp below evaluates them one after the other.
/// Up to 1024 tasks take two ballots: the first, over every 32nd entry, finds 32 neighbours; the second finds the task.
template <class Warp>
TESSERA_HOST_DEVICE constexpr TileCoord decode_warp(const Warp& warp, TilePrefix prefix, int32_t flat_tile) {
  int32_t first = 0;  // tasks before it have passed
  while (prefix.num_tasks - first > kWarpSize) {
    const uint32_t passed = warp.ballot([=](int32_t lane) {
      const int32_t last_of_group = first + lane * kWarpSize + kWarpSize - 1;
      return last_of_group < prefix.num_tasks && prefix.tile_end[last_of_group] <= flat_tile;
    });
    first += std::popcount(passed) * kWarpSize;
    if (passed != 0xFFFFFFFFu) break;  // totals do not decrease: no later group can have passed
  }
  const uint32_t passed = warp.ballot(
      [=](int32_t lane) { return first + lane < prefix.num_tasks && prefix.tile_end[first + lane] <= flat_tile; });
  return detail::coord_in_task(prefix, first + std::popcount(passed), flat_tile);
}

/// A warp on the host, for tests and for reading the algorithm without a GPU.
struct HostWarp {
  template <class Predicate>
  constexpr uint32_t ballot(Predicate predicate) const {
    uint32_t bits = 0;
    for (int32_t lane = 0; lane < kWarpSize; ++lane) {
      if (predicate(lane)) bits |= uint32_t{1} << lane;
    }
    return bits;
  }
};

}  // namespace tessera::batching
