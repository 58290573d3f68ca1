// Models of odd sizes for tests, made in memory.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "tessera/classifier/model.h"
#include "unit/random_values.h"

namespace tessera::classifier::testing {

/// Nothing is a multiple of anything; widths 1 and the whole sequence.
inline ClassifierConfig odd_config() {
  ClassifierConfig config;
  config.vocab_size = 29;
  config.embedding_size = 7;
  config.sequence_length = 6;
  config.filter_widths = {1, 6, 3};
  config.num_filters = 5;
  config.num_experts = 3;
  config.expert_size = 11;
  config.head_sizes = {9, 4};
  config.num_classes = 3;
  config.class_names = {"bad", "good", "ugly"};
  return config;
}

/// Weights that keep activations near 1.
inline std::shared_ptr<Model> random_model(const ClassifierConfig& config, uint64_t seed) {
  auto model = std::make_shared<Model>();
  model->config = config;
  for (const TensorSpec& spec : tensor_specs(config, model->weights)) {
    size_t size = 1;
    for (const int64_t dim : spec.shape) size *= static_cast<size_t>(dim);
    const bool is_embedding = spec.name == "embedding.weight";
    const auto inputs = static_cast<float>(size / static_cast<size_t>(spec.shape.front()));
    const auto values = test::random_normal(size, is_embedding ? 1.0f : 1.5f / std::sqrt(inputs), ++seed);
    *spec.values = Buffer<float>(size);
    std::copy(values.begin(), values.end(), spec.values->begin());
  }
  return model;
}

inline std::vector<std::string> numbered_words(int64_t count) {
  std::vector<std::string> words = {"<unk>", "<pad>"};
  for (int64_t i = 2; i < count; ++i) words.push_back("word" + std::to_string(i));
  return words;
}

/// Sentences of every length from 0 words on, padded with `pad_id`.
inline std::vector<int32_t> random_ids(const ClassifierConfig& config, int64_t num_sentences, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids;
  for (int64_t sentence = 0; sentence < num_sentences; ++sentence) {
    const int64_t words = sentence % (config.sequence_length + 1);
    for (int64_t position = 0; position < config.sequence_length; ++position) {
      const auto id = static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab_size));
      ids.push_back(position < words ? id : config.pad_id);
    }
  }
  return ids;
}

/// ids [n, sequence_length] as embeddings [n, embedding_size, sequence_length].
inline std::vector<float> embed(const Model& model, const std::vector<int32_t>& ids) {
  const auto channels = static_cast<size_t>(model.config.embedding_size);
  const auto positions = static_cast<size_t>(model.config.sequence_length);
  std::vector<float> embeddings;
  for (size_t begin = 0; begin < ids.size(); begin += positions) {
    for (size_t channel = 0; channel < channels; ++channel) {
      for (size_t position = 0; position < positions; ++position) {
        const auto id = static_cast<size_t>(ids[begin + position]);
        embeddings.push_back(model.weights.embedding[id * channels + channel]);
      }
    }
  }
  return embeddings;
}

}  // namespace tessera::classifier::testing
