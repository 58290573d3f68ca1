// The mixed workload as one launch, against one launch per task, a CUDA graph of those, streams, and an atomic work
// queue, all in one process on the same data; and the cost of the mapping: the same launch with a table of tiles
// instead of decode.
#include <algorithm>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "cuda/core/memory.h"
#include "cuda/core/stream.h"
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
struct DeviceArray : cuda::DeviceBytes {
  DeviceArray() = default;
  explicit DeviceArray(size_t count) : DeviceBytes(count * sizeof(T)) {}
  T* get() const { return as<T>(); }
};

template <class T>
DeviceArray<T> upload(const std::vector<T>& host) {
  DeviceArray<T> device(host.size());
  TESSERA_CUDA_CHECK(cudaMemcpy(device.get(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

struct Mix {
  DeviceArray<float> pool;  // every task reads its operands from here
  std::vector<DeviceArray<int32_t>> offsets;
  std::vector<MixedTask> tasks;
  size_t out_floats = 0;
  DeviceArray<float> out;
};

// `num_tasks` of alternating kinds; sizes spread over a factor of 64 up to `scale`.
Mix make_mix(int num_tasks, int scale, uint32_t seed) {
  std::mt19937 rng(seed);
  Mix mix;
  constexpr int kPool = 1 << 22;
  std::vector<float> numbers(kPool);
  for (float& x : numbers) x = static_cast<float>(static_cast<int>(rng() % 2001) - 1000) / 500.0f;
  mix.pool = upload(numbers);
  const float* pool = mix.pool.get();
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
      for (int segment = 0; segment < task.n; ++segment)
        offsets.push_back(std::min(kPool - 1, offsets.back() + static_cast<int>(rng() % 512)));
      mix.offsets.push_back(upload(offsets));
      task.offsets = mix.offsets.back().get();
    }
    mix.tasks.push_back(task);
  }
  mix.out = DeviceArray<float>(mix.out_floats);
  for (int i = 0; i < num_tasks; ++i) mix.tasks[i].out = mix.out.get() + out_begin[i];
  return mix;
}

std::vector<int32_t> tiles_per_task(const Mix& mix) {
  std::vector<int32_t> tiles;
  for (const MixedTask& task : mix.tasks) tiles.push_back(mixed_tiles(task));
  return tiles;
}

// Of one tile, not of the task: the tail of a launch is made of tiles.
std::vector<double> cost_per_task(const Mix& mix) {
  std::vector<double> cost;
  for (const MixedTask& task : mix.tasks)
    cost.push_back(task.kind == TaskKind::gemm ? static_cast<double>(task.k) : 16.0);
  return cost;
}

std::vector<TileCoord> tile_table(const BatchPlan& plan) {
  std::vector<TileCoord> table;
  for (int32_t tile = 0; tile < plan.num_tiles(); ++tile) table.push_back(plan.locate(tile));
  return table;
}

// As many CTAs as the device holds at once.
int resident_ctas() {
  int multiprocessors = 0, ctas_each = 0;
  TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  TESSERA_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&ctas_each, queue_kernel, kMixedThreads, 0));
  return multiprocessors * ctas_each;
}

