// A mixture-of-experts layer on the processors of this machine: the same entry as CudaLayer, the same definition.
//
//   CpuLayer layer(config, weights);       // host pointers, used as they lie, never copied
//   void* workspace = ...;                 // layer.workspace_bytes(max_tokens), 16-byte aligned
//   layer.run({x, topk_ids, false, topk_weights, out, num_tokens}, workspace, bytes);
//
// See layer_config.h for what is computed and where it is rounded. f32, bf16 and f16; bf16 is multiplied as bf16 where
// oneDNN and the processor can, everything else in fp32. Sums are fp32: the products in an order that depends on the
// sizes of the layer alone, the slots in order, no product fused with its addition. The same inputs give the same bits,
// whatever the batch and the number of threads (on one kind of processor).
//
// run returns when the work is done. Everything that grows with the number of tokens is in the workspace; on the heap
// are the plan of each launch, a few KiB, and what oneDNN notes about a product while it runs. A layer owns its
// threads: one run at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tessera/moe/layer_back_end.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

struct CpuLayerParts;  // src/moe/cpu/layer.cc

class CpuLayer final : public LayerBackEnd {
 public:
  /// `num_threads`: 1..kMaxThreads, or 0 for every processor that this process may use. Throws Error naming the field
  /// for a configuration that is not supported.
  CpuLayer(const LayerConfig& config, const LayerWeights& weights, int num_threads = 0);
  ~CpuLayer() override;
  CpuLayer(CpuLayer&&) noexcept;
  CpuLayer& operator=(CpuLayer&&) noexcept;

  /// Exact size of the workspace for up to `max_tokens` tokens, the threads' scratch memory included.
  size_t workspace_bytes(int32_t max_tokens) const override;

  /// Throws Error for arguments that cannot be right (null, misaligned, overlapping, workspace too small) before it
  /// computes anything. There is no stream here: null.
  void run(const LayerInputs& inputs, void* workspace, size_t workspace_size,
           CUstream_st* stream = nullptr) const override;

  const LayerConfig& config() const { return config_; }
  int num_threads() const;

 private:
  LayerConfig config_;
  std::unique_ptr<CpuLayerParts> parts_;
};

}  // namespace tessera::moe
