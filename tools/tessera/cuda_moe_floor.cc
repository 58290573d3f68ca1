#include "cuda_moe_floor.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/kernels/probe/launch.h"

namespace tessera::cli {
namespace {

constexpr int kReadPasses = 20;          // over the whole buffer, timed one by one
constexpr int64_t kReadsInTurn = 20;     // of as many bytes as the active experts have
constexpr uint32_t kKey = 0x7FC1'0000u;  // found or not: nobody looks
constexpr int64_t kLayersAGraph = 20;    // at least; a graph's own launch is shared by so many
constexpr double kGraphSeconds = 0.05;   // at most, unless the sets alone take longer
constexpr int kGraphLaunches = 10;       // timed, after two that warm up
constexpr int64_t kFewestReplays = 9, kMostReplays = 101;
constexpr double kReplaySeconds = 0.2;

/// A graph of what `enqueue` puts into a stream.
class Graph {
 public:
  template <class Enqueue>
  Graph(CUstream_st* stream, const Enqueue& enqueue) {
    cudaGraph_t graph = nullptr;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture a graph");
    enqueue();
    require_cuda(cudaStreamEndCapture(stream, &graph), "capture a graph");
    const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    require_cuda(error, "make a graph ready");
  }
  ~Graph() { cudaGraphExecDestroy(exec_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(CUstream_st* stream) const { require_cuda(cudaGraphLaunch(exec_, stream), "launch a graph"); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace

/// The layer of each set, all on one workspace.
class MoeFloor::Layers {
 public:
  Layers(const moe::LayerConfig& config, const moe::LaunchPolicy& policy, std::span<const FinishedRun> sets)
      : sets_(sets) {
    for (const FinishedRun& set : sets) layers_.emplace_back(config, set.weights, policy);
    workspace_ = DeviceMemory(layers_.front().workspace_bytes(sets.front().inputs.num_tokens));
  }

  int64_t num_sets() const { return static_cast<int64_t>(sets_.size()); }
  void run(int64_t i, CUstream_st* stream) const {
    const auto set = static_cast<size_t>(i % num_sets());
    layers_[set].run(sets_[set].inputs, workspace_.get(), workspace_.bytes(), stream);
  }

 private:
  std::span<const FinishedRun> sets_;
  std::vector<moe::CudaLayer> layers_;
  DeviceMemory workspace_;
};

MoeFloor::MoeFloor(DeviceMemory buffer)
    : buffer_(std::move(buffer)),
      found_(sizeof(uint32_t)),
      marks_(sizeof(cuda::LayerMarks)),
      cleared_(sizeof(cuda::LayerMarks)) {
  require_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream");
  const cuda::LayerMarks cleared;
  require_cuda(cudaMemcpy(cleared_.get(), &cleared, sizeof(cleared), cudaMemcpyHostToDevice), "copy cleared marks");
  const DeviceMemory step(sizeof(uint64_t));
  kernels::probe::timer_step(static_cast<uint64_t*>(step.get()), nullptr);
  uint64_t nanoseconds = 0;
  require_cuda(cudaMemcpy(&nanoseconds, step.get(), sizeof(nanoseconds), cudaMemcpyDeviceToHost), "read the timer");
  timer_step_seconds_ = static_cast<double>(nanoseconds) * 1e-9;
  bytes_per_second_ = static_cast<double>(buffer_.bytes()) / read_seconds(buffer_.bytes());
}

MoeFloor::~MoeFloor() { cudaStreamDestroy(stream_); }

/// Of one launch that reads so many bytes, each time others; the median of several.
double MoeFloor::read_seconds(size_t num_bytes) const {
  const auto read = [&](int64_t i) {
    const auto windows = static_cast<int64_t>(buffer_.bytes() / num_bytes);
    const void* const data = buffer_.at(static_cast<size_t>(i % windows) * num_bytes);
    kernels::probe::read({data, num_bytes, kKey, static_cast<uint32_t*>(found_.get())}, nullptr);
  };
  const int64_t launches = num_bytes == buffer_.bytes() ? 1 : kReadsInTurn;
  timer_.seconds_a_run(launches, read);  // warms up
  std::vector<double> seconds;
  for (int pass = 0; pass < kReadPasses; ++pass)
    seconds.push_back(timer_.seconds_a_run(launches, [&](int64_t i) { read(pass * launches + i); }));
  return spread_of(std::move(seconds)).median;
}

/// Of one layer among many in a graph.
double MoeFloor::graph_seconds(const Layers& layers, int64_t layers_a_graph) const {
  layers.run(0, stream_);  // kernels are loaded before the capture
  const Graph graph(stream_, [&] {
    for (int64_t i = 0; i < layers_a_graph; ++i) layers.run(i, stream_);
  });
  const auto launch = [&](int64_t) { graph.launch(nullptr); };
  timer_.seconds_a_run(2, launch);
  std::vector<double> seconds;
  for (int i = 0; i < kGraphLaunches; ++i) seconds.push_back(timer_.seconds_a_run(1, launch));
  return spread_of(std::move(seconds)).median / static_cast<double>(layers_a_graph);
}

/// The marks of one-layer graphs, replayed on the sets in turn. Marks are cleared before a replay and kept after it, in
/// stream order, so nothing waits for the host.
std::vector<cuda::LayerMarks> MoeFloor::replay_marked(const Layers& layers, int64_t num_replays) const {
  std::vector<std::unique_ptr<Graph>> graphs;
  for (int64_t set = 0; set < layers.num_sets(); ++set)
    graphs.push_back(std::make_unique<Graph>(stream_, [&] { layers.run(set, stream_); }));
  const int64_t warm_up = layers.num_sets();
  const DeviceMemory kept(sizeof(cuda::LayerMarks) * static_cast<size_t>(warm_up + num_replays));
  for (int64_t i = 0; i < warm_up + num_replays; ++i) {
    require_cuda(
        cudaMemcpyAsync(marks_.get(), cleared_.get(), sizeof(cuda::LayerMarks), cudaMemcpyDeviceToDevice, stream_),
        "clear the marks");
    graphs[static_cast<size_t>(i % layers.num_sets())]->launch(stream_);
    require_cuda(cudaMemcpyAsync(kept.at(sizeof(cuda::LayerMarks) * static_cast<size_t>(i)), marks_.get(),
                                 sizeof(cuda::LayerMarks), cudaMemcpyDeviceToDevice, stream_),
                 "keep the marks");
  }
  require_cuda(cudaStreamSynchronize(stream_), "replay the graphs");
  std::vector<cuda::LayerMarks> marks(static_cast<size_t>(num_replays));
  require_cuda(cudaMemcpy(marks.data(), kept.at(sizeof(cuda::LayerMarks) * static_cast<size_t>(warm_up)),
                          sizeof(cuda::LayerMarks) * marks.size(), cudaMemcpyDeviceToHost),
               "copy the marks");
  return marks;
}

FloorResult MoeFloor::measure(const moe::LayerConfig& config, const moe::LaunchPolicy& policy,
                              std::span<const FinishedRun> sets, int32_t num_tasks, double layer_seconds) {
  FloorResult result;
  result.read_bytes_per_second = bytes_per_second_;
  result.timer_step_seconds = timer_step_seconds_;
  result.weight_bytes = moe::active_weight_bytes(config, num_tasks);
  // Weights are chunks of 16 bytes, their scales may end inside one.
  const auto num_bytes = static_cast<size_t>(result.weight_bytes) / 16 * 16;
  if (num_bytes > 0 && num_bytes <= buffer_.bytes()) result.read_seconds = read_seconds(num_bytes);

  const Layers plain(config, policy, sets);
  moe::LaunchPolicy with_marks = policy;
  with_marks.marks = static_cast<cuda::LayerMarks*>(marks_.get());
  const Layers marked(config, with_marks, sets);
  const auto fitting = static_cast<int64_t>(kGraphSeconds / layer_seconds);
  const int64_t wanted = std::clamp<int64_t>(fitting, 1, kLayersAGraph);
  const int64_t rounds = (wanted + plain.num_sets() - 1) / plain.num_sets();
  result.graph_seconds = graph_seconds(plain, rounds * plain.num_sets());
  result.marked_graph_seconds = graph_seconds(marked, rounds * marked.num_sets());
  result.num_replays = std::clamp(static_cast<int64_t>(kReplaySeconds / layer_seconds), kFewestReplays, kMostReplays);
  result.timeline = moe::timeline_of(replay_marked(marked, result.num_replays));
  return result;
}

}  // namespace tessera::cli
