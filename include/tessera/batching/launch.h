// Runs a workload's tiles over host threads. What a user writes:
//
//   struct Scale {
//     struct Params { std::span<std::vector<float>> rows; };                                       // the tasks' data
//     static int32_t num_tasks(const Params& p) { return (int32_t)p.rows.size(); }
//     static int32_t num_tiles(const Params& p, int32_t task) { return ceil_div(p.rows[task].size(), 64); }
//     static void run_tile(const Params& p, TileCoord tile, int worker) { ... one tile of one task ... }
//   };
//   launch<Scale>(params, pool);
//
// Tasks may differ in size and in kind: run_tile branches once on what the task is. A tile must not depend on another
// tile of the same launch. `worker` in [0, pool.num_threads()) selects scratch memory.
// examples/01_irregular_workload.cc shows three kinds in one launch.
//
// A workload may also say what a task costs (`static double task_cost(const Params&, int32_t task)`), which the orders
// use; otherwise the number of tiles counts.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <vector>

#include "tessera/batching/plan.h"
#include "tessera/batching/schedule.h"
#include "tessera/core/thread_pool.h"

namespace tessera::batching {

template <class W>
concept Workload = requires(const typename W::Params& params, TileCoord tile, int32_t task_idx, int worker) {
  { W::num_tasks(params) } -> std::convertible_to<int32_t>;
  { W::num_tiles(params, task_idx) } -> std::convertible_to<int32_t>;
  W::run_tile(params, tile, worker);
};

template <class W>
concept CostedWorkload = Workload<W> && requires(const typename W::Params& params, int32_t task_idx) {
  { W::task_cost(params, task_idx) } -> std::convertible_to<double>;
};

constexpr int32_t ceil_div(int64_t numerator, int64_t denominator) {
  return static_cast<int32_t>((numerator + denominator - 1) / denominator);
}

template <Workload W>
BatchPlan make_plan(const typename W::Params& params, TaskOrder order) {
  const int32_t num_tasks = W::num_tasks(params);
  std::vector<int32_t> tiles_per_task;
  std::vector<double> cost_per_task;
  for (int32_t task_idx = 0; task_idx < num_tasks; ++task_idx) {
    tiles_per_task.push_back(W::num_tiles(params, task_idx));
    if constexpr (CostedWorkload<W>) cost_per_task.push_back(W::task_cost(params, task_idx));
  }
  return BatchPlan(tiles_per_task, order, cost_per_task);
}

/// Runs every tile of `plan` once. `num_ctas` >= 1 fixes the grid, as on a device; 0 gives every tile its own CTA, so
/// that the threads balance themselves. An exception of a tile ends the launch and is thrown here.
template <Workload W>
void launch(const BatchPlan& plan, const typename W::Params& params, ThreadPool& pool, int32_t num_ctas = 0) {
  const int32_t grid = num_ctas > 0 ? num_ctas : plan.num_tiles();
  pool.run(grid, [&](int64_t cta_idx, int worker) {
    const Schedule schedule{static_cast<int32_t>(cta_idx), grid, plan.num_tiles()};
    schedule.for_each_tile([&](int32_t flat_tile) { W::run_tile(params, plan.locate(flat_tile), worker); });
  });
}

/// The same with a plan made for this call. Heavy tasks first is the order that leaves the shortest tail when tiles of
/// one launch differ in cost.
template <Workload W>
void launch(const typename W::Params& params, ThreadPool& pool, TaskOrder order = TaskOrder::heavy_first) {
  launch<W>(make_plan<W>(params, order), params, pool);
}

}  // namespace tessera::batching
