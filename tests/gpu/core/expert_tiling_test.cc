// The tiling of one expert covers each (row, column block) exactly once. Host only.
#include "cuda/grouped/tiling.h"

#include <gtest/gtest.h>

#include <vector>

namespace tessera::testing {
namespace {

TEST(ExpertTiling, EveryRowAndColumnBlockOnce) {
  for (const int32_t cluster : {1, 2}) {
    for (const int32_t blocks : {1, 2, 3, 7, 12}) {
      for (const int32_t height : {1, 3, 8}) {
        const int32_t tile_rows = height == 3 ? 64 : 128;
        const grouped::Tiling tiling{cluster, blocks, height, tile_rows};
        for (int32_t rows = 0; rows <= 2600; rows += rows < 600 ? 1 : 97) {
          std::vector<int> visits(static_cast<size_t>(rows) * blocks, 0);
          for (int32_t t = 0; t < tiling.num_tiles(rows); ++t) {
            for (int32_t rank = 0; rank < cluster; ++rank) {
              const grouped::CtaTile tile = tiling.cta_tile(rows, t, rank);
              ASSERT_GT(tile.num_rows, 0);
              ASSERT_LE(tile.num_rows, tile_rows);
              ASSERT_LE(tile.row_begin + tile.num_rows, rows);
              if (tile.n_block >= blocks) continue;
              for (int32_t r = 0; r < tile.num_rows; ++r)
                ++visits[static_cast<size_t>(tile.row_begin + r) * blocks + tile.n_block];
            }
          }
          for (const int count : visits) ASSERT_EQ(count, 1) << cluster << " " << blocks << " " << rows;
        }
      }
    }
  }
}

TEST(ExpertTiling, PairSharesOneColumnBlock) {
  const grouped::Tiling tiling{2, 5, 8, 128};
  for (int32_t t = 0; t < tiling.num_tall_groups(1000) * 5; ++t) {
    const auto first = tiling.cta_tile(1000, t, 0);
    const auto second = tiling.cta_tile(1000, t, 1);
    EXPECT_TRUE(first.shares_weights && second.shares_weights);
    EXPECT_EQ(first.n_block, second.n_block);
    EXPECT_EQ(first.row_begin + tiling.tile_rows, second.row_begin);
  }
}

TEST(ExpertTiling, NoRowsNoTiles) { EXPECT_EQ((grouped::Tiling{2, 5, 8, 128}.num_tiles(0)), 0); }

}  // namespace
}  // namespace tessera::testing
