// Expert GEMM: for every expert e and its routed rows r,   out[r, :] = act(A[r, :] * W[e]^T)   in one launch.
//
//   GEMM 1 (gathers, gated)   A[r] = tokens[row_token[r]]  [T, H]    W [E, 2I, H]: gate rows, then up rows   out [R, I]
//   GEMM 2                    A[r] = intermediate row r    [R, I]    W [E, H, I]                             out [R, H]
//
// A CTA has three warpgroups. Per tile of 128 rows x 256 weight rows, per K step of 64:
//
//   scheduling     takes a tile number, decodes it, publishes a TileSlot       --tile_full-->  all other roles
//   loading warp   waits empty[s], TMA: half or all of W, in GEMM 2 also A     --full[s]--+
//                  (in GEMM 1 the same warp schedules, in GEMM 2 another)                 +--> consumers
//   gather warps   GEMM 1, three: wait empty[s], cp.async: 128 token rows      --full[s]--+
//   2 consumer WGs 64 rows each: wait full[s], 4 x WGMMA m64n256k16, one group kept in flight, arrive empty[s] of both
//                  CTAs; at the end activation, stmatrix, TMA stores that drain while the next tile is multiplied
#pragma once

#include <cuda.h>

#include "cuda/core/plan_view.h"
#include "cuda/cta/expert_tiling.h"
#include "cuda/cta/mark.cuh"
#include "cuda/cta/pipeline.cuh"
#include "cuda/cta/smem_layout.cuh"
#include "cuda/kernels/expert_gemm/policy.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/warp.cuh"
#include "tessera/core/activation.h"

namespace tessera::kernels::expert_gemm {

struct Params {
  cta::PlanView plan;
  int32_t gemm_idx;          // which of the plan's tile prefixes
  cta::ExpertTiling tiling;  // must be the one the plan was built with
  const void* tokens;        // [T, k] rows to gather; unused by GEMM 2
  void* out;                 // [R, n]
  const void* bias;          // [E, n] or gated [E, 2n]; null: none
  int32_t n;                 // columns of out
  int32_t k;                 // reduction length
  int32_t back_every;        // every back_every-th cluster takes tiles from the back of the list; 0: none does
  Activation activation;
  bool interleaved;            // of a gated bias
  int32_t gate_half;           // which of gate/up, 0 or 1, is gate in a gated weight and bias
  int32_t num_routed_experts;  // experts beyond are shared ones, with a weight of their own and no bias
  gpu::KernelMarks* marks;     // [1]; unused unless kMarked
};

template <class Element_, bool kGather_, bool kGated_, int kCluster_>
struct Config {
  using Element = Element_;
  static constexpr bool kGather = kGather_;
  static constexpr bool kGated = kGated_;
  static constexpr Policy kPolicy = default_policy(kGather_, kCluster_);

  static constexpr int kCluster = kPolicy.cluster_size;
  static constexpr int kStages = kPolicy.stages;
  static constexpr int kTileK = kPolicy.tile_k;
  static constexpr int kBoxRows = 128;  // rows of one weight box: half a tile, one CTA's share of a tall tile
  static constexpr int kABytes = kPolicy.tile_rows * kTileK * 2;
  static constexpr int kBBytes = kPolicy.tile_columns * kTileK * 2;
  static constexpr int kBoxBytes = kBoxRows * kTileK * 2;
  static constexpr int kOutColumns = kGated ? kPolicy.tile_columns / 2 : kPolicy.tile_columns;

  static constexpr int kWarpgroupThreads = 128;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kThreads = kWarpgroupThreads * (1 + kConsumers);
  static constexpr int kGatherWarps = kPolicy.gather_warps;
  // Warps that read a TileSlot: in GEMM 1 the loading warp is the one that writes it.
  static constexpr int kTileReaders = (kGather ? kGatherWarps : 1) + kConsumerWarps;
  static constexpr int kPasses = kOutColumns / 128;  // of the epilogue, 128 columns each

