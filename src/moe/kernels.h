// The table of kernels that run a layer's products on a GPU, the choice among them, and how one is launched. One row a
// kernel; needs no GPU and no CUDA.
//
//   const KernelChoice choice = select_kernel(config, num_tokens, device, policy.kernel);   // and why not the others
//   const ResolvedLaunch launch = resolve_launch(config, num_tokens, device, policy);       // what runs: kernel, CTAs
//
// The choice is a function of what the host knows of a run, never of its routing, so a layer gives the same bits as
// long as the kernels do. CudaLayer, `explain moe` and `bench moe` all ask resolve_launch: none prints what does not
// run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuda/grouped/problem.h"
#include "tessera/moe/cuda_layer.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

enum class KernelId : uint8_t { expert_gemm, expert_gemm_rows, expert_gemm_fp8 };  // by their folders

/// What a launch must know of the device.
struct LaunchDevice {
  int32_t num_multiprocessors = 0;
  bool runs_pairs = true;  ///< clusters of two CTAs with the kernels' shared memory
};

struct KernelRow {
  KernelId id;
  std::string_view name;
  WeightFormat format;
  int32_t tile_rows;    ///< of a CTA's tile
  int32_t row_granule;  ///< rows of a tile are multiplied in multiples of this many
  bool makes_plan;      ///< finds each expert's rows itself: no plan is launched before it
  /// nullptr, or why it cannot run so many tokens of such a layer on such a device.
  const char* (*misfit)(const LayerConfig& config, int64_t num_tokens, const LaunchDevice& device);
  /// nullptr, or why another is faster. It computes any number of tokens right, and does if it is asked for.
  const char* (*slower)(const LayerConfig& config, int64_t num_tokens);
  grouped::Tiling (*tiling)(grouped::Role role, int32_t out_columns, int32_t cluster_size);
  /// Rows of weights in a CTA's tile, elements of K in a step: what a tile costs.
  std::pair<int32_t, int32_t> (*tile_columns_and_k)(grouped::Role role, int32_t cluster_size);
  std::string (*policy)(grouped::Role role, int32_t cluster_size);  ///< in words
  int32_t ctas_per_multiprocessor;                                  ///< that are resident together
  std::string_view why;                                             ///< one takes it
};

std::span<const KernelRow> kernel_rows();

struct KernelRefusal {
  const KernelRow* row;
  const char* reason;
};

struct KernelChoice {
  const KernelRow* row;                ///< the first of the table that is not refused
  std::vector<KernelRefusal> refused;  ///< all others, those after the chosen one too
};

/// `wish` names the kernel to take, null: any. Throws Error if every row is refused, with the reasons.
KernelChoice select_kernel(const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                           const char* wish = nullptr);

/// How one run is launched.
struct ResolvedLaunch {
  const KernelRow* kernel = nullptr;
  batching::TaskOrder order = batching::TaskOrder::heavy_first;
  int32_t num_ctas = 0;
  int32_t cluster_size = 1;
  int32_t back_every = 0;

  grouped::Tiling tiling(grouped::Role role, int32_t out_columns) const {
    return kernel->tiling(role, out_columns, cluster_size);
  }
};

/// The wish, made what the device can do. Throws as select_kernel does, and for numbers that no device has.
ResolvedLaunch resolve_launch(const LayerConfig& config, int32_t num_tokens, const LaunchDevice& device,
                              const LaunchPolicy& wish);

/// The role of a layer's first product.
constexpr grouped::Role first_role(const LayerConfig& config) {
  return config.gated ? grouped::Role::gate_up : grouped::Role::up_only;
}

/// What runs, for people: pairs of a name (plan, GEMM 1, GEMM 2, combine, order) and the policy in words.
std::vector<std::pair<std::string, std::string>> describe_launch(const LayerConfig& config,
                                                                 const ResolvedLaunch& launch);

/// "expert_gemm (chosen): why", then a line for each refused row: "name: reason".
std::vector<std::string> describe_choice(const KernelChoice& choice);

}  // namespace tessera::moe
