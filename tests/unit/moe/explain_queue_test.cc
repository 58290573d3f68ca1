#include "moe/model/explain_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "unit/random_values.h"

namespace tessera::moe {
namespace {

double makespan(const std::vector<TileRun>& runs) {
  double end = 0.0;
  for (const TileRun& run : runs) end = std::max(end, run.end);
  return end;
}

/// "" if every lane runs its tiles one after the other and no tile takes less than it does alone; else what is wrong.
std::string schedule_error(const std::vector<TileCost>& tiles, const std::vector<TileRun>& runs,
                           const QueueOptions& options) {
  if (runs.size() != tiles.size()) return "not one run a tile";
  std::vector<size_t> by_begin(runs.size());
  std::iota(by_begin.begin(), by_begin.end(), size_t{0});
  std::stable_sort(by_begin.begin(), by_begin.end(), [&](size_t a, size_t b) { return runs[a].begin < runs[b].begin; });
  std::vector<double> free_at(static_cast<size_t>(options.num_lanes), 0.0);
  for (const size_t i : by_begin) {
    const TileRun& run = runs[i];
    if (run.lane < 0 || run.lane >= options.num_lanes) return "a lane that does not exist";
    double& lane_free = free_at[static_cast<size_t>(run.lane)];
    if (run.begin != lane_free) return "a lane runs two tiles at once, or waits while there is work";
    lane_free = run.end;
    if (run.end - run.begin < seconds_alone(tiles[i], options) * (1 - 1e-6)) return "a tile faster than alone";
  }
  return "";
}

std::vector<TileCost> random_tiles(size_t count, uint64_t seed) {
  std::vector<TileCost> tiles;
  const std::vector<float> values = test::random_normal(2 * count, 1.0f, seed);
  for (size_t i = 0; i < count; ++i)
    tiles.push_back({0.1 + std::fabs(values[2 * i]), 80.0 * std::fabs(values[2 * i + 1])});
  return tiles;
}

TEST(ExplainQueue, OneLaneTakesTheSum) {
  const QueueOptions options{1, 100.0, 40.0, 0};
  const std::vector<TileCost> tiles = {{1.0, 0.0}, {1.0, 400.0}, {0.5, 10.0}};
  const std::vector<TileRun> runs = simulate_queue(tiles, options);
  EXPECT_EQ(schedule_error(tiles, runs, options), "");
  EXPECT_DOUBLE_EQ(makespan(runs), 1.0 + 10.0 + 0.5);
  EXPECT_DOUBLE_EQ(runs[1].begin, 1.0);
}

TEST(ExplainQueue, EqualTilesRunInWaves) {
  const QueueOptions options{4, 1e9, 1e9, 0};
  const std::vector<TileCost> tiles(10, {2.0, 0.0});
  const std::vector<TileRun> runs = simulate_queue(tiles, options);
  EXPECT_EQ(schedule_error(tiles, runs, options), "");
  EXPECT_DOUBLE_EQ(makespan(runs), 6.0);
  for (size_t i = 0; i < runs.size(); ++i) EXPECT_DOUBLE_EQ(runs[i].begin, 2.0 * static_cast<double>(i / 4)) << i;
}

TEST(ExplainQueue, BandwidthIsSharedByWhoNeedsIt) {
  // Two streams of 60 B/s each on a memory of 80 B/s, beside a tile that asks for 10: it is not slowed down, the others
  // get 35 each.
  const QueueOptions options{3, 80.0, 60.0, 0};
  const std::vector<TileCost> tiles = {{0.0, 70.0}, {0.0, 70.0}, {3.0, 30.0}};
  const std::vector<TileRun> runs = simulate_queue(tiles, options);
  EXPECT_DOUBLE_EQ(runs[0].end, 2.0);
  EXPECT_DOUBLE_EQ(runs[1].end, 2.0);
  EXPECT_DOUBLE_EQ(runs[2].end, 3.0);
}

TEST(ExplainQueue, MixedKindsOverlapAndSeparateOnesDoNot) {
  const QueueOptions options{2, 10.0, 10.0, 0};
  const TileCost compute{1.0, 0.0}, memory{0.0, 10.0};
  const double mixed = makespan(simulate_queue(std::vector<TileCost>{compute, memory, compute, memory}, options));
  const double separate = makespan(simulate_queue(std::vector<TileCost>{compute, compute, memory, memory}, options));
  EXPECT_DOUBLE_EQ(mixed, 2.0);
  EXPECT_DOUBLE_EQ(separate, 3.0);
}

TEST(ExplainQueue, SomeLanesTakeFromTheBack) {
  const QueueOptions options{4, 1e9, 1e9, 2};  // lanes 1 and 3
  const std::vector<TileCost> tiles(6, {1.0, 0.0});
  const std::vector<TileRun> runs = simulate_queue(tiles, options);
  EXPECT_EQ(schedule_error(tiles, runs, options), "");
  EXPECT_EQ(runs[0].lane, 0);
  EXPECT_EQ(runs[5].lane, 1);
  EXPECT_EQ(runs[1].lane, 2);
  EXPECT_EQ(runs[4].lane, 3);
}

TEST(ExplainQueue, AnyQueueRunsOnceAndNotFasterThanTheDevice) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const std::vector<TileCost> tiles = random_tiles(1 + seed * 7, seed);
    for (const int32_t lanes : {1, 2, 7, 66, 500}) {
      const QueueOptions options{lanes, 300.0, 90.0, seed % 2 == 0 ? 3 : 0};
      const std::vector<TileRun> runs = simulate_queue(tiles, options);
      ASSERT_EQ(schedule_error(tiles, runs, options), "") << seed << " " << lanes;
      double bytes = 0.0, seconds = 0.0, alone = 0.0;
      for (const TileCost& tile : tiles) {
        bytes += tile.bytes;
        seconds += tile.compute_seconds;
        alone += seconds_alone(tile, options);
      }
      const double floor = std::max(bytes / options.bytes_per_second, seconds / lanes);
      EXPECT_GE(makespan(runs), floor * (1 - 1e-6));
      if (lanes == 1) {
        EXPECT_NEAR(makespan(runs), alone, alone * 1e-6);
      }
    }
  }
}

TEST(ExplainQueue, NoTilesNoTime) { EXPECT_TRUE(simulate_queue({}, {2, 1.0, 1.0, 0}).empty()); }

TEST(ExplainQueue, TheJudgeFindsPlantedErrors) {
  const QueueOptions options{2, 100.0, 100.0, 0};
  const std::vector<TileCost> tiles = random_tiles(9, 3);
  const std::vector<TileRun> good = simulate_queue(tiles, options);
  const auto broken = [&](const auto& change) {
    std::vector<TileRun> runs = good;
    change(runs);
    return schedule_error(tiles, runs, options);
  };
  EXPECT_EQ(broken([](auto& runs) { runs.pop_back(); }), "not one run a tile");
  EXPECT_EQ(broken([](auto& runs) { runs[4].lane = 2; }), "a lane that does not exist");
  EXPECT_NE(broken([](auto& runs) { runs[4].begin -= 0.01; }), "");
  EXPECT_NE(broken([](auto& runs) { runs[8].end = runs[8].begin; }), "");
}

}  // namespace
}  // namespace tessera::moe
