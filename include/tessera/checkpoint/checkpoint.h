// A checkpoint on disk as Hugging Face's libraries save it, config.json and safetensors: which model it is of, and what
// each of its layers with experts holds.
//
//   const checkpoint::Checkpoint model("Qwen3-30B-A3B");          // reads config.json, the index and every file's header
//   for (const checkpoint::LayerFacts& layer : model.layers(moe::Device::cpu)) report(layer.index, layer.stored);
//
// Families: Qwen3-MoE, Qwen3-Next, Mixtral, OLMoE, DeepSeek-V3, GLM-4.5, gpt-oss, MiniMax-M2, under the names that
// their checkpoints use; tensors of each expert or of all experts at once. No weight is read: load_layer.h does that.
// What is not exactly right is an Error naming file and tensor.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/core/router_config.h"
#include "tessera/moe/layer.h"

namespace tessera::checkpoint {

/// Of config.json.
struct ModelFacts {
  std::string model_type;  ///< "qwen3_moe"
  std::string family;      ///< "Qwen3-MoE"
  int32_t num_layers = 0;  ///< those that predict further tokens not counted
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;         ///< of an expert
  int32_t num_experts = 0;               ///< of all shards
  int32_t top_k = 0;                     ///< experts a token
  int32_t shared_intermediate_size = 0;  ///< of the shared experts together; 0: none
  Activation activation{};
  std::optional<RouterConfig> router{};  ///< how logits become experts and weights; none where route() has no such kind
  std::string quantization{};            ///< of quantization_config: "fp8, blocks of 128 x 128"; empty: none
};

/// How a layer's experts are stored.
enum class StoredFormat : uint8_t {
  dense,        ///< BF16, F16 or F32
  fp8_block,    ///< e4m3, a scale each 128 x 128
  fp8_channel,  ///< e4m3, a scale a row
  fp8_tensor,   ///< e4m3, one scale a matrix
  mxfp4,        ///< 4 bits, a power of two each 32 columns
  other,        ///< what this library does not know
};
std::string_view stored_format_name(StoredFormat format);

/// One layer with experts, as it is stored and as it would be loaded on a device.
struct LayerFacts {
  int32_t index = 0;
  StoredFormat format = StoredFormat::dense;
  std::string stored{};                      ///< in words: "BF16, a tensor for each expert"
  uint64_t stored_bytes = 0;                 ///< of all experts, scales, biases and the shared expert
  std::optional<moe::LayerConfig> config{};  ///< of the layer that load_layer would make; none: it would not
  uint64_t weight_bytes = 0;                 ///< that it would take
  std::string problem{};                     ///< why it cannot be loaded; empty: it can
};

struct CheckpointParts;  // src/checkpoint/parts.h

class Checkpoint {
 public:
  /// Throws Error naming file and tensor: no such folder, a model of another family, an index that names absent files,
  /// a file that is cut off, a tensor in two files.
  explicit Checkpoint(const std::filesystem::path& folder);

  const ModelFacts& model() const;
  size_t num_files() const;
  size_t num_tensors() const;
  uint64_t num_bytes() const;  ///< of all safetensors files

  /// Every layer that has experts, or should have, in order; what is wrong with one is in its `problem`.
  std::vector<LayerFacts> layers(moe::Device device) const;

  /// All of the above, for people's programs: a JSON object, with the kernels by number of tokens and what is missing
  /// here. `tessera inspect --json` and tessera_checkpoint_description print it.
  std::string describe() const;

  const CheckpointParts& parts() const { return *parts_; }

 private:
  std::shared_ptr<const CheckpointParts> parts_;
};

}  // namespace tessera::checkpoint
