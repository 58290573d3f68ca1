// Irregular work of one's own as one kernel launch: vectors of unequal length are scaled, and sums of their elements
// taken, two kinds of task side by side. The results are whole numbers and compared exactly.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tessera/batching/launch.cuh"
#include "tessera/cuda/device.h"

using tessera::batching::BatchPlan;
using tessera::batching::DeviceBatchPlan;
using tessera::batching::run_batched;
using tessera::batching::TaskOrder;
using tessera::batching::TileCoord;

enum class Kind : int { scale, sum };

struct Task {
  Kind kind;
  int size;
  float* values;  // [size]; scale: doubled in place
  float* sums;    // sum: [tiles], one partial sum a tile
};

struct RaggedVectors {
  struct Params {
    const Task* tasks;  // device memory
  };
  static constexpr int kThreads = 256;
  static constexpr int kTileSize = 1024;  // elements of a tile, whatever the kind

  static __device__ void run_tile(const Params& params, TileCoord tile) {
    const Task& task = params.tasks[tile.task_idx];
    const int begin = tile.tile_idx * kTileSize;
    const int end = min(task.size, begin + kTileSize);
    if (task.kind == Kind::scale) {  // the same for the whole CTA
      for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) task.values[i] *= 2.0f;
      return;
    }
    __shared__ float sum;
    if (threadIdx.x == 0) sum = 0.0f;
    __syncthreads();  // sum is zero for every thread
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) atomicAdd(&sum, task.values[i]);
    __syncthreads();  // sum is complete
    if (threadIdx.x == 0) task.sums[tile.tile_idx] = sum;
  }
};

static void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

static float* allocate(int count) {
  float* memory = nullptr;
  require(cudaMallocManaged(&memory, static_cast<size_t>(count > 0 ? count : 1) * sizeof(float)));
  return memory;
}

int main() {
  const std::string why = tessera::cuda::why_current_unusable();
  if (!why.empty()) return std::printf("%s: nothing to launch\n", why.c_str()), 0;

  constexpr int kSizes[] = {5000, 0, 3, 100000, 1024, 77};
  constexpr int kNumTasks = static_cast<int>(sizeof kSizes / sizeof *kSizes);
  Task* tasks = nullptr;
  require(cudaMallocManaged(&tasks, kNumTasks * sizeof(Task)));
  std::vector<int32_t> tiles_per_task;
  for (int t = 0; t < kNumTasks; ++t) {
    const int tiles = (kSizes[t] + RaggedVectors::kTileSize - 1) / RaggedVectors::kTileSize;
    tasks[t] = {t % 2 == 0 ? Kind::scale : Kind::sum, kSizes[t], allocate(kSizes[t]), allocate(tiles)};
    for (int i = 0; i < kSizes[t]; ++i) tasks[t].values[i] = 1.0f;
    tiles_per_task.push_back(tiles);
  }

  const DeviceBatchPlan plan(BatchPlan(tiles_per_task, TaskOrder::heavy_first));  // once: two short arrays go up
  run_batched<RaggedVectors>(plan.view(), {tasks}, nullptr);                      // any number of times
  require(cudaDeviceSynchronize());

  for (int t = 0; t < kNumTasks; ++t) {
    float sum = 0.0f;
    for (int i = 0; i < tiles_per_task[static_cast<size_t>(t)]; ++i) sum += tasks[t].sums[i];
    const bool right = tasks[t].kind == Kind::sum ? sum == static_cast<float>(kSizes[t])
                                                  : kSizes[t] == 0 || tasks[t].values[kSizes[t] - 1] == 2.0f;
    if (!right) return std::printf("task %d is wrong\n", t), 1;
  }
  std::printf("%d tiles of %d tasks of 2 kinds in one kernel launch: all results right\n", plan.view().num_tiles,
              kNumTasks);
}
