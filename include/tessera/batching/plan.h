// The plan of one launch: which tasks have work, in what order, and the tile prefix over them.
//
//   const std::vector<int32_t> tiles_per_task = {4, 0, 1, 9};
//   BatchPlan plan(tiles_per_task, TaskOrder::heavy_first);
//   plan.task_order();     // {3, 0, 2}: rank among the non-empty tasks -> task; the empty task 1 costs nothing
//   plan.locate(10);       // {.task_idx = 0, .tile_idx = 1}
//
// Two stages: flat tile -> rank (decode over the prefix) -> task (task_order). Deterministic; O(tasks log tasks) to
// build. The plan owns its arrays; prefix() and task_order() are views of them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tessera/batching/decode.h"
#include "tessera/batching/tile_prefix.h"

namespace tessera::batching {

/// Order in which the non-empty tasks are laid out over the flat tiles. Results never depend on it, only time does.
enum class TaskOrder : uint8_t {
  natural,      ///< as numbered
  heavy_first,  ///< by falling cost (longest processing time first); ties by number
  interleaved,  ///< heaviest, lightest, second heaviest, second lightest, ...: compute and memory bound side by side
};

std::string_view task_order_name(TaskOrder order);

/// Ranks -> tasks for the tasks that have tiles. `cost_per_task` (any unit, finite, >= 0) decides what is heavy; empty
/// means the number of tiles.
std::vector<int32_t> task_order(std::span<const int32_t> tiles_per_task, TaskOrder order,
                                std::span<const double> cost_per_task = {});

class BatchPlan {
 public:
  BatchPlan() = default;
  /// `tiles_per_task` >= 0; the total must be below 2^31.
  BatchPlan(std::span<const int32_t> tiles_per_task, TaskOrder order, std::span<const double> cost_per_task = {});

  TilePrefix prefix() const { return {tile_end_.data(), static_cast<int32_t>(tile_end_.size())}; }
  std::span<const int32_t> task_order() const { return task_order_; }  ///< [number of non-empty tasks]
  int32_t num_tiles() const { return tile_end_.empty() ? 0 : tile_end_.back(); }

  /// The caller's task and the tile in it; flat_tile in [0, num_tiles()).
  TileCoord locate(int32_t flat_tile) const {
    const TileCoord rank = decode(prefix(), flat_tile);
    return {task_order_[static_cast<size_t>(rank.task_idx)], rank.tile_idx};
  }

 private:
  std::vector<int32_t> task_order_;
  std::vector<int32_t> tile_end_;  // over ranks, not tasks
};

}  // namespace tessera::batching
