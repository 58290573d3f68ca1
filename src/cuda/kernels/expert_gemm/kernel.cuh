// Expert GEMM: for every expert e and its routed rows r,   out[r, :] = act(A[r, :] * W[e]^T + bias[e])   in one launch.
//
//   gate_up, up_only   A[r] = tokens[row_token[r]]  [T, H]    W [E, 2I, H] or [E, I, H]    out [R, I]
//   down               A[r] = intermediate row r    [R, I]    W [E, H, I]                  out [R, H]
//
// A CTA has three warpgroups. Per tile of 128 rows x 256 weight rows, per K step of 64:
//
//   scheduling     takes a tile number, decodes it, publishes a TileSlot       --tile_full-->  all other roles
//   loading warp   waits empty[s], TMA: half or all of W, in GEMM 2 also A     --full[s]--+
//                  (in GEMM 1 the same warp schedules, in GEMM 2 another)                 +--> consumers
//   gather warps   GEMM 1, three: wait empty[s], cp.async: 128 token rows      --full[s]--+
//   2 consumer WGs 64 rows each: wait full[s], 8 x WGMMA m64n128k16, one group kept in flight, arrive empty[s] of both
//                  CTAs; activation, stmatrix, TMA stores of one half of the columns under the products of the other
//                  (consume.cuh)
//
// What is not this kernel's own lies in cuda/grouped: the loading warps (tile_loading.cuh), scheduler, epilogue.
#pragma once

#include <cuda.h>

#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/scales.cuh"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/tile_loading.cuh"
#include "cuda/kernels/expert_gemm/consume.cuh"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/ptx/warp.cuh"

namespace tessera::kernels::expert_gemm {

// What a role's kernel is compiled for.
template <Role kRole, class Tuning>
struct Config : grouped::TileConfig<kRole, Tuning, default_policy(kRole, Tuning::kClusterSize)> {};

template <Role kRole, class Tuning>
__global__ void __launch_bounds__(Config<kRole, Tuning>::kThreads, 1)
    expert_gemm_kernel(const __grid_constant__ CUtensorMap weight_map,
                       const __grid_constant__ CUtensorMap shared_weight_map, const __grid_constant__ CUtensorMap a_map,
                       const __grid_constant__ CUtensorMap out_map, const __grid_constant__ Problem problem,
                       const __grid_constant__ grouped::LaunchOptions options) {
  using C = Config<kRole, Tuning>;
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<C>*>(shared_bytes);
  const auto [warp, warpgroup] = grouped::enter(smem, weight_map, a_map, out_map, options);

  // Each side runs to its own end: registers that were moved are counted along a path.
  if (warpgroup == 0) {
    ptx::decrease_registers<C::kPolicy.load_registers>();
    const grouped::WeightMaps weight_maps(weight_map, shared_weight_map, problem);
    grouped::load_warpgroup<C>(smem, weight_maps, a_map, problem, options, warp, grouped::NoScaleCopy{});
    grouped::leave<C>(options);
  } else {
    ptx::increase_registers<C::kPolicy.math_registers>();
    Consumer<C>(smem, out_map, problem, warpgroup - 1).run();
    grouped::leave<C>(options);
  }
}

}  // namespace tessera::kernels::expert_gemm
