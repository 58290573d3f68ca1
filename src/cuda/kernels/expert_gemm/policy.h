// Tuning numbers of the expert GEMM, and the tiles that follow from them. Host only and free of CUDA: a plan can be
// explained on a machine that cannot run it.
#pragma once

#include <cstdint>
#include <ostream>

#include "cuda/grouped/problem.h"
#include "cuda/grouped/tiling.h"

namespace tessera::kernels::expert_gemm {

struct Policy {
  int tile_rows;       // rows of a CTA's tile
  int tile_columns;    // rows of the weight matrix in a CTA's tile (a gated tile yields half as many outputs)
  int part_columns;    // of these, finished together
  int tile_k;          // elements of K a pipeline stage holds
  int stages;          // pipeline stages
  int cluster_size;    // CTAs that share weights
  int gather_warps;    // warps that copy rows by index; 0: rows come by TMA
  int staging_passes;  // 128-column passes of the epilogue that have a staging buffer of their own
  int math_registers;  // a thread of the multiplying warpgroups
  int load_registers;  // a thread of the loading warpgroup

  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << "tile " << p.tile_rows << "x" << p.tile_columns << "x" << p.tile_k << " in parts of "
               << p.part_columns << ", " << p.stages << " stages, cluster " << p.cluster_size << ", " << p.gather_warps
               << " gather warps, " << p.staging_passes << " staging buffers";
  }
};

inline constexpr int32_t kTileRows = 128;

// 128 x 256 is the largest tile whose accumulators fit two warpgroups. Four stages of 48 KiB and 32 KiB of output
// staging fill the 227 KiB of shared memory. Three stages and 64 KiB of staging were slower for GEMM 2, see README.md.
// Finishing half of the sums beside products of the other half takes more registers than 384 threads have alike, and
// gathering no fewer than 56: 2 x 224 + 56 = 3 x 168.
constexpr Policy default_policy(grouped::Role role, int cluster_size) {
  return {kTileRows, 256, 128, 64, 4, cluster_size, role == grouped::Role::down ? 0 : 3, 1, 224, 56};
}

inline constexpr int32_t kGroupHeight = 4;  // 4 x 256 rows of A stay in L2 while the column blocks pass, see README.md

// The tiling of a role with `out_columns` output columns.
constexpr grouped::Tiling tiling(grouped::Role role, int32_t out_columns, int32_t cluster_size) {
  const int32_t gated_halves = role == grouped::Role::gate_up ? 2 : 1;
  const int32_t columns = default_policy(role, cluster_size).tile_columns / gated_halves;
  return {cluster_size, (out_columns + columns - 1) / columns, kGroupHeight, kTileRows};
}

}  // namespace tessera::kernels::expert_gemm
