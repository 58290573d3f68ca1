// The judge of plans: a plan is right when every item of every task is visited exactly once, whatever the grid. It is
// shared by the plan tests and is itself tested with planted errors (batching/plan_test.cc).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tessera/batching/plan.h"
#include "tessera/batching/schedule.h"
#include "tessera/core/check.h"

namespace tessera::testing {

/// "" if the prefix and order cover `items_per_task` (cut into tiles of `tile_items`) exactly once with a grid of
/// `num_ctas`, and decode and decode_warp agree on every tile; else what is wrong.
inline std::string coverage_error(batching::TilePrefix prefix, const std::vector<int32_t>& order,
                                  const std::vector<int32_t>& items_per_task, int32_t tile_items, int32_t num_ctas) {
  std::vector<std::vector<uint8_t>> visits(items_per_task.size());
  for (size_t task = 0; task < visits.size(); ++task) visits[task].assign(static_cast<size_t>(items_per_task[task]), 0);
  if (order.size() != static_cast<size_t>(prefix.num_tasks)) return "order and prefix differ in length";
  std::string error;
  const auto visit = [&](int32_t flat_tile) {
    const batching::TileCoord rank = batching::decode(prefix, flat_tile);
    if (!(batching::decode_warp(batching::HostWarp{}, prefix, flat_tile) == rank)) {
      error = str_cat("decode and decode_warp differ at flat tile ", flat_tile);
      return;
    }
    if (rank.task_idx < 0 || rank.task_idx >= prefix.num_tasks || rank.tile_idx < 0) {
      error = str_cat("flat tile ", flat_tile, " decodes out of range");
      return;
    }
    const size_t task = static_cast<size_t>(order[static_cast<size_t>(rank.task_idx)]);
    const int64_t begin = int64_t{rank.tile_idx} * tile_items;
    if (task >= visits.size() || begin >= items_per_task[task]) {
      error = str_cat("flat tile ", flat_tile, " lies outside its task");
      return;
    }
    const int64_t end = std::min<int64_t>(begin + tile_items, items_per_task[task]);
    for (int64_t item = begin; item < end; ++item) ++visits[task][static_cast<size_t>(item)];
  };
  for (int32_t cta_idx = 0; cta_idx < num_ctas && error.empty(); ++cta_idx) {
    batching::Schedule{cta_idx, num_ctas, prefix.num_tiles()}.for_each_tile(visit);
  }
  for (size_t task = 0; task < visits.size() && error.empty(); ++task) {
    for (size_t item = 0; item < visits[task].size(); ++item) {
      if (visits[task][item] != 1) {
        return str_cat("item ", item, " of task ", task, " visited ", int{visits[task][item]}, " times");
      }
    }
  }
  return error;
}

inline std::string coverage_error(const batching::BatchPlan& plan, const std::vector<int32_t>& items_per_task,
                                  int32_t tile_items, int32_t num_ctas) {
  return coverage_error(plan.prefix(), {plan.task_order().begin(), plan.task_order().end()}, items_per_task, tile_items,
                        num_ctas);
}

}  // namespace tessera::testing
