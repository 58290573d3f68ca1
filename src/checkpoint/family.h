// The families of models that are known: under which names their checkpoints keep experts, and which keys of
// config.json say how many there are. One row a family.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/checkpoint/checkpoint.h"

namespace tessera::checkpoint {

inline constexpr std::string_view kLayersPrefix = "model.layers.";

enum class RouterStyle : uint8_t { softmax, softmax_renormalize, topk_softmax, sigmoid_grouped, sigmoid_biased };

struct FamilyRow {
  std::string_view model_type, name;
  std::string_view experts;                     ///< in a layer: "mlp.experts"
  std::array<std::string_view, 3> projections;  ///< gate, up, down of each expert
  std::string_view shared;                      ///< in a layer; empty: none
  std::array<const char*, 2> experts_keys;      ///< of config.json, either
  const char* intermediate_key;
  const char* shared_key;  ///< how wide the shared expert is, or (shared_is_count) how many experts wide; null: none
  bool shared_is_count;
  RouterStyle router;
  bool is_gpt_oss = false;  ///< biases, interleaved rows, clamped SwiGLU; dense tensors of all experts are transposed
};

/// What config.json says, checked.
struct Model {
  const FamilyRow* family = nullptr;
  ModelFacts facts;
  int32_t num_extra_layers = 0;  ///< behind the others: they predict further tokens
  int32_t first_sparse = 0;      ///< layers before it have no experts
  int32_t sparse_step = 1;       ///< of the others every so many have
  std::vector<int32_t> dense_layers;
  std::string quant_method;               ///< of quantization_config; empty: none
  std::array<int64_t, 2> weight_block{};  ///< of it; 0, 0: none

  bool has_experts(int32_t layer) const;
};

/// `text` is that of the file `where`. Throws Error naming the key.
Model read_model(std::string_view text, const std::string& where);

}  // namespace tessera::checkpoint
