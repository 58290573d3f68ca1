// How the expert GEMMs cut their work into tiles, as the plan kernels, the launch and explanations of a plan know it.
//
// Host only and free of CUDA: a plan can be explained on a machine that cannot run it.
#pragma once

#include <cstdint>

#include "cuda/cta/expert_tiling.h"
#include "cuda/kernels/expert_gemm/policy.h"

namespace tessera::kernels::expert_gemm {

enum class Role : uint8_t { gate_up, up_only, down };  // GEMM 1 gated, GEMM 1 non-gated, GEMM 2

inline constexpr int32_t kGroupHeight = 4;  // 4 x 256 rows of A stay in L2 while the column blocks pass, see README.md

// The tiling of a GEMM with `n` output columns.
constexpr cta::ExpertTiling tiling(Role role, int32_t n, int32_t cluster_size) {
  const bool gated = role == Role::gate_up;
  const int32_t columns = default_policy(role != Role::down, cluster_size).tile_columns / (gated ? 2 : 1);
  return {cluster_size, (n + columns - 1) / columns, kGroupHeight};
}

}  // namespace tessera::kernels::expert_gemm
