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
#include "cuda/cta/mark.cuh"
#include "cuda/grouped/epilogue.cuh"
#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/grouped/scales.cuh"
#include "cuda/grouped/tile_loading.cuh"
#include "cuda/grouped/tile_slot.cuh"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"

namespace tessera::kernels::expert_gemm {

using grouped::Problem;
using grouped::Role;
using grouped::TileSlot;

// What a role's kernel is compiled for. Tuning: see launch.cu.
template <class Tuning>
struct PolicyOf {
  static constexpr Policy policy(Role role) { return default_policy(role, Tuning::kClusterSize); }
};

template <Role kRole_, class Tuning>
struct Config : grouped::LoadingConfig<kRole_, PolicyOf<Tuning>> {
  using Element = typename Tuning::Element;
  static constexpr bool kMarked = Tuning::kMarked;
  static_assert(sizeof(Element) == Config::kElementBytes);
};

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
    if (problem.bias(C::kRole) != nullptr && tile.expert < problem.num_experts)
      grouped::add_bias<C::kRole, Element>(acc, problem, tile);
    grouped::activate<C::kRole>(problem.activation, acc);
    const int row_in_tile = warpgroup * cta::kWarpgroupRows + warp_in_group * grouped::kStagingRows;
    const grouped::OutRows out{out_map,
                               problem.out(C::kRole),
                               problem.out_columns(C::kRole),
                               tile.row_begin + row_in_tile,
                               tile.num_rows - row_in_tile,
                               tile.n_block * C::kOutColumns};
    grouped::store_tile<Element, C::kOutColumns>(smem.staging[warpgroup * 4 + warp_in_group], out, acc);
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
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);  // uniform for the compiler
  const int warpgroup = warp / 4;
  // A consumer marks: it waits for the first stage anyway.
  cta::mark<C::kMarked>(options.marks, &cuda::KernelMarks::begin, C::kWarpgroupThreads);
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    ptx::prefetch_tensor_map(&out_map);
    if constexpr (!C::kGathers) ptx::prefetch_tensor_map(&a_map);
    grouped::init_barriers(smem);
  }
  // Barriers are initialised before any thread of the cluster arrives on them.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
  ptx::wait_for_prerequisites();
  cta::mark<C::kMarked>(options.marks, &cuda::KernelMarks::work, C::kWarpgroupThreads);

  const grouped::WeightMaps weight_maps(weight_map, shared_weight_map, problem);
  if (warpgroup == 0) {
    grouped::load_warpgroup<C>(smem, weight_maps, a_map, problem, options, warp, grouped::NoScaleCopy{});
  }
  if (warpgroup > 0) consume<C>(smem, out_map, problem, warpgroup - 1);
  // No CTA leaves while the other may still arrive on its barriers.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  cta::mark_end<C::kMarked>(options.marks);
}

}  // namespace tessera::kernels::expert_gemm
