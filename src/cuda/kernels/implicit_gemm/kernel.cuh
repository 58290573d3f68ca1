// Implicit GEMM: for every task its features x (record, window) matrix, tile by tile, in one launch.
//
//   D[feature][column] = sum over products of planes, taps and channels of  w[feature, tap, c] * x[record, window +
//   tap, c]
//
// Two CTAs work on the same columns and 128 features each. Per K step of 64 channels of one tap:
//
//   loading warp   waits empty[s]; TMA: its 128 feature rows of the weights, and one half of the columns' input rows
//                  into both CTAs                                                            --full[s]--> consumers
//   2 consumer WGs 64 features each: wait full[s], 4 x WGMMA, one group kept in flight, arrive empty[s] of both CTAs;
//                  at the end of a tile maximum over windows, bias, activation, store
//
// Every warp finds its tiles by itself, with the static schedule and a ballot over the tile prefix: tasks lie heavy
// first, so that all clusters end together.
#pragma once

#include <cuda.h>

#include "cuda/core/operand.h"
#include "cuda/cta/mainloop.cuh"
#include "cuda/kernels/implicit_gemm/launch.h"
#include "cuda/kernels/implicit_gemm/tiling.h"
#include "tessera/batching/decode_warp.cuh"
#include "tessera/batching/schedule.h"

namespace tessera::kernels::implicit_gemm {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kMaxProducts = 3;

// A warpgroup's sums; narrower tiles use the first columns.
using Accumulators = ptx::Fragment<kPolicy.tile_columns>;

struct TaskParams {
  TileShape shape;
  int32_t channel_steps;  // K steps of one tap
  int32_t taps;
  int32_t out_features;
  int32_t pooled;  // 0: one window, stored as a plain product
  float scale;
  int32_t relu;
  const float* bias;
  cta::OperandView out;
};

struct Params {
  CUtensorMap x_maps[kMaxTasks];       // [planes][records][positions][channels]
  CUtensorMap weight_maps[kMaxTasks];  // [planes][features][columns]
  TaskParams tasks[kMaxTasks];
  int32_t tile_end[kMaxTasks];    // tile prefix over ranks
  int32_t task_order[kMaxTasks];  // rank -> task
  int32_t num_tasks;
  int32_t num_tiles;
  int32_t num_products;  // 1, or 3 for split operands
  int64_t num_records;
  const int32_t* device_num_records;  // or null; then one task only
};

template <class Element_>
struct Config {
  using Element = Element_;
  static constexpr int kCluster = kPolicy.cluster_size;
  static constexpr int kStages = kPolicy.stages;
  static constexpr int kTileK = kPolicy.tile_k;
  static constexpr int kABytes = kPolicy.tile_features * kTileK * 2;
  static constexpr int kBBytes = kPolicy.tile_columns * kTileK * 2;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerWarps = kConsumers * 4;
  static constexpr int kThreads = 128 * (1 + kConsumers);

  static_assert(kTileK == cta::kStageColumns && kCluster == 2);
  static_assert(kPolicy.tile_features == kConsumers * cta::kWarpgroupRows);
};

// A warp stages 128 columns x 16 features of 16-bit results.
inline constexpr int kStagingColumns = 128;
inline constexpr int kStagingRowBytes = 32;
inline constexpr int kStagingBytes = kStagingColumns * kStagingRowBytes;

template <class C>
struct SharedStorage {
  alignas(1024) uint8_t a[C::kStages][C::kABytes];
  alignas(1024) uint8_t b[C::kStages][C::kBBytes];
  alignas(128) uint8_t staging[C::kConsumerWarps][kStagingBytes];
  uint64_t full[C::kStages];   // bytes of TMA
  uint64_t empty[C::kStages];  // every consumer warp of the cluster
};

// A tile as the roles of one CTA see it.
struct Tile {
  int32_t task;
  int32_t feature_begin;  // of this CTA
  int64_t record_begin;
};

// The tiles of this cluster, one after the other; all lanes of a warp take part.
class TileWalk {
 public:
  __device__ explicit TileWalk(const Params& params)
      : params_(params),
        num_records_(params.device_num_records == nullptr ? params.num_records : *params.device_num_records),
        schedule_{
            static_cast<int32_t>(blockIdx.x) / kPolicy.cluster_size,
            static_cast<int32_t>(gridDim.x) / kPolicy.cluster_size,
            params.device_num_records == nullptr ? params.num_tiles : params.tasks[0].shape.num_tiles(num_records_)},
        flat_tile_(schedule_.cta_idx) {}

  __device__ int64_t num_records() const { return num_records_; }

  __device__ bool next(Tile& tile) {
    if (flat_tile_ >= schedule_.num_tiles) return false;
    const batching::TilePrefix prefix{params_.tile_end, params_.num_tasks};
    const batching::TileCoord rank =
        batching::decode_warp(batching::DeviceWarp{}, prefix, static_cast<int32_t>(flat_tile_));
    tile.task = params_.task_order[rank.task_idx];
    const TileShape& shape = params_.tasks[tile.task].shape;
    const TileShape::Place place = shape.place(rank.tile_idx, num_records_);
    const int32_t cta_block =
        place.feature_block * kPolicy.cluster_size + static_cast<int32_t>(ptx::cluster_cta_rank());
    tile.feature_begin = cta_block * kPolicy.tile_features;
    tile.record_begin = static_cast<int64_t>(place.record_block) * shape.records_per_tile();
    flat_tile_ += schedule_.num_ctas;
    return true;
  }

 private:
  const Params& params_;
  int64_t num_records_;
  batching::Schedule schedule_;  // of clusters, not CTAs
  int64_t flat_tile_;
};

}  // namespace tessera::kernels::implicit_gemm

#include "cuda/kernels/implicit_gemm/consume.cuh"
#include "cuda/kernels/implicit_gemm/produce.cuh"

namespace tessera::kernels::implicit_gemm {

template <class C>
__device__ inline void init_barriers(SharedStorage<C>& smem) {
  for (int s = 0; s < C::kStages; ++s) {
    ptx::mbarrier_init(&smem.full[s], 1);
    ptx::mbarrier_init(&smem.empty[s], C::kConsumerWarps * C::kCluster);
  }
  ptx::fence_mbarrier_init();
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) implicit_gemm_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  auto& smem = *reinterpret_cast<SharedStorage<C>*>(shared_bytes);
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0);  // uniform for the compiler
  if (threadIdx.x == 0) init_barriers(smem);
  // Barriers are initialised before any thread of the cluster arrives on them.
  ptx::cluster_arrive();
  ptx::cluster_wait();
  if (warp == 0) load_tiles<C>(smem, params);
  if (warp >= 4) consume<C>(smem, params, warp / 4 - 1);
  // No CTA leaves while the other may still arrive on its barriers.
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

}  // namespace tessera::kernels::implicit_gemm
