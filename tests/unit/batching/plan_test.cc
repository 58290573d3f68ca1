#include "tessera/batching/plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tessera/core/check.h"
#include "unit/coverage.h"
#include "unit/exhaustive.h"

namespace tessera::batching {
namespace {

using testing::coverage_error;

constexpr TaskOrder kOrders[] = {TaskOrder::natural, TaskOrder::heavy_first, TaskOrder::interleaved};

std::vector<int32_t> order_of(const std::vector<int32_t>& tiles, TaskOrder order,
                              const std::vector<double>& cost = {}) {
  return task_order(tiles, order, cost);
}

TEST(TaskOrder, SkipsEmptyTasksInEveryOrder) {
  const std::vector<int32_t> tiles = {4, 0, 1, 9, 0, 4};
  EXPECT_EQ(order_of(tiles, TaskOrder::natural), (std::vector<int32_t>{0, 2, 3, 5}));
  EXPECT_EQ(order_of(tiles, TaskOrder::heavy_first), (std::vector<int32_t>{3, 0, 5, 2}));
  EXPECT_EQ(order_of(tiles, TaskOrder::interleaved), (std::vector<int32_t>{3, 2, 0, 5}));
}

TEST(TaskOrder, CostDecidesWhenGiven) {
  EXPECT_EQ(order_of({1, 1, 1}, TaskOrder::heavy_first, {1.0, 3.0, 2.0}), (std::vector<int32_t>{1, 2, 0}));
  EXPECT_EQ(order_of({1, 0, 1}, TaskOrder::heavy_first, {1.0, 3.0, 2.0}), (std::vector<int32_t>{2, 0}));
}

TEST(TaskOrder, BrokenContractsAreReported) {
  EXPECT_THROW(order_of({1, -1}, TaskOrder::natural), ProgrammerError);
  EXPECT_THROW(order_of({1, 1}, TaskOrder::heavy_first, {1.0}), ProgrammerError);
  EXPECT_THROW(order_of({1}, TaskOrder::heavy_first, {std::numeric_limits<double>::quiet_NaN()}), ProgrammerError);
  const std::vector<int32_t> too_many = {std::numeric_limits<int32_t>::max(), 1};
  EXPECT_THROW(BatchPlan(too_many, TaskOrder::natural), ProgrammerError);
}

TEST(BatchPlan, NoTasksAndOnlyEmptyTasks) {
  for (const TaskOrder order : kOrders) {
    EXPECT_EQ(BatchPlan(std::vector<int32_t>{}, order).num_tiles(), 0);
    const BatchPlan empty(std::vector<int32_t>{0, 0, 0}, order);
    EXPECT_EQ(empty.num_tiles(), 0);
    EXPECT_TRUE(empty.task_order().empty());
  }
  EXPECT_EQ(BatchPlan().num_tiles(), 0);
}

TEST(BatchPlan, LocateGivesTheCallersTask) {
  const BatchPlan plan(std::vector<int32_t>{4, 0, 1, 9}, TaskOrder::heavy_first);
  EXPECT_EQ(plan.locate(0), (TileCoord{3, 0}));
  EXPECT_EQ(plan.locate(8), (TileCoord{3, 8}));
  EXPECT_EQ(plan.locate(10), (TileCoord{0, 1}));
  EXPECT_EQ(plan.locate(13), (TileCoord{2, 0}));
}

// Calls body with every vector of `num_tasks` counts whose sum is at most `max_total`.
template <class Body>
void for_every_count_vector(size_t num_tasks, int32_t max_total, const Body& body) {
  std::vector<int32_t> counts(num_tasks, 0);
  int32_t total = 0;
  while (true) {
    body(counts);
    size_t position = 0;
    while (position < num_tasks && total == max_total) {
      total -= counts[position];
      counts[position++] = 0;
    }
    if (position == num_tasks) return;
    ++counts[position];
    ++total;
  }
}

TEST(BatchPlan, EveryCountVectorUpTo12ItemsOver6Tasks) {
  int64_t num_vectors = 0;
  for_every_count_vector(6, 12, [&](const std::vector<int32_t>& counts) {
    if (num_vectors++ % testing::kExhaustiveDivisor != 0) return;
    for (const int32_t tile_items : {1, 2, 4, 8}) {
      std::vector<int32_t> tiles;
      for (const int32_t count : counts) tiles.push_back((count + tile_items - 1) / tile_items);
      for (const TaskOrder order : kOrders) {
        const BatchPlan plan(tiles, order);
        for (const int32_t num_ctas : {1, 3, 200}) {
          ASSERT_EQ(coverage_error(plan, counts, tile_items, num_ctas), "");
        }
      }
    }
  });
  EXPECT_EQ(num_vectors, 18'564);
}

TEST(BatchPlan, EveryGridFrom1To200GivesTheSameWork) {
  const std::vector<int32_t> items = {0, 37, 1, 0, 128, 5, 64, 64, 0, 9};
  std::vector<int32_t> tiles;
  for (const int32_t count : items) tiles.push_back((count + 3) / 4);
  for (const TaskOrder order : kOrders) {
    const BatchPlan plan(tiles, order);
    ASSERT_GT(plan.num_tiles(), 70);  // so that grids smaller, equal and larger than the work are among them
    ASSERT_LT(plan.num_tiles(), 200);
    for (int32_t num_ctas = 1; num_ctas <= 200; ++num_ctas) ASSERT_EQ(coverage_error(plan, items, 4, num_ctas), "");
  }
}

// The judge must see every kind of broken plan.
TEST(CoverageJudge, FindsPlantedErrors) {
  const std::vector<int32_t> items = {5, 3, 8};
  const std::vector<int32_t> good_end = {3, 5, 9};  // tiles of 2
  const std::vector<int32_t> order = {0, 1, 2};
  const auto judge = [&](std::vector<int32_t> tile_end, const std::vector<int32_t>& sigma) {
    return coverage_error({tile_end.data(), static_cast<int32_t>(tile_end.size())}, sigma, items, 2, 4);
  };
  EXPECT_EQ(judge(good_end, order), "");
  EXPECT_NE(judge({3, 5, 8}, order), "");     // the last tile is missing
  EXPECT_NE(judge({3, 5, 10}, order), "");    // a tile too many
  EXPECT_NE(judge({2, 5, 9}, order), "");     // a boundary moved
  EXPECT_NE(judge({3, 3, 9}, order), "");     // a task dropped, its tiles given to the next
  EXPECT_NE(judge(good_end, {0, 2, 1}), "");  // two tasks swapped
  EXPECT_NE(judge(good_end, {0, 1, 1}), "");  // a task twice
  EXPECT_NE(judge(good_end, {0, 1}), "");     // order too short
  EXPECT_NE(judge({5, 3, 9}, order), "");     // decreasing totals: decode and decode_warp part ways
}

}  // namespace
}  // namespace tessera::batching
