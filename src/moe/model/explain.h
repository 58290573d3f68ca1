// What a run of the layer on a GPU will do, from the routing alone: tiles, waves, padding, traffic, a lower bound of
// the time and a prediction. Needs no GPU.
//
//   const Explanation plan = explain_layer(config, LaunchPolicy{}, expert_counts, num_tokens, DeviceRates{});
//   plan.gate_up.floor_seconds();     // max(bytes / HBM rate, FLOPs / dense rate)
//   plan.gate_up.runs                 // which cluster computes which tile when, by the cost model
//
// The tiles are those that the kernels compute (the same tiling and order). The cost model is simple and stands in
// explain.cc: a tile takes its products (padding included) at a multiprocessor's part of the dense rate, or its bytes
// at what the memory gives it, whichever is longer; launches, prologues and epilogues cost nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/kernels.h"
#include "moe/model/explain_queue.h"
#include "tessera/moe/cuda_layer.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// Rates of an H100 SXM. The defaults of HBM and dense rate were measured on one (700 W): a long copy, and sustained
/// cuBLASLt BF16 products. `plan_seconds` is the shortest plan of bench/results/moe_h100.json.
struct DeviceRates {
  int32_t num_multiprocessors = 132;
  double hbm_bytes_per_second = 2.95e12;
  double dense_flops_per_second = 700e12;  ///< of 16-bit operands; 8-bit ones are taken to be twice as fast
  double cta_bytes_per_second = 42e9;  ///< one CTA's: its part of the 5.5 TB/s that L2 feeds products at 700 TFLOP/s
  double plan_seconds = 15e-6;

  LaunchDevice launch_device() const { return {num_multiprocessors}; }
};

/// Necessary work: every operand read and every result written once, no padding.
struct Work {
  double flops = 0.0;
  double bytes = 0.0;
};

/// What a layer must do, kernel by kernel, whatever runs it.
struct LayerWork {
  int32_t num_rows = 0;   ///< routed rows R
  int32_t num_tasks = 0;  ///< experts with rows
  Work plan, gate_up, down, combine;

  double flops() const { return gate_up.flops + down.flops; }
  double bytes() const { return plan.bytes + gate_up.bytes + down.bytes + combine.bytes; }
};

/// A kernel's work and the time it must take.
struct KernelWork : Work {
  double flops_seconds = 0.0;  ///< at the dense rate
  double bytes_seconds = 0.0;  ///< at the HBM rate
  double predicted_seconds = 0.0;

  double floor_seconds() const { return flops_seconds > bytes_seconds ? flops_seconds : bytes_seconds; }
  bool memory_binds() const { return bytes_seconds >= flops_seconds; }
};

/// A tile as a cluster (or a CTA, if it stands alone) computes it.
struct ExplainedTile {
  int32_t expert = 0;
  int32_t tile_idx = 0;  ///< in its expert
  TileCost cost;
  double padding = 0.0;  ///< part of the rows that are multiplied and hold no token
};

struct GemmExplanation : KernelWork {
  std::vector<ExplainedTile> tiles;  ///< in the order of the queue
  std::vector<TileRun> runs;         ///< of each tile; predicted_seconds is the end of the last
  int32_t num_lanes = 0;             ///< clusters that take tiles
  double computed_flops = 0.0;  ///< flops and what is multiplied beside them because tiles are larger than the rest

  double waves() const { return static_cast<double>(tiles.size()) / num_lanes; }
  /// Part of the lanes that the last wave leaves without a tile.
  double last_wave_idle() const;
  /// Part of all lanes' time until the end of the last tile in which they have none.
  double idle() const;
  double padding() const { return computed_flops > 0.0 ? 1.0 - flops / computed_flops : 0.0; }
};

struct Explanation {
  int32_t num_rows = 0;                                     ///< routed rows R
  int32_t num_tasks = 0;                                    ///< experts with rows
  int32_t fewest_rows = 0, median_rows = 0, most_rows = 0;  ///< of all experts
  ResolvedLaunch launch;
  double dense_flops_per_second = 0.0;  ///< of the layer's operands
  KernelWork plan, combine;
  GemmExplanation gate_up, down;

  double floor_seconds() const;
  double predicted_seconds() const;
};

/// Rows of each expert of the shard, from topk_ids [T * k].
std::vector<int32_t> count_rows(const LayerConfig& config, std::span<const int32_t> topk_ids);

/// `expert_counts` [E]. Needs no kernel that could run the layer, so any type will do.
LayerWork count_work(const LayerConfig& config, std::span<const int32_t> expert_counts, int64_t num_tokens);

/// `expert_counts` [E]. policy.num_ctas 0 means one a multiprocessor; Error for more than that, or fewer than a
/// cluster.
Explanation explain_layer(const LayerConfig& config, const LaunchPolicy& policy, std::span<const int32_t> expert_counts,
                          int64_t num_tokens, const DeviceRates& rates);

}  // namespace tessera::moe
