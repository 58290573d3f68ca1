#include "tessera/batching/decode.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace tessera::batching {
namespace {

constexpr int32_t kThreeTasks[] = {3, 4, 8};
constexpr TilePrefix kPrefix{kThreeTasks, 3};
static_assert(decode(kPrefix, 0) == TileCoord{0, 0});
static_assert(decode(kPrefix, 2) == TileCoord{0, 2});
static_assert(decode(kPrefix, 3) == TileCoord{1, 0});
static_assert(decode(kPrefix, 7) == TileCoord{2, 3});
static_assert(decode_warp(HostWarp{}, kPrefix, 7) == TileCoord{2, 3});
static_assert(TilePrefix{}.num_tiles() == 0);

// Walks tasks and tiles in order and compares both decodes with the walk itself, not with each other.
void expect_decodes_to_walk(const std::vector<int32_t>& tiles_per_task) {
  std::vector<int32_t> tile_end;
  int32_t total = 0;
  for (const int32_t tiles : tiles_per_task) tile_end.push_back(total += tiles);
  const TilePrefix prefix{tile_end.data(), static_cast<int32_t>(tile_end.size())};
  int32_t flat_tile = 0;
  for (size_t task = 0; task < tiles_per_task.size(); ++task) {
    for (int32_t tile = 0; tile < tiles_per_task[task]; ++tile, ++flat_tile) {
      const TileCoord expected{static_cast<int32_t>(task), tile};
      ASSERT_EQ(decode(prefix, flat_tile), expected) << "flat tile " << flat_tile;
      ASSERT_EQ(decode_warp(HostWarp{}, prefix, flat_tile), expected) << "flat tile " << flat_tile;
    }
  }
  ASSERT_EQ(flat_tile, prefix.num_tiles());
}

TEST(Decode, EveryNumberOfTasksAroundWarpBoundaries) {
  for (const int32_t num_tasks : {1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97, 255, 256, 257, 1023, 1024}) {
    expect_decodes_to_walk(std::vector<int32_t>(static_cast<size_t>(num_tasks), 1));
    expect_decodes_to_walk(std::vector<int32_t>(static_cast<size_t>(num_tasks), 3));
  }
}

TEST(Decode, EmptyTasksOwnNoTile) {
  expect_decodes_to_walk({0, 2, 0});
  expect_decodes_to_walk({0, 0, 0, 5});
  expect_decodes_to_walk({5, 0, 0, 0});
  for (int position = 0; position < 70; ++position) {
    std::vector<int32_t> only_one(70, 0);
    only_one[static_cast<size_t>(position)] = 4;
    expect_decodes_to_walk(only_one);
  }
}

TEST(Decode, RandomRaggedTasks) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<int32_t> tiles(1 + random() % 300);
    for (int32_t& count : tiles) count = random() % 3 == 0 ? 0 : static_cast<int32_t>(random() % 20);
    expect_decodes_to_walk(tiles);
  }
}

TEST(Decode, LargestTotal) {
  const int32_t tile_end[] = {1, 2147483646, 2147483647};
  const TilePrefix prefix{tile_end, 3};
  for (const int32_t flat_tile : {0, 1, 1000000000, 2147483645, 2147483646}) {
    EXPECT_EQ(decode(prefix, flat_tile), decode_warp(HostWarp{}, prefix, flat_tile));
  }
  EXPECT_EQ(decode(prefix, 2147483646), (TileCoord{2, 0}));
  EXPECT_EQ(decode(prefix, 2147483645), (TileCoord{1, 2147483644}));
}

}  // namespace
}  // namespace tessera::batching
