// The framework on the device: decode_warp equals decode, and run_batched visits every tile once for any grid.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cuda/core/memory.h"
#include "tessera/batching/launch.cuh"

namespace tessera::testing {
namespace {

using batching::BatchPlan;
using batching::DeviceBatchPlan;
using batching::TaskOrder;
using batching::TileCoord;
using batching::TilePrefix;

__global__ void decode_kernel(TilePrefix prefix, int32_t num_tiles, TileCoord* out) {
  const auto warp = static_cast<int32_t>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  const auto num_warps = static_cast<int32_t>(gridDim.x * blockDim.x / 32);
  for (int32_t tile = warp; tile < num_tiles; tile += num_warps) {
    const TileCoord coord = decode_warp(batching::DeviceWarp{}, prefix, tile);
    if (threadIdx.x % 32 == tile % 32) out[tile] = coord;  // any lane has the answer
  }
}

// Visits[task_begin[task] + tile] counts visits; kinds are told apart by the task's number.
struct Visit {
  struct Params {
    int32_t* visits;
    const int32_t* task_begin;
  };
  static constexpr int kThreads = 64;
  static __device__ void run_tile(const Params& params, TileCoord tile) {
    __shared__ int32_t scratch;
    if (threadIdx.x == 0) scratch = tile.tile_idx;
    __syncthreads();  // scratch is written
    if (threadIdx.x == 63) atomicAdd(&params.visits[params.task_begin[tile.task_idx] + scratch], 1);
  }
};

template <class T>
cuda::DeviceBytes upload(const std::vector<T>& host) {
  cuda::DeviceBytes device(host.size() * sizeof(T) + 1);
  TESSERA_CUDA_CHECK(cudaMemcpy(device.data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

TEST(Batching, DecodeWarpEqualsDecode) {
  std::mt19937 rng(1);
  for (const int num_tasks : {1, 2, 31, 32, 33, 63, 64, 65, 128, 257, 1023, 1024, 1025, 2048, 5000}) {
    for (const unsigned spread : {1u, 2u, 9u, 40u}) {
      std::vector<int32_t> ends;
      int32_t total = 0;
      for (int i = 0; i < num_tasks; ++i) ends.push_back(total += static_cast<int32_t>(rng() % spread));
      if (total == 0) continue;
      const cuda::DeviceBytes device_ends = upload(ends);
      const cuda::DeviceBytes device_out = upload(std::vector<TileCoord>(total));
      decode_kernel<<<64, 256>>>({device_ends.as<int32_t>(), num_tasks}, total, device_out.as<TileCoord>());
      std::vector<TileCoord> got(total);
      TESSERA_CUDA_CHECK(
          cudaMemcpy(got.data(), device_out.data(), got.size() * sizeof(TileCoord), cudaMemcpyDeviceToHost));
      for (int32_t t = 0; t < total; ++t)
        ASSERT_EQ(got[t], decode(TilePrefix{ends.data(), num_tasks}, t)) << num_tasks << " " << t;
    }
  }
}

TEST(Batching, EveryTileOnceForAnyGrid) {
  std::mt19937 rng(2);
  std::vector<int32_t> tiles;
  std::vector<int32_t> begin;
  int32_t total = 0;
  for (int i = 0; i < 77; ++i) {
    begin.push_back(total);
    tiles.push_back(static_cast<int32_t>(rng() % 6));
    total += tiles.back();
  }
  const cuda::DeviceBytes device_begin = upload(begin);
  for (const TaskOrder order : {TaskOrder::natural, TaskOrder::heavy_first, TaskOrder::interleaved}) {
    const BatchPlan host_plan(tiles, order);
    const DeviceBatchPlan plan(host_plan);
    for (int grid = 0; grid <= 200; ++grid) {
      const cuda::DeviceBytes visits = upload(std::vector<int32_t>(total, 0));
      batching::run_batched<Visit>(plan.view(), {visits.as<int32_t>(), device_begin.as<int32_t>()}, nullptr, grid);
      std::vector<int32_t> got(total);
      TESSERA_CUDA_CHECK(cudaMemcpy(got.data(), visits.data(), got.size() * 4, cudaMemcpyDeviceToHost));
      ASSERT_EQ(got, std::vector<int32_t>(total, 1)) << grid;
    }
  }
}

TEST(Batching, NoTilesLaunchesNothing) {
  const DeviceBatchPlan plan(BatchPlan(std::vector<int32_t>{0, 0, 0}, TaskOrder::natural));
  batching::run_batched<Visit>(plan.view(), {}, nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace tessera::testing
