// Tuning numbers of the expert GEMM, as a value that can be compared and printed.
#pragma once

#include <ostream>

namespace tessera::kernels::expert_gemm {

struct Policy {
  int tile_rows;       // rows of a CTA's tile
  int tile_columns;    // rows of the weight matrix in a CTA's tile (a gated tile yields half as many outputs)
  int tile_k;          // elements of K a pipeline stage holds
  int stages;          // pipeline stages
  int cluster_size;    // CTAs that share weights
  int gather_warps;    // warps that copy rows by index; 0: rows come by TMA
  int staging_passes;  // 128-column passes of the epilogue that have a staging buffer of their own

  friend constexpr bool operator==(const Policy&, const Policy&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Policy& p) {
    return out << "tile " << p.tile_rows << "x" << p.tile_columns << "x" << p.tile_k << ", " << p.stages
               << " stages, cluster " << p.cluster_size << ", " << p.gather_warps << " gather warps, "
               << p.staging_passes << " staging buffers";
  }
};

// 128 x 256 is the largest tile whose accumulators fit two warpgroups. Four stages of 48 KiB and 32 KiB of output
// staging fill the 227 KiB of shared memory. Three stages and 64 KiB of staging were slower for GEMM 2, see README.md.
constexpr Policy default_policy(bool gathers, int cluster_size) {
  return {128, 256, 64, 4, cluster_size, gathers ? 3 : 0, 1};
}

}  // namespace tessera::kernels::expert_gemm
