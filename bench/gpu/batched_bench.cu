// The mixed workload as one launch, against one launch per task, a CUDA graph of those, streams, and an atomic work
// queue, all in one process on the same data; and the cost of the mapping: the same launch with a table of tiles
// instead of decode.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "gpu/mixed_workload.cuh"

namespace tessera::bench {
namespace {

using batching::BatchPlan;
using batching::BatchView;
using batching::DeviceBatchPlan;
using batching::TaskOrder;
using batching::TileCoord;

// One task, one launch.
__global__ void __launch_bounds__(kMixedThreads) single_task_kernel(Mixed::Params params, int32_t task) {
  Mixed::run_tile(params, {task, static_cast<int32_t>(blockIdx.x)});
}

// A queue: persistent CTAs take tiles from a counter in device memory.
__global__ void __launch_bounds__(kMixedThreads) queue_kernel(BatchView plan, Mixed::Params params, int32_t* counter) {
  __shared__ int32_t taken;
  while (true) {
    __syncthreads();  // the previous tile number has been read
    if (threadIdx.x == 0) taken = atomicAdd(counter, 1);
    __syncthreads();  // the new one is written
    if (taken >= plan.num_tiles) return;
    const TileCoord rank = decode_warp(batching::DeviceWarp{}, plan.prefix, taken);
    Mixed::run_tile(params, {plan.task_order[rank.task_idx], rank.tile_idx});
  }
}

// One table entry a tile instead of the prefix.
__global__ void __launch_bounds__(kMixedThreads) table_kernel(const TileCoord* table, Mixed::Params params) {
  Mixed::run_tile(params, table[blockIdx.x]);
}

template <class T>
T* upload(const std::vector<T>& host) {
  T* device = nullptr;
  TESSERA_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&device), host.size() * sizeof(T)));
  TESSERA_CUDA_CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

struct Mix {
  std::vector<MixedTask> tasks;
  size_t out_floats = 0;
  float* out = nullptr;
};

// `num_tasks` of alternating kinds; sizes spread over a factor of 64 up to `scale`.
Mix make_mix(int num_tasks, int scale, uint32_t seed) {
  std::mt19937 rng(seed);
  Mix mix;
  constexpr int kPool = 1 << 22;
  std::vector<float> numbers(kPool);
  for (float& x : numbers) x = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 500.0f;
  const float* pool = upload(numbers);
  std::vector<size_t> out_begin;
  for (int i = 0; i < num_tasks; ++i) {
    const int size = std::max(8, scale >> (rng() % 7));
    MixedTask task{static_cast<TaskKind>(i % 3), 0, 0, 0, pool, pool + kPool / 2, nullptr, nullptr};
    out_begin.push_back(mix.out_floats);
    if (task.kind == TaskKind::gemm) {
      task.m = size;
      task.n = std::max(8, scale >> (rng() % 7));
      task.k = 16 + static_cast<int>(rng() % 256);
      mix.out_floats += static_cast<size_t>(task.m) * task.n;
    } else {
      task.n = task.kind == TaskKind::gelu ? size * 64 : size;
      mix.out_floats += task.n;
    }
    if (task.kind == TaskKind::segment_sum) {
      std::vector<int32_t> offsets = {0};
      for (int s = 0; s < task.n; ++s)
        offsets.push_back(std::min(kPool - 1, offsets.back() + static_cast<int>(rng() % 512)));
      task.offsets = upload(offsets);
    }
    mix.tasks.push_back(task);
  }
  TESSERA_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&mix.out), mix.out_floats * sizeof(float)));
  for (int i = 0; i < num_tasks; ++i) mix.tasks[i].out = mix.out + out_begin[i];
  return mix;
}

