// The result of timed runs against the fp64 oracle, on a few tokens: only their experts' weights are read.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "tessera/moe/layer_config.h"

namespace tessera::cli {

/// The timed result against fp64.
struct CheckResult {
  int num_tokens = 0;
  double largest_error_of_bound = 0.0;  ///< above 1 is wrong; infinite where something is not finite
  bool passed() const { return num_tokens > 0 && largest_error_of_bound <= 1.0; }
};

/// A run that has ended; pointers to the memory in which it ran. ids are int32; no biases, maps or shared experts.
struct FinishedRun {
  moe::LayerWeights weights;
  moe::LayerInputs inputs;
};

/// Copies `bytes` from that memory to the host's; called by several threads at once.
using CopyToHost = std::function<void(void* to, const void* from, size_t bytes)>;

/// Up to six tokens, from the first to the last, of the runs in turn. `accumulator_unit`: what their sums round to, see
/// moe/judge/oracle.h.
CheckResult check_runs(const moe::LayerConfig& config, std::span<const FinishedRun> runs, double accumulator_unit,
                       const CopyToHost& copy);

}  // namespace tessera::cli
