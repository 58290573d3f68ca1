// What `tessera bench moe` measures, and who measures it: one class a back end, one report for all.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/model/layer_timeline.h"
#include "moe_check.h"
#include "moe_options.h"
#include "tessera/core/dtype.h"

namespace tessera::cli {

struct Spread {
  double median = 0.0, low = 0.0, high = 0.0;
};

/// Of an odd or even number of values, at least one.
Spread spread_of(std::vector<double> values);

/// Clock and power while something ran.
struct DeviceState {
  double sm_mhz = 0.0, watts = 0.0;  ///< median, mean
};

/// The layer and dense products of as many FLOPs, turn by turn, so that clocks and heat fall on both alike.
struct Duel {
  int num_blocks = 0;          ///< of each
  int64_t runs_a_block = 0;    ///< of the layer
  double seconds_a_block = 0;  ///< of the layer, median
  Spread layer_seconds;        ///< of one run, over the blocks
  std::optional<Spread> dense_seconds;
  std::optional<Spread> ratio;  ///< dense / layer of neighbouring blocks: 1 is as fast as dense products
  std::optional<DeviceState> layer_state, dense_state;
};

struct KernelTime {
  std::string name;  ///< "plan", "gemm1", "gemm2", "combine"
  double seconds = 0.0;
  double flops = 0.0, bytes = 0.0;  ///< necessary ones, see moe/model/explain.h
  std::optional<double> dense_seconds;
};

/// What reading the weights must take, and where the layer's time goes as its kernels run together.
struct FloorResult {
  double read_bytes_per_second = 0.0;  ///< of a long streaming read, in this run
  double weight_bytes = 0.0;           ///< of the experts with rows
  std::optional<double> read_seconds;  ///< one launch that reads as many bytes; none where they exceed the buffer
  double graph_seconds = 0.0;          ///< a layer among others in a CUDA graph, weights cold
  double marked_graph_seconds = 0.0;   ///< the same with kernels that write marks
  double timer_step_seconds = 0.0;     ///< marks are no finer
  int64_t num_replays = 0;             ///< of a graph of one layer, over which timeline's medians are
  moe::LayerTimeline timeline;

  double seconds() const { return weight_bytes / read_bytes_per_second; }
};

struct MoeResult {
  int64_t num_rows = 0;
  int32_t num_tasks = 0;            ///< experts with rows
  double flops = 0.0, bytes = 0.0;  ///< of the layer
  /// What ran on a GPU, in words, name by name; the number of tokens decides it too.
  std::vector<std::pair<std::string, std::string>> launch;
  int num_sets = 1;  ///< of weights and tokens that the runs took turns on, so that caches forget them
  Duel burst;
  std::optional<Duel> sustained;
  std::vector<KernelTime> kernels;
  std::optional<FloorResult> floor;
  CheckResult check;
};

struct MoeBenchOptions {
  DType dtype = DType::bf16;
  double seconds = 2.0;  ///< of a sustained block; 0: burst only
  bool dense = true;     ///< measure dense products too
  int num_threads = 0;   ///< of the CPU back end; 0: every processor
  uint64_t seed = 1;
  bool floor = false;  ///< measure FloorResult too; a GPU only
};

class MoeBench {
 public:
  virtual ~MoeBench() = default;
  virtual MoeResult measure(const MoeCase& moe_case) = 0;
  /// Names and values: device, driver, clocks, libraries; what is missing is said here.
  virtual std::vector<std::pair<std::string, std::string>> description() const = 0;
  virtual std::string device() const = 0;  ///< "cuda" or "cpu"
};

/// Throws Error for a dtype or shape that the back end does not have.
std::unique_ptr<MoeBench> make_cpu_moe_bench(const moe::Preset& shape, const MoeBenchOptions& options);

/// Empty if the CUDA back end can run here, else the reason why not.
std::string cuda_moe_unavailable();
/// Only where cuda_moe_unavailable() is empty.
std::unique_ptr<MoeBench> make_cuda_moe_bench(const moe::Preset& shape, const moe::LaunchPolicy& policy,
                                              const MoeBenchOptions& options);

}  // namespace tessera::cli
