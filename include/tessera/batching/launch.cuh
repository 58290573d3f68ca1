// Runs many tasks of different size and kind as one kernel launch. What a user writes:
//
//   struct Scale {
//     struct Params { const ScaleTask* tasks; };                              // device memory, passed by value
//     static constexpr int kThreads = 256;                                    // of a CTA
//     static __device__ void run_tile(const Params& p, TileCoord tile) {...}  // one tile of one task, by the whole CTA
//   };
//   DeviceBatchPlan plan(BatchPlan(tiles_per_task, TaskOrder::heavy_first));  // once: uploads the prefix and the order
//   run_batched<Scale>(plan.view(), params, stream);                          // any number of times
//
// Tasks of several kinds: run_tile branches once on what task tile.task_idx is; the branch is uniform in the CTA. A
// tile must not depend on another tile of the launch. run_tile may use static shared memory and __syncthreads; the
// runner puts a CTA barrier between two tiles of a CTA, so that a tile finds the shared memory of the one before it no
// longer in use.
//
// Grid: one CTA a tile by default, which leaves the balancing to the hardware's own scheduler (no atomics, no queue);
// any num_ctas >= 1 computes everything. Cost over a launch of a single task: one decode a tile, one warp's ballot per
// 32 tasks. run_batched allocates nothing, does not synchronise and can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>
#include <vector>

#include "tessera/batching/decode_warp.cuh"
#include "tessera/batching/plan.h"
#include "tessera/batching/schedule.h"
#include "tessera/core/check.h"

namespace tessera::batching {

/// A plan in device memory.
struct BatchView {
  TilePrefix prefix;          ///< over ranks; device memory
  const int32_t* task_order;  ///< [num_tasks] rank -> task; device memory
  int32_t num_tiles;
};

template <class W>
concept DeviceWorkload = requires(const typename W::Params& params, TileCoord tile) {
  { W::kThreads } -> std::convertible_to<int>;
  W::run_tile(params, tile);
};

/// Owns the device copy of a BatchPlan. Construction allocates and copies (synchronously); launches do neither.
class DeviceBatchPlan {
 public:
  explicit DeviceBatchPlan(const BatchPlan& plan) : num_tiles_(plan.num_tiles()), num_tasks_(plan.prefix().num_tasks) {
    if (num_tasks_ == 0) return;
    std::vector<int32_t> both(plan.prefix().tile_end, plan.prefix().tile_end + num_tasks_);
    both.insert(both.end(), plan.task_order().begin(), plan.task_order().end());
    require(cudaMalloc(reinterpret_cast<void**>(&data_), both.size() * sizeof(int32_t)));
    require(cudaMemcpy(data_, both.data(), both.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
  }
  ~DeviceBatchPlan() { cudaFree(data_); }
  DeviceBatchPlan(const DeviceBatchPlan&) = delete;
  DeviceBatchPlan& operator=(const DeviceBatchPlan&) = delete;

  BatchView view() const { return {{data_, num_tasks_}, data_ + num_tasks_, num_tiles_}; }

 private:
  static void require(cudaError_t error) { TESSERA_CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

  int32_t* data_ = nullptr;  // tile_end, then task_order
  int32_t num_tiles_;
  int32_t num_tasks_;
};

template <DeviceWorkload W>
__global__ void __launch_bounds__(W::kThreads)
    run_batched_kernel(const __grid_constant__ BatchView plan, const __grid_constant__ typename W::Params params) {
  const Schedule schedule{static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(gridDim.x), plan.num_tiles};
  // Not for_each_tile: its body is a host function too, and a kernel's loop reads as well without a lambda.
  for (int64_t flat_tile = schedule.cta_idx; flat_tile < schedule.num_tiles; flat_tile += schedule.num_ctas) {
    if (flat_tile != schedule.cta_idx) __syncthreads();  // shared memory of the previous tile is no longer read
    // Every warp decodes for itself: cheaper than one warp and a barrier.
    const TileCoord rank = decode_warp(DeviceWarp{}, plan.prefix, static_cast<int32_t>(flat_tile));
    W::run_tile(params, {plan.task_order[rank.task_idx], rank.tile_idx});
  }
}

/// Enqueues every tile of `plan` on `stream`. A plan without tiles launches nothing.
template <DeviceWorkload W>
void run_batched(const BatchView& plan, const typename W::Params& params, cudaStream_t stream, int32_t num_ctas = 0) {
  static_assert(W::kThreads % kWarpSize == 0 && W::kThreads <= 1024);
  TESSERA_CHECK(num_ctas >= 0, num_ctas);
  if (plan.num_tiles == 0) return;
  const int32_t grid = num_ctas > 0 ? num_ctas : plan.num_tiles;
  run_batched_kernel<W><<<dim3(static_cast<unsigned>(grid)), dim3(W::kThreads), 0, stream>>>(plan, params);
  const cudaError_t error = cudaGetLastError();
  TESSERA_CHECK(error == cudaSuccess, cudaGetErrorString(error));
}

}  // namespace tessera::batching
