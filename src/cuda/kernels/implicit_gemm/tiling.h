// How one task is cut into tiles. Host and device; free of CUDA.
//
// A tile's columns are two halves of the same size, because the two CTAs of a cluster load one each. With up to 128
// windows a half holds whole records; with more, a tile is one record and its columns are windows, taken in several
// passes if there are more than 256.
//
//   14 windows:   half 0 = records 0..7 (112 columns), half 1 = records 8..15       WGMMA of 224 columns
//   200 windows:  half 0 = windows 0..103, half 1 = windows 104..199                WGMMA of 224 columns
#pragma once

#include <cstdint>

#include "cuda/kernels/implicit_gemm/policy.h"
#include "tessera/core/host_device.h"

namespace tessera::kernels::implicit_gemm {

inline constexpr int32_t kHalfColumns = default_policy().tile_columns / 2;
inline constexpr int32_t kMaxPositions = 512;
inline constexpr int32_t kMaxRecordsPerTile = 64;  // of pooled ones: their maxima are staged in shared memory

// The columns that the instruction for `columns` computes: 224, 240 or 256.
TESSERA_HOST_DEVICE constexpr int32_t instruction_columns(int32_t columns) {
  return columns <= 224 ? 224 : columns <= 240 ? 240 : 256;
}

struct TileShape {
  int32_t windows = 1;             // of a record
  int32_t records_per_half = 1;    // 0: the tile is one record
  int32_t half_columns = 8;        // from the first column of half 0 to the first of half 1, a multiple of 8
  int32_t num_passes = 1;          // over the windows of the record
  int32_t num_feature_blocks = 1;  // of a whole cluster

  TESSERA_HOST_DEVICE constexpr int32_t records_per_tile() const {
    return records_per_half == 0 ? 1 : 2 * records_per_half;
  }
  TESSERA_HOST_DEVICE constexpr int32_t num_columns() const { return instruction_columns(2 * half_columns); }
  // The box of one half: positions x records.
  TESSERA_HOST_DEVICE constexpr int32_t box_positions() const { return records_per_half == 0 ? half_columns : windows; }
  TESSERA_HOST_DEVICE constexpr int32_t box_records() const { return records_per_half == 0 ? 1 : records_per_half; }

  TESSERA_HOST_DEVICE constexpr int32_t num_record_blocks(int64_t num_records) const {
    return static_cast<int32_t>((num_records + records_per_tile() - 1) / records_per_tile());
  }
  TESSERA_HOST_DEVICE constexpr int32_t num_tiles(int64_t num_records) const {
    return num_record_blocks(num_records) * num_feature_blocks;
  }

  struct Place {
    int32_t record_block;
    int32_t feature_block;
  };
  // Tiles walk groups of record blocks, inside a group feature block by feature block: what runs at one time shares
  // both weights and inputs in L2.
  TESSERA_HOST_DEVICE constexpr Place place(int32_t tile_idx, int64_t num_records) const {
    constexpr int32_t kGroup = default_policy().group_height;
    const int32_t first = tile_idx / (kGroup * num_feature_blocks) * kGroup;
    const int32_t left = num_record_blocks(num_records) - first;
    const int32_t height = left < kGroup ? left : kGroup;
    const int32_t in_group = tile_idx - first * num_feature_blocks;
    return {first + in_group % height, in_group / height};
  }
};

// Depends on the task's shape alone, never on the number of records.
constexpr TileShape tile_shape(int32_t windows, int32_t out_features) {
  constexpr Policy kPolicy = default_policy();
  TileShape shape;
  shape.windows = windows;
  const int32_t cluster_features = kPolicy.tile_features * kPolicy.cluster_size;
  shape.num_feature_blocks = (out_features + cluster_features - 1) / cluster_features;
  if (windows > kHalfColumns) {
    const int32_t span = windows < 2 * kHalfColumns ? windows : 2 * kHalfColumns;
    shape.records_per_half = 0;
    shape.half_columns = ((span + 1) / 2 + 7) / 8 * 8;
    shape.num_passes = (windows + 2 * kHalfColumns - 1) / (2 * kHalfColumns);
    return shape;
  }
  // The most records that fit, or a few less where a smaller instruction then wastes less of itself.
  double best = 0;
  const int32_t most =
      windows == 1 || kHalfColumns / windows < kMaxRecordsPerTile / 2 ? kHalfColumns / windows : kMaxRecordsPerTile / 2;
  for (int32_t records = most; records >= 1; --records) {
    const int32_t half = (records * windows + 7) / 8 * 8;
    const double used = static_cast<double>(2 * records * windows) / instruction_columns(2 * half);
    if (used <= best) continue;
    best = used;
    shape.records_per_half = records;
    shape.half_columns = half;
  }
  return shape;
}

}  // namespace tessera::kernels::implicit_gemm