// One mix and every way to run it; each way enqueues the whole mix on stream().
class MixRunner {
 public:
  explicit MixRunner(Mix mix)
      : mix_(std::move(mix)),
        tiles_(tiles_per_task(mix_)),
        device_tasks_(upload(mix_.tasks)),
        params_{device_tasks_.get()},
        host_plan_(tiles_, TaskOrder::heavy_first, cost_per_task(mix_)),
        device_plan_(host_plan_),
        counter_(upload(std::vector<int32_t>{0})),
        table_(upload(tile_table(host_plan_))),
        resident_ctas_(resident_ctas()) {
    TESSERA_CUDA_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeGlobal));
    streams();  // parallel branches, as a careful user would build it
    TESSERA_CUDA_CHECK(cudaStreamEndCapture(stream(), &graph_));
    TESSERA_CUDA_CHECK(cudaGraphInstantiate(&graph_exec_, graph_, 0));
  }
  ~MixRunner() {
    cudaGraphExecDestroy(graph_exec_);
    cudaGraphDestroy(graph_);
  }
  MixRunner(const MixRunner&) = delete;
  MixRunner& operator=(const MixRunner&) = delete;

  void batched() const { batching::run_batched<Mixed>(device_plan_.view(), params_, stream()); }
  void persistent() const { batching::run_batched<Mixed>(device_plan_.view(), params_, stream(), resident_ctas_); }
  void atomic_queue() const {
    TESSERA_CUDA_CHECK(cudaMemsetAsync(counter_.get(), 0, sizeof(int32_t), stream()));
    queue_kernel<<<resident_ctas_, kMixedThreads, 0, stream()>>>(device_plan_.view(), params_, counter_.get());
  }
  void streams() const {
    fork_.record(stream_);
    for (const cuda::Stream& lane : lanes_) fork_.make_wait(lane);
    for (int task = 0; task < num_tasks(); ++task) launch_task(task, lanes_[task % kLanes].get());
    for (int lane = 0; lane < kLanes; ++lane) {
      joined_[lane].record(lanes_[lane]);
      joined_[lane].make_wait(stream_);
    }
  }
  void graph() const { TESSERA_CUDA_CHECK(cudaGraphLaunch(graph_exec_, stream())); }
  void separate() const {
    for (int task = 0; task < num_tasks(); ++task) launch_task(task, stream());
  }
  void by_table() const { table_kernel<<<host_plan_.num_tiles(), kMixedThreads, 0, stream()>>>(table_.get(), params_); }

  // NaNs, equal to nothing: an element that the next run leaves out shows.
  // On the runs' own stream: it does not wait for the default stream.
  void clear_output() const {
    TESSERA_CUDA_CHECK(cudaMemsetAsync(mix_.out.get(), 0xFF, mix_.out_floats * sizeof(float), stream()));
  }
  std::vector<float> take_output() const {
    std::vector<float> host(mix_.out_floats);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(stream()));
    TESSERA_CUDA_CHECK(cudaMemcpy(host.data(), mix_.out.get(), host.size() * sizeof(float), cudaMemcpyDeviceToHost));
    clear_output();
    return host;
  }

  cudaStream_t stream() const { return stream_.get(); }
  int num_tasks() const { return static_cast<int>(mix_.tasks.size()); }
  int num_tiles() const { return host_plan_.num_tiles(); }

 private:
  static constexpr int kLanes = 8;

  void launch_task(int task, cudaStream_t on) const {
    single_task_kernel<<<tiles_[task], kMixedThreads, 0, on>>>(params_, task);
  }

  Mix mix_;
  std::vector<int32_t> tiles_;
  DeviceArray<MixedTask> device_tasks_;
  Mixed::Params params_;
  BatchPlan host_plan_;
  DeviceBatchPlan device_plan_;
  DeviceArray<int32_t> counter_;
  DeviceArray<TileCoord> table_;
  int resident_ctas_;
  cuda::Stream stream_;
  cuda::Stream lanes_[kLanes];
  cuda::Event fork_;
  cuda::Event joined_[kLanes];
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t graph_exec_ = nullptr;
};

using Way = void (MixRunner::*)() const;

double median_us(const MixRunner& runner, Way way) {
  const cuda::Event begin(cuda::EventUse::time), end(cuda::EventUse::time);
  std::vector<float> times;
  for (int i = 0; i < 33; ++i) {
    begin.record(runner.stream());
    (runner.*way)();
    end.record(runner.stream());
    end.synchronize();
    if (i >= 3) times.push_back(end.milliseconds_since(begin) * 1e3f);  // the first runs warm up
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

bool all_ways_agree(const MixRunner& runner) {
  runner.clear_output();
  runner.separate();
  const std::vector<float> expected = runner.take_output();
  bool same = true;
  for (const Way way : {&MixRunner::batched, &MixRunner::persistent, &MixRunner::atomic_queue, &MixRunner::streams,
                        &MixRunner::by_table}) {
    (runner.*way)();
    same = same && runner.take_output() == expected;
  }
  return same;
}

void bench_mix(int num_tasks, int scale) {
  const MixRunner runner(make_mix(num_tasks, scale, 5));
  const bool same = all_ways_agree(runner);
  // One statement each: the order of a call's arguments is the compiler's, and the repetitions belong at the end.
  const double batched = median_us(runner, &MixRunner::batched);
  const double by_table = median_us(runner, &MixRunner::by_table);
  const double persistent = median_us(runner, &MixRunner::persistent);
  const double atomic_queue = median_us(runner, &MixRunner::atomic_queue);
  const double graph = median_us(runner, &MixRunner::graph);
  const double streams = median_us(runner, &MixRunner::streams);
  const double separate = median_us(runner, &MixRunner::separate);
  const double batched_again = median_us(runner, &MixRunner::batched);
  const double by_table_again = median_us(runner, &MixRunner::by_table);
  std::printf(
      "%4d tasks %6d tiles: batched %.1f us, persistent %.1f, atomic queue %.1f, graph %.1f, streams %.1f, separate "
      "%.1f; table %.1f; again %.1f %.1f; %s\n",
      runner.num_tasks(), runner.num_tiles(), batched, persistent, atomic_queue, graph, streams, separate, by_table,
      batched_again, by_table_again, same ? "same bits" : "DIFFERENT");
}

}  // namespace
}  // namespace tessera::bench

int main() {
  for (const int tasks : {24, 96, 384, 1024}) {
    for (const int scale : {128, 512, 1024}) tessera::bench::bench_mix(tasks, scale);
  }
  return 0;
}
