// Synthetic models and inputs: the full-size model for everyone, without anybody's weights.
//
//   Model model = synthesize_model(preset_config("apws25"), {}, {.seed = 1});
//
// Embeddings are N(0, 1) with a zero row for padding; the weights of each layer are scaled so that activations stay
// near 1; the output layer is then fitted, on random sentences, to logits of mean 1.8 and deviation 1.1, as the
// school's trained model has them. The same seed gives the same bytes. The fit runs the fp32 back end, and its factors
// are rounded so coarsely that differences in the last bits between processors vanish, all but surely.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tessera/classifier/config.h"
#include "tessera/classifier/model.h"

namespace tessera::classifier {

/// Random numbers by counting: value i of a stream can be had without those before it.
class RandomStream {
 public:
  RandomStream(uint64_t seed, uint64_t stream);
  uint64_t bits(uint64_t i) const;
  /// Uniform in [0, 1), 53 bits.
  double uniform(uint64_t i) const;
  /// Values 2i and 2i + 1 of a sequence of N(0, 1), by Box and Muller.
  void normal_pair(uint64_t i, double& first, double& second) const;

 private:
  uint64_t key_;
};

struct SynthOptions {
  uint64_t seed = 1;
  int num_threads = 0;  ///< 0 = every processor of this process; the result does not depend on it
};

/// `vocabulary`: [config.vocab_size] words, or empty for made-up ones.
Model synthesize_model(const ClassifierConfig& config, std::vector<std::string> vocabulary,
                       const SynthOptions& options);

/// [vocab_size] pronounceable words, all different, with "<unk>" and "<pad>" in their places.
std::vector<std::string> synthesize_vocabulary(const ClassifierConfig& config);

/// Token ids of random sentences `first`, `first` + 1, ...: ids [count, sequence_length]. From 1 word to all positions
/// filled, padded behind; words are as unevenly frequent as in a language (rank r about 1 / r).
void synthesize_ids(const ClassifierConfig& config, uint64_t seed, int64_t first, std::span<int32_t> ids);

}  // namespace tessera::classifier
