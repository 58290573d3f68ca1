// The linear layers after the experts: relu(W y + b) for each hidden one, then logits = W y + b, in fp32 always.
//
// A tile of rows goes through the whole chain in its worker's scratch memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/mixture.h"
#include "cpu/scratch.h"
#include "tessera/core/buffer.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cpu {

class Head {
 public:
  /// `hidden` may be empty. Weights are packed, not kept.
  Head(std::span<const LinearLayer> hidden, const LinearLayer& output, DType operand, ThreadPool& pool);

  /// y [padded_rows(num_rows), in_features], of which rows beyond num_rows are read and ignored -> logits [num_rows,
  /// output.out_features].
  void run(const float* y, int64_t num_rows, float* logits);

  /// Packed weights and workspace.
  size_t memory_bytes() const;

 private:
  struct RunLayers;
  struct Layer {
    std::unique_ptr<const PackedGemm> product;
    Buffer<float> bias;
  };
  static Layer make_layer(const LinearLayer& layer, DType operand);

  void run_tile(const float* y, int64_t num_rows, float* logits, int64_t tile_idx, int worker);

  ThreadPool& pool_;
  std::vector<Layer> layers_;    // the hidden ones, then the output layer
  size_t activation_bytes_ = 0;  // of the widest layer's input or output, fp32
  WorkerScratch scratch_;        // operands, activations, a product's scratch memory
};

}  // namespace tessera::cpu
