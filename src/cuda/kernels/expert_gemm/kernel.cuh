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
//   2 consumer WGs 64 rows each: wait full[s], 4 x WGMMA m64n256k16, one group kept in flight, arrive empty[s] of both
//                  CTAs; at the end activation, stmatrix, TMA stores that drain while the next tile is multiplied
//
// What is not this kernel's own lies in cuda/grouped: the loading warps (tile_loading.cuh), scheduler, epilogue.
#pragma once

#include <cuda.h>

#include "cuda/cta/mainloop.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/scales.cuh"
#include "cuda/grouped/tile_config.cuh"
#include "cuda/grouped/tile_epilogue.cuh"
#include "cuda/grouped/tile_loading.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/ptx/copy.cuh"

namespace tessera::kernels::expert_gemm {

using grouped::Problem;
using grouped::Role;
using grouped::TileSlot;

// What a role's kernel is compiled for.
template <Role kRole, class Tuning>
struct Config : grouped::TileConfig<kRole, Tuning, default_policy(kRole, Tuning::kClusterSize)> {};

template <class C>
using SharedStorage = grouped::TileStorage<C>;

// A consumer warpgroup: 64 rows of the tile, from shared memory through the tensor cores to global memory.
template <class C>
__device__ inline void consume(SharedStorage<C>& smem, const CUtensorMap& out_map, const Problem& problem,
                               int warpgroup) {
  using Element = typename C::Element;
  const int warp_in_group = static_cast<int>(threadIdx.x) / 32 % 4;
  const int num_steps = grouped::num_k_steps<C>(problem);
  cta::RingPosition<C::kStages> ring;
  uint32_t tile_phase = 0;
  typename C::Accumulators acc;
  while (true) {
    const TileSlot tile = grouped::next_tile(smem.mailbox, tile_phase);
    if (tile.expert < 0) break;
    if (tile.num_rows <= warpgroup * cta::kWarpgroupRows) {
      cta::skip_k_steps<C::kCluster>(smem, ring, num_steps);
      continue;
    }
    cta::multiply_k_steps<Element, C::kPolicy.tile_columns, C::kCluster, C::kGathers>(smem, ring, num_steps, warpgroup,
                                                                                      acc);
    grouped::finish_tile(smem, out_map, problem, tile, warpgroup, warp_in_group, acc);
  }
  if (threadIdx.x % 32 == 0) ptx::bulk_wait_read();  // shared memory outlives the stores that read it
}

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

  const grouped::WeightMaps weight_maps(weight_map, shared_weight_map, problem);
  if (warpgroup == 0) {
    grouped::load_warpgroup<C>(smem, weight_maps, a_map, problem, options, warp, grouped::NoScaleCopy{});
  }
  if (warpgroup > 0) consume<C>(smem, out_map, problem, warpgroup - 1);
  grouped::leave<C>(options);
}

}  // namespace tessera::kernels::expert_gemm