double median_us(const std::function<void()>& work, cudaStream_t stream) {
  cudaEvent_t begin, end;
  TESSERA_CUDA_CHECK(cudaEventCreate(&begin));
  TESSERA_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 33; ++i) {
    TESSERA_CUDA_CHECK(cudaEventRecord(begin, stream));
    work();
    TESSERA_CUDA_CHECK(cudaEventRecord(end, stream));
    TESSERA_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    TESSERA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms * 1e3f);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void bench_mix(int num_tasks, int scale) {
  const Mix mix = make_mix(num_tasks, scale, 5);
  cudaStream_t stream;
  TESSERA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<int32_t> tiles;
  std::vector<double> cost;
  for (const MixedTask& task : mix.tasks) {
    tiles.push_back(mixed_tiles(task));
    cost.push_back(task.kind == TaskKind::gemm ? static_cast<double>(task.k)
                                               : 16.0);  // of a tile: what the tail is made of
  }
  const Mixed::Params params{upload(mix.tasks)};
  const BatchPlan host_plan(tiles, TaskOrder::heavy_first, cost);
  const DeviceBatchPlan plan(host_plan);
  const BatchView view = plan.view();

  auto fetch = [&] {
    std::vector<float> host(mix.out_floats);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream));
    TESSERA_CUDA_CHECK(cudaMemcpy(host.data(), mix.out, host.size() * 4, cudaMemcpyDeviceToHost));
    TESSERA_CUDA_CHECK(cudaMemset(mix.out, 0xFF, host.size() * 4));
    return host;
  };
  auto separate = [&](cudaStream_t on) {
    for (int i = 0; i < num_tasks; ++i) single_task_kernel<<<tiles[i], kMixedThreads, 0, on>>>(params, i);
  };
  constexpr int kStreams = 8;
  cudaStream_t lanes[kStreams];
  cudaEvent_t fork, joined[kStreams];
  TESSERA_CUDA_CHECK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  for (int i = 0; i < kStreams; ++i) {
    TESSERA_CUDA_CHECK(cudaStreamCreateWithFlags(&lanes[i], cudaStreamNonBlocking));
    TESSERA_CUDA_CHECK(cudaEventCreateWithFlags(&joined[i], cudaEventDisableTiming));
  }
  auto streams = [&] {
    TESSERA_CUDA_CHECK(cudaEventRecord(fork, stream));
    for (cudaStream_t lane : lanes) TESSERA_CUDA_CHECK(cudaStreamWaitEvent(lane, fork, 0));
    for (int i = 0; i < num_tasks; ++i)
      single_task_kernel<<<tiles[i], kMixedThreads, 0, lanes[i % kStreams]>>>(params, i);
    for (int i = 0; i < kStreams; ++i) {
      TESSERA_CUDA_CHECK(cudaEventRecord(joined[i], lanes[i]));
      TESSERA_CUDA_CHECK(cudaStreamWaitEvent(stream, joined[i], 0));
    }
  };
  cudaGraph_t graph;
  cudaGraphExec_t graph_exec;
  TESSERA_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  streams();  // parallel branches, as a careful user would build it
  TESSERA_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  TESSERA_CUDA_CHECK(cudaGraphInstantiate(&graph_exec, graph, 0));

  int sms = 0, per_sm = 0;
  TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  TESSERA_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, queue_kernel, kMixedThreads, 0));
  int32_t* counter = upload(std::vector<int32_t>{0});
  auto queue = [&] {
    TESSERA_CUDA_CHECK(cudaMemsetAsync(counter, 0, 4, stream));
    queue_kernel<<<sms * per_sm, kMixedThreads, 0, stream>>>(view, params, counter);
  };
  std::vector<TileCoord> table;
  for (int32_t t = 0; t < host_plan.num_tiles(); ++t) table.push_back(host_plan.locate(t));
  const TileCoord* device_table = upload(table);

  auto batched = [&] { batching::run_batched<Mixed>(view, params, stream); };
  auto persistent = [&] { batching::run_batched<Mixed>(view, params, stream, sms * per_sm); };
  auto by_table = [&] { table_kernel<<<host_plan.num_tiles(), kMixedThreads, 0, stream>>>(device_table, params); };
  fetch();
  separate(stream);
  const auto expected = fetch();
  bool same = true;
  for (const std::function<void()>& work :
       std::vector<std::function<void()>>{batched, persistent, queue, streams, by_table}) {
    work();
    same = same && fetch() == expected;
  }
  const double batched_us = median_us(batched, stream);
  const double table_us = median_us(by_table, stream);
  std::printf(
      "%4d tasks %6d tiles: batched %.1f us, persistent %.1f, atomic queue %.1f, graph %.1f, streams %.1f, separate "
      "%.1f; table %.1f; again %.1f %.1f; %s\n",
      num_tasks, host_plan.num_tiles(), batched_us, median_us(persistent, stream), median_us(queue, stream),
      median_us([&] { TESSERA_CUDA_CHECK(cudaGraphLaunch(graph_exec, stream)); }, stream), median_us(streams, stream),
      median_us([&] { separate(stream); }, stream), table_us, median_us(batched, stream), median_us(by_table, stream),
      same ? "same bits" : "DIFFERENT");
}

}  // namespace
}  // namespace tessera::bench

int main() {
  for (const int tasks : {24, 96, 384, 1024}) {
    for (const int scale : {128, 512, 1024}) tessera::bench::bench_mix(tasks, scale);
  }
  return 0;
}
