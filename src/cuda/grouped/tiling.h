// How the rows of one expert are cut into tiles; host and device, shared by the plan, the grouped GEMMs and their
// tests.
//
// A CTA's tile has `tile_rows` rows. A tile belongs to a cluster of `cluster_size` CTAs. With two CTAs there are two
// kinds of tile, of equal work:
//
//   tall: 2 tile_rows x 1 column block    the CTAs take tile_rows rows each and share the weights
//   wide: tile_rows x 2 column blocks     the CTAs take one column block each and load its weights alone
//
// An expert has tall tiles for its full groups of 2 tile_rows rows, and for what is left one more tall row group if
// more than tile_rows rows remain, else one wide row group. So at most tile_rows - 1 rows of a CTA's tile are padding,
// and never a whole CTA (but for the last wide tile of an odd number of column blocks). With one CTA all tiles are
// tile_rows rows x 1 column block.
#pragma once

#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera::grouped {

inline constexpr int32_t kMaxClusterSize = 2;

// What one CTA computes: rows [row_begin, row_begin + num_rows) of the expert, column block n_block.
struct CtaTile {
  int32_t row_begin;
  int32_t num_rows;  // <= tile_rows
  int32_t n_block;   // may be num_n_blocks: nothing to do
  bool shares_weights;

  friend constexpr bool operator==(const CtaTile&, const CtaTile&) = default;
};

struct Tiling {
  int32_t cluster_size;  // 1 or 2
  int32_t num_n_blocks;  // column blocks of the output
  int32_t group_height;  // row groups that are walked together before the next column block: what L2 keeps of A
  int32_t tile_rows;     // of a CTA

  // Row groups whose CTAs all have rows.
  TESSERA_HOST_DEVICE constexpr int32_t num_tall_groups(int32_t rows) const {
    const int32_t rest = rows % (cluster_size * tile_rows);
    return rows / (cluster_size * tile_rows) + (rest > (cluster_size - 1) * tile_rows ? 1 : 0);
  }

  TESSERA_HOST_DEVICE constexpr bool has_wide_group(int32_t rows) const {
    return rows > num_tall_groups(rows) * cluster_size * tile_rows;
  }

  TESSERA_HOST_DEVICE constexpr int32_t num_wide_tiles() const {
    return (num_n_blocks + cluster_size - 1) / cluster_size;
  }

  TESSERA_HOST_DEVICE constexpr int32_t num_tiles(int32_t rows) const {
    return num_tall_groups(rows) * num_n_blocks + (has_wide_group(rows) ? num_wide_tiles() : 0);
  }

  // The part of tile `tile_idx` (of an expert with `rows` rows) that CTA `cta_rank` of the cluster computes.
  TESSERA_HOST_DEVICE constexpr CtaTile cta_tile(int32_t rows, int32_t tile_idx, int32_t cta_rank) const {
    const int32_t tall_groups = num_tall_groups(rows);
    const int32_t wide_idx = tile_idx - tall_groups * num_n_blocks;
    if (wide_idx >= 0) {
      const int32_t row_begin = tall_groups * cluster_size * tile_rows;
      return {row_begin, rows - row_begin, wide_idx * cluster_size + cta_rank, false};
    }
    const int32_t first_group = tile_idx / (group_height * num_n_blocks) * group_height;
    const int32_t height = tall_groups - first_group < group_height ? tall_groups - first_group : group_height;
    const int32_t in_group = tile_idx - first_group * num_n_blocks;
    const int32_t row_begin = ((first_group + in_group % height) * cluster_size + cta_rank) * tile_rows;
    const int32_t rows_left = rows - row_begin;
    return {row_begin, rows_left < tile_rows ? rows_left : tile_rows, in_group / height, cluster_size > 1};
  }
};

}  // namespace tessera::grouped