  static_assert(kPolicy.tile_rows == cta::kTileRows && kTileK * 2 == 128 && kPolicy.tile_columns == 2 * kBoxRows);
  static_assert(1 + kGatherWarps <= 4 && kOutColumns % 128 == 0 && kPolicy.staging_passes <= kPasses);
};

// A tile as the roles of one CTA see it.
struct TileSlot {
  int32_t expert;     // -1: no more tiles
  int32_t row_begin;  // routed row
  int32_t num_rows;   // 0..128
  int32_t n_block;
  int32_t shares_weights;
};

// A warp stages 16 rows x 128 columns a pass, as two blocks of 64 columns in the layout of a 128-byte swizzled TMA box.
inline constexpr int kStagingColumns = 128;
inline constexpr int kStagingRows = 16;
inline constexpr int kStagingBlockBytes = kStagingRows * cta::kSwizzleRowBytes;
inline constexpr int kStagingBytes = 2 * kStagingBlockBytes;

template <class C>
struct SharedStorage {
  alignas(1024) uint8_t a[C::kStages][C::kABytes];
  alignas(1024) uint8_t b[C::kStages][C::kBBytes];
  alignas(1024) uint8_t staging[C::kConsumerWarps][C::kPolicy.staging_passes][kStagingBytes];
  TileSlot tile;
  uint32_t granted_tile;             // written by CTA 0 of the cluster into the others
  uint64_t full[C::kStages];         // bytes of TMA + arrivals of the gather threads
  uint64_t empty[C::kStages];        // every consumer warp of the cluster
  uint64_t tile_full, tile_empty;    // TileSlot published / read by all lanes of the reader warps
  uint64_t grant_full, grant_empty;  // granted_tile of this CTA written / the other CTA's read
};

template <class C>
__device__ inline void init_barriers(SharedStorage<C>& smem) {
  for (int s = 0; s < C::kStages; ++s) {
    ptx::mbarrier_init(&smem.full[s], 1 + C::kGatherWarps * 32);
    ptx::mbarrier_init(&smem.empty[s], C::kConsumerWarps * C::kCluster);
  }
  ptx::mbarrier_init(&smem.tile_full, 1);
  ptx::mbarrier_init(&smem.tile_empty, C::kTileReaders * 32);
  ptx::mbarrier_init(&smem.grant_full, 1);
  ptx::mbarrier_init(&smem.grant_empty, 1);
  ptx::fence_mbarrier_init();
}

// Reads the next TileSlot; all lanes of a reader warp call it, and each gives the slot back for itself. `phase` starts
// at 0.
template <class C>
__device__ inline TileSlot next_tile(SharedStorage<C>& smem, uint32_t& phase) {
  cta::wait_phase(&smem.tile_full, phase);
  const TileSlot tile = smem.tile;
  phase ^= 1;
  ptx::mbarrier_arrive(&smem.tile_empty);
  return tile;
}

}  // namespace tessera::kernels::expert_gemm

#include "cuda/kernels/expert_gemm/consume.cuh"
#include "cuda/kernels/expert_gemm/produce.cuh"
#include "cuda/kernels/expert_gemm/schedule.cuh"

namespace tessera::kernels::expert_gemm {

template <class C, bool kMarked>
__global__ void __launch_bounds__(C::kThreads, 1)
    expert_gemm_kernel(const __grid_constant__ CUtensorMap weight_map,
                       const __grid_constant__ CUtensorMap shared_weight_map, const __grid_constant__ CUtensorMap a_map,
                       const __grid_constant__ CUtensorMap out_map, const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<C>*>(shared_bytes);
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);  // uniform for the compiler
  const int warpgroup = warp / 4;
  // A consumer marks: it waits for the first stage anyway.
  cta::mark<kMarked>(params.marks, &gpu::KernelMarks::begin, C::kWarpgroupThreads);
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    ptx::prefetch_tensor_map(&out_map);
    if constexpr (!C::kGather) ptx::prefetch_tensor_map(&a_map);
    init_barriers(smem);
  }
  // Barriers are initialised before any thread of the cluster arrives on them.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
  ptx::wait_for_prerequisites();
  cta::mark<kMarked>(params.marks, &gpu::KernelMarks::work, C::kWarpgroupThreads);

  const WeightMaps weight_maps{weight_map, shared_weight_map, params.num_routed_experts, params.gate_half};
  if constexpr (C::kGather) {
    if (warp == 0) load_and_schedule<C>(smem, weight_maps, a_map, params);
    if (warp > 0 && warpgroup == 0) gather_tiles<C>(smem, params, warp - 1);
  } else {
    if (warp == 0) load_tiles<C>(smem, weight_maps, a_map, params);
    if (warp == 1) schedule_tiles<C>(smem, params);
  }
  if (warpgroup > 0) consume<C>(smem, out_map, params, warpgroup - 1);
  // No CTA leaves while the other may still arrive on its barriers.
  if constexpr (C::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  cta::mark_end<kMarked>(params.marks);
}

}  // namespace tessera::kernels::expert_gemm
