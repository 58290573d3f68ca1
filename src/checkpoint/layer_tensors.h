// Which tensors one layer's experts are made of: found by their names, checked against config.json, put in order.
//
//   const LayerTensors tensors = find_layer_tensors(parts, 3);
//   tensors.experts[7][kGate].weight->info.shape          // [I, H]
//
// Everything that headers can tell is refused here: what is missing, extra, misnamed, doubled, or of another shape or
// type.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "checkpoint/parts.h"

namespace tessera::checkpoint {

enum Projection : uint8_t { kGate, kUp, kDown, kNumProjections };

struct StoredMatrix {
  const io::StoredTensor* weight = nullptr;
  const io::StoredTensor* scale = nullptr;  ///< null: none
};

enum class Layout : uint8_t {
  per_expert,  ///< a tensor for each expert and projection
  fused,       ///< [E, 2I, H] and [E, H, I]
  transposed,  ///< [E, H, 2I] and [E, I, H]
  blocks,      ///< MXFP4: [E, 2I, H/32, 16] and [E, H, I/32, 16], scales [E, 2I, H/32] and [E, H, I/32]
};

struct LayerTensors {
  int32_t index = 0;
  Layout layout = Layout::per_expert;
  StoredFormat format = StoredFormat::dense;
  std::string dtype;                                               ///< of the weights, as safetensors names it
  std::vector<std::array<StoredMatrix, kNumProjections>> experts;  ///< per_expert: of all experts
  StoredMatrix gate_up, down;                                      ///< otherwise
  const io::StoredTensor* gate_up_bias = nullptr;                  ///< [E, 2I]; null: none
  const io::StoredTensor* down_bias = nullptr;                     ///< [E, H]
  std::array<StoredMatrix, kNumProjections> shared{};              ///< where the model has a shared expert
  std::string problem{};                                           ///< why no layer can be made of it; empty: one can
  std::string shared_problem{};                                    ///< why it cannot be with the shared expert
  uint64_t num_bytes = 0;                                          ///< of all of these

  std::string describe() const;
};

/// Throws Error naming file and tensor.
LayerTensors find_layer_tensors(const CheckpointParts& parts, int32_t layer);

/// Indices of layers that have tensors of experts, or should have, in order.
std::vector<int32_t> layers_with_experts(const CheckpointParts& parts);

}  // namespace tessera::checkpoint
