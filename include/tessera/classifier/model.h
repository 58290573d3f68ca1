// A classifier's weights in host memory, and the checkpoint directory they come from.
//
//   Model model = load_model("models/movie-reviews");
//
// A checkpoint is a directory with config.json, vocab.txt and model.safetensors (F32, F16 or BF16; widened to fp32
// here). Tensors: embedding.weight [V,C], conv.{i}.weight [F,C,K_i], conv.{i}.bias [F], router.weight [E,D],
// router.bias [E], experts.{e}.weight [X,D], experts.{e}.bias [X], head.{i}.weight [H_i,in], head.{i}.bias [H_i],
// output.weight [classes,in], output.bias [classes], with D = feature_size().
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tessera/classifier/config.h"
#include "tessera/core/buffer.h"
#include "tessera/core/dtype.h"

namespace tessera::classifier {

/// weight [out_features, in_features] row-major, bias [out_features].
struct LinearWeights {
  Buffer<float> weight;
  Buffer<float> bias;
};

struct ModelWeights {
  Buffer<float> embedding;             ///< [vocab_size, embedding_size]; empty if the checkpoint has none
  std::vector<LinearWeights> conv;     ///< per width: weight [num_filters, embedding_size, K], bias [num_filters]
  LinearWeights router;                ///< [num_experts, feature_size]
  std::vector<LinearWeights> experts;  ///< per expert: [expert_size, feature_size]
  std::vector<LinearWeights> head;     ///< per head layer
  LinearWeights output;                ///< [num_classes, last head size]
};

struct Model {
  ClassifierConfig config;
  std::vector<std::string> vocabulary;  ///< [vocab_size]; empty if the checkpoint has none
  ModelWeights weights;
  std::vector<std::string> warnings;  ///< unknown config keys, extra tensors
};

/// Every tensor of a model with its name and shape, in the order of the checkpoint: loader, writer, converter and tests
/// walk this one list.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  Buffer<float>* values = nullptr;  ///< the member of the `weights` passed in
};
std::vector<TensorSpec> tensor_specs(const ClassifierConfig& config, ModelWeights& weights);

/// Throws Error naming file, tensor, expected and actual. Weights must be finite.
Model load_model(const std::filesystem::path& directory);

/// Writes config.json, vocab.txt and model.safetensors; `directory` is created if missing.
void save_model(const std::filesystem::path& directory, Model& model, DType dtype);

}  // namespace tessera::classifier
