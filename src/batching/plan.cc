#include "tessera/batching/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tessera/core/check.h"

namespace tessera::batching {

std::string_view task_order_name(TaskOrder order) {
  switch (order) {
    case TaskOrder::natural: return "natural";
    case TaskOrder::heavy_first: return "heavy-first";
    case TaskOrder::interleaved: return "interleaved";
  }
  return "unknown";
}

namespace {

// {heavy ... light} -> {heaviest, lightest, second heaviest, second lightest, ...}
std::vector<int32_t> alternate_ends(const std::vector<int32_t>& heavy_first) {
  std::vector<int32_t> alternating;
  alternating.reserve(heavy_first.size());
  size_t front = 0;
  size_t back = heavy_first.size();
  while (front < back) {
    alternating.push_back(heavy_first[front++]);
    if (front < back) alternating.push_back(heavy_first[--back]);
  }
  return alternating;
}

}  // namespace

std::vector<int32_t> task_order(std::span<const int32_t> tiles_per_task, TaskOrder order,
                                std::span<const double> cost_per_task) {
  TESSERA_CHECK(tiles_per_task.size() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()),
                tiles_per_task.size());
  TESSERA_CHECK(cost_per_task.empty() || cost_per_task.size() == tiles_per_task.size(), cost_per_task.size(),
                tiles_per_task.size());
  std::vector<int32_t> tasks;
  for (size_t task = 0; task < tiles_per_task.size(); ++task) {
    TESSERA_CHECK(tiles_per_task[task] >= 0, task, tiles_per_task[task]);
    TESSERA_CHECK(cost_per_task.empty() || (std::isfinite(cost_per_task[task]) && cost_per_task[task] >= 0), task);
    if (tiles_per_task[task] > 0) tasks.push_back(static_cast<int32_t>(task));
  }
  if (order == TaskOrder::natural) return tasks;
  const auto cost = [&](int32_t task) {
    const size_t i = static_cast<size_t>(task);
    return cost_per_task.empty() ? static_cast<double>(tiles_per_task[i]) : cost_per_task[i];
  };
  // Stable: equal tasks keep their numbers' order, so that the plan is the same everywhere.
  std::stable_sort(tasks.begin(), tasks.end(), [&](int32_t a, int32_t b) { return cost(a) > cost(b); });
  return order == TaskOrder::interleaved ? alternate_ends(tasks) : tasks;
}

BatchPlan::BatchPlan(std::span<const int32_t> tiles_per_task, TaskOrder order, std::span<const double> cost_per_task)
    : task_order_(batching::task_order(tiles_per_task, order, cost_per_task)) {
  tile_end_.reserve(task_order_.size());
  int64_t total = 0;
  for (const int32_t task : task_order_) {
    total += tiles_per_task[static_cast<size_t>(task)];
    TESSERA_CHECK(total <= std::numeric_limits<int32_t>::max(), total, task);
    tile_end_.push_back(static_cast<int32_t>(total));
  }
}

}  // namespace tessera::batching
