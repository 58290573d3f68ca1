// A mixture-of-experts layer on one CUDA device (Hopper).
//
//   CudaLayer layer(config, weights);      // device pointers, used as they lie, never copied
//   void* workspace = ...;                 // layer.workspace_bytes(max_tokens), 16-byte aligned
//   layer.run({x, topk_ids, false, topk_weights, out, num_tokens}, workspace, bytes, stream);
//
//   out[t] = sum_s topk_weights[t, s] * down[e] * act(gate[e] * x[t], up[e] * x[t])     with e = topk_ids[t, s]
//
// run enqueues three to six kernels and returns: no allocation, no synchronisation, no host read; capturable in a CUDA
// graph, also with routing that changes between replays. A slot whose id lies outside [first_expert, first_expert +
// num_experts) adds nothing; a token without slots is exactly +0. Accumulation is fp32; the intermediate, the expert's
// rows and out are rounded once each to the layer's type. The same inputs give the same bits, whatever the batch, the
// stream or the number of CTAs. The workspace belongs to the caller: one per run in flight.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tessera/batching/plan.h"
#include "tessera/moe/layer_back_end.h"
#include "tessera/moe/layer_config.h"

struct CUstream_st;

namespace tessera::cuda {
struct LayerMarks;  // src/cuda/core/marks.h
}

namespace tessera::moe {

struct CudaRun;         // src/moe/cuda/layer.cc
struct ResolvedLaunch;  // src/moe/kernels.h

/// How the work is laid out on the device; results do not depend on it.
struct LaunchPolicy {
  batching::TaskOrder order = batching::TaskOrder::heavy_first;
  int32_t num_ctas = 0;      ///< 0: as many as are resident together
  int32_t cluster_size = 2;  ///< CTAs that share weights, 1 or 2; 1 where the device cannot run pairs
  int32_t back_every = 6;    ///< 1 of this many clusters takes light experts first; 0: none
  /// For measurements: [1] in device memory, into which the kernels write when they begin and end; null: none does.
  cuda::LayerMarks* marks = nullptr;
  const char* kernel = nullptr;  ///< of both products, by its name in `tessera explain moe`; null: the layer chooses
};

class CudaLayer final : public LayerBackEnd {
 public:
  /// For the current device. Throws Error naming the field for a configuration that is not supported; beyond what every
  /// back end refuses: f32, and a shared expert whose width is no multiple of intermediate_size (each such slice counts
  /// as one expert and one slot, and its rows are rounded to the layer's type before they are added).
  CudaLayer(const LayerConfig& config, const LayerWeights& weights, const LaunchPolicy& policy = {});

  /// Exact size of the workspace for up to `max_tokens` tokens.
  size_t workspace_bytes(int32_t max_tokens) const override;

  /// Throws Error for arguments that cannot be right (null, misaligned, overlapping, workspace too small) before any
  /// launch.
  void run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const override;

  /// The kernels of run one by one, for measurements: plan, GEMM 1, GEMM 2, combine. A GEMM needs a fresh plan each
  /// time.
  enum class Step : uint8_t { plan, gate_up, down, combine };
  void run_step(Step step, const LayerInputs& inputs, void* workspace, size_t workspace_size,
                CUstream_st* stream) const;

  const LayerConfig& config() const { return config_; }

 private:
  ResolvedLaunch resolved_launch(int32_t num_tokens) const;
  CudaRun prepare(const LayerInputs& inputs, void* workspace, size_t workspace_size) const;
  void enqueue(Step step, const CudaRun& run, CUstream_st* stream) const;
  void quantize_tokens(const CudaRun& run, CUstream_st* stream) const;
  void launch_plan(const CudaRun& run, CUstream_st* stream) const;

  LayerConfig config_;
  LayerWeights weights_;
  LaunchPolicy policy_;
  int device_ = 0;
  int32_t num_multiprocessors_ = 0;
  bool runs_pairs_ = false;
};

}  // namespace tessera::moe
