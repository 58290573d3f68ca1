// The steps of a CPU layer's run. They have the names and the order of the kernels that a GPU runs, so that a step here
// and its kernel read side by side:
//
//   plan      rows grouped by expert                                   plan.cc      src/cuda/kernels/moe_plan
//   gate_up   GEMM 1: tokens gathered, activation of the results       gate_up.cc   src/cuda/kernels/expert_gemm
//   down      GEMM 2                                                   down.cc      src/cuda/kernels/expert_gemm
//   combine   a token's rows, weighted, summed in slot order           combine.cc   src/cuda/kernels/combine
//
// Each returns when its work is done. On a GPU the shared expert is a number of experts as wide as the others; here it
// is one more task of the width it has.
#pragma once

#include "moe/cpu/products.h"
#include "moe/cpu/workspace.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// One run, laid out: what its steps are told.
struct CpuRun {
  const LayerConfig& config;
  const LayerWeights& weights;
  const LayerProducts& products;
  ThreadPool& pool;
  const LayerInputs& inputs;
  const CpuWorkspace& workspace;

  size_t element_bytes() const { return dtype_size(config.dtype); }
};

namespace cpu_steps {

void plan(const CpuRun& run);
void gate_up(const CpuRun& run);
void down(const CpuRun& run);
void combine(const CpuRun& run);

}  // namespace cpu_steps
}  // namespace tessera::moe
