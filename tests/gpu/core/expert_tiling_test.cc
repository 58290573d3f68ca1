// The tiling of one expert covers each (row, column block) exactly once. Host only.
#include "cuda/cta/expert_tiling.h"

#include <gtest/gtest.h>

#include <vector>

namespace tessera::testing {
namespace {

TEST(ExpertTiling, EveryRowAndColumnBlockOnce) {
  for (const int32_t cluster : {1, 2}) {
    for (const int32_t blocks : {1, 2, 3, 7, 12}) {
      for (const int32_t height : {1, 3, 8}) {
        const cta::ExpertTiling tiling{cluster, blocks, height};
        for (int32_t rows = 0; rows <= 2600; rows += rows < 600 ? 1 : 97) {
          std::vector<int> visits(static_cast<size_t>(rows) * blocks, 0);
          for (int32_t t = 0; t < tiling.num_tiles(rows); ++t) {
            for (int32_t rank = 0; rank < cluster; ++rank) {
              const cta::CtaTile tile = tiling.cta_tile(rows, t, rank);
              ASSERT_GT(tile.num_rows, 0);
              ASSERT_LE(tile.num_rows, cta::kTileRows);
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
  const cta::ExpertTiling tiling{2, 5, 8};
  for (int32_t t = 0; t < tiling.num_tall_groups(1000) * 5; ++t) {
    const auto first = tiling.cta_tile(1000, t, 0);
    const auto second = tiling.cta_tile(1000, t, 1);
    EXPECT_TRUE(first.shares_weights && second.shares_weights);
    EXPECT_EQ(first.n_block, second.n_block);
    EXPECT_EQ(first.row_begin + cta::kTileRows, second.row_begin);
  }
}

TEST(ExpertTiling, NoRowsNoTiles) { EXPECT_EQ((cta::ExpertTiling{2, 5, 8}.num_tiles(0)), 0); }

}  // namespace
}  // namespace tessera::testing
