// `tessera bench moe --floor` on a GPU: what reading the weights must take, and where a layer's time goes as it runs.
#pragma once

#include <span>

#include "cuda_device.h"
#include "moe/model/layer_timeline.h"
#include "moe_bench.h"
#include "moe_check.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::cli {

class MoeFloor {
 public:
  static constexpr size_t kBufferBytes = size_t{1} << 30;  // twenty times an H100's L2: every pass comes from HBM

  /// Measures the read rate on `buffer` (kBufferBytes, filled with what weights look like) and the timer's step.
  explicit MoeFloor(DeviceMemory buffer);
  ~MoeFloor();
  MoeFloor(const MoeFloor&) = delete;
  MoeFloor& operator=(const MoeFloor&) = delete;

  /// Of the layer on `sets` in turn, so many that one has left the L2 before its turn comes again. `layer_seconds`:
  /// about what a layer takes, for the number of replays. Writes the sets' outputs.
  FloorResult measure(const moe::LayerConfig& config, const moe::LaunchPolicy& policy,
                      std::span<const FinishedRun> sets, int32_t num_tasks, double layer_seconds);

 private:
  class Layers;

  double read_seconds(size_t num_bytes) const;
  double graph_seconds(const Layers& layers, int64_t layers_a_graph) const;
  std::vector<cuda::LayerMarks> replay_marked(const Layers& layers, int64_t num_replays) const;

  DeviceMemory buffer_, found_, marks_, cleared_;
  DeviceTimer timer_;
  CUstream_st* stream_ = nullptr;
  double bytes_per_second_ = 0.0;
  double timer_step_seconds_ = 0.0;
};

}  // namespace tessera::cli
