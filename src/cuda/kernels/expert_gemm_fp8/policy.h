// Tuning numbers of the FP8 expert GEMM, and the tiles that follow from them. Host only and free of CUDA.
#pragma once

#include <cstdint>
#include <ostream>

#include "cuda/grouped/problem.h"
#include "cuda/grouped/tiling.h"
#include "tessera/core/e4m3.h"

namespace tessera::kernels::expert_gemm_fp8 {

struct Policy {
  int tile_rows;       // rows of a CTA's tile
  int tile_columns;    // rows of the weight matrix in a CTA's tile (a gated tile yields half as many outputs)
  int tile_k;          // elements of K a pipeline stage holds: a block of scales
  int stages;          // pipeline stages
  int cluster_size;    // CTAs that share weights
  int staging_passes;  // 128-column passes of the epilogue that have a staging buffer of their own
  int wave_columns;    // weight rows a warpgroup multiplies before it adds the products to its sums
  int math_registers;  // a thread of the multiplying warpgroups
  int load_registers;  // a thread of the loading warpgroup

  static constexpr int part_columns = 256;  // weight rows of a tile whose sums are finished together
  static constexpr int gather_warps = 0;    // rows come by TMA, see quantize_rows

  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << "tile " << p.tile_rows << "x" << p.tile_columns << "x" << p.tile_k << " in waves of "
               << p.wave_columns << ", " << p.stages << " stages, cluster " << p.cluster_size << ", "
               << p.staging_passes << " staging buffers, " << p.math_registers << " and " << p.load_registers
               << " registers";
  }
};

inline constexpr int32_t kTileRows = 128;

// As expert_gemm's, a stage being 48 KiB of twice as many elements. Sums (128 registers) and one wave's products (64)
// leave no choice but waves of 128 and registers moved from the loading warpgroup: 2 x 232 + 40 = 3 x 168.
constexpr Policy default_policy(int cluster_size) {
  return {kTileRows, 256, kScaleGroup, 4, cluster_size, 1, kScaleGroup, 232, 40};
}

inline constexpr int32_t kGroupHeight = 4;

// The tiling of a role with `out_columns` output columns.
constexpr grouped::Tiling tiling(grouped::Role role, int32_t out_columns, int32_t cluster_size) {
  const int32_t gated_halves = role == grouped::Role::gate_up ? 2 : 1;
  const int32_t columns = default_policy(cluster_size).tile_columns / gated_halves;
  return {cluster_size, (out_columns + columns - 1) / columns, kGroupHeight, kTileRows};
}

}  // namespace tessera::kernels::expert_gemm_fp8
