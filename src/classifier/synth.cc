#include "classifier/synth.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numbers>
#include <string_view>
#include <utility>

#include "classifier/school_format.h"
#include "tessera/classifier/classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {

namespace {

constexpr double kLogitMean = 1.8;
constexpr double kLogitDeviation = 1.1;
constexpr double kBiasDeviation = 0.1;
constexpr int64_t kFitSentences = 256;  // the deviation of so many is known to 4 %
constexpr int64_t kFitBatch = 32;       // 8 MiB of full-size embeddings

// Streams of random numbers; tensors take their position in tensor_specs().
constexpr uint64_t kSentenceStream = 1ull << 32;
constexpr uint64_t kFitSeedOffset = 0x5EED;

// Values that one thread makes at a time.
constexpr int64_t kValuesPerItem = 1 << 16;

/// `value` with seven significant bits: steps of about 1 %.
double coarse(double value) {
  int exponent = 0;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::round(mantissa * 128) / 128, exponent);
}

/// About the expected maximum of `count` N(0, 1); within 0.2 from 2 to 100.
double expected_maximum(int64_t count) { return 0.73 * std::sqrt(2 * std::log(static_cast<double>(count) + 1)); }

/// Mean and deviation of a tensor's values.
struct Distribution {
  double mean = 0;
  double deviation = 1;
};

Distribution distribution_of(const ClassifierConfig& config, const TensorSpec& spec) {
  double fan_in = 1;
  for (size_t i = 1; i < spec.shape.size(); ++i) fan_in *= static_cast<double>(spec.shape[i]);
  const bool is_bias = spec.shape.size() == 1;
  if (spec.name.starts_with("embedding")) return {};
  if (spec.name.starts_with("conv.")) {
    // Twice N(0, 1) before the maximum, whose mean the bias takes away: half of the features are then zero, the others
    // differ from sentence to sentence by about 1.
    const size_t width_idx = static_cast<size_t>(std::stoul(spec.name.substr(5)));
    const int64_t positions = config.sequence_length - config.filter_widths[width_idx] + 1;
    if (is_bias) return {.mean = -2 * expected_maximum(positions), .deviation = kBiasDeviation};
    return {.deviation = 2 / std::sqrt(fan_in)};
  }
  if (is_bias) return {.deviation = kBiasDeviation};
  return {.deviation = std::sqrt(2 / fan_in)};  // half of the inputs are zero
}

void fill_normal(const RandomStream& random, const Distribution& distribution, Buffer<float>& values,
                 ThreadPool& pool) {
  const int64_t size = static_cast<int64_t>(values.size());
  pool.run((size + kValuesPerItem - 1) / kValuesPerItem, [&](int64_t item, int) {
    const int64_t end = std::min(size, (item + 1) * kValuesPerItem);
    for (int64_t i = item * kValuesPerItem; i < end; i += 2) {
      double first = 0;
      double second = 0;
      random.normal_pair(static_cast<uint64_t>(i / 2), first, second);
      float* out = values.data() + i;
      out[0] = static_cast<float>(distribution.mean + distribution.deviation * first);
      if (i + 1 < end) out[1] = static_cast<float>(distribution.mean + distribution.deviation * second);
    }
  });
}

/// Logits of random sentences: [kFitSentences, num_classes].
std::vector<float> fit_logits(const std::shared_ptr<const Model>& model, const SynthOptions& options) {
  const ClassifierConfig& config = model->config;
  const auto classifier = make_cpu_classifier(
      model, {.input = InputKind::embeddings, .precision = Precision::fp32, .num_threads = options.num_threads});
  const size_t length = static_cast<size_t>(config.sequence_length);
  const size_t sentence_size = static_cast<size_t>(config.embedding_size) * length;
  std::vector<int32_t> ids(static_cast<size_t>(kFitBatch) * length);
  Buffer<float> embeddings(static_cast<size_t>(kFitBatch) * sentence_size);
  std::vector<float> logits(static_cast<size_t>(kFitSentences * config.num_classes));
  for (int64_t first = 0; first < kFitSentences; first += kFitBatch) {
    synthesize_ids(config, options.seed + kFitSeedOffset, first, ids);
    for (size_t i = 0; i < static_cast<size_t>(kFitBatch); ++i) {
      gather_embeddings(*model, ids.data() + i * length, embeddings.data() + i * sentence_size);
    }
    Batch batch;
    batch.num_sentences = kFitBatch;
    batch.embeddings = embeddings.data();
    Outputs outputs;
    outputs.logits = logits.data() + first * config.num_classes;
    classifier->run(batch, outputs);
  }
  return logits;
}

/// Scales and shifts the output layer so that its logits have the wanted mean and deviation, each class its own.
void fit_output_layer(Model& model, const std::vector<float>& logits) {
  const size_t num_classes = static_cast<size_t>(model.config.num_classes);
  LinearWeights& output = model.weights.output;
  const size_t num_inputs = output.weight.size() / num_classes;
  const size_t num_sentences = logits.size() / num_classes;
  const double count = static_cast<double>(num_sentences);
  for (size_t c = 0; c < num_classes; ++c) {
    double sum = 0;
    double squares = 0;
    for (size_t i = c; i < logits.size(); i += num_classes) {
      const double logit = static_cast<double>(logits[i]);
      sum += logit;
      squares += logit * logit;
    }
    const double mean = sum / count;
    const double deviation = std::sqrt(std::max(squares / count - mean * mean, 0.0));
    const double scale = deviation > 1e-6 ? coarse(kLogitDeviation / deviation) : 1.0;
    for (size_t i = 0; i < num_inputs; ++i) {
      float& weight = output.weight[c * num_inputs + i];
      weight = static_cast<float>(static_cast<double>(weight) * scale);
    }
    const double bias = static_cast<double>(output.bias[c]);
    output.bias[c] = static_cast<float>(bias * scale + coarse(kLogitMean - mean * scale));
  }
}

}  // namespace

RandomStream::RandomStream(uint64_t seed, uint64_t stream) : key_(0) {
  key_ = bits(seed);
  key_ = bits(stream);
}

// The output function of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64 bits.
uint64_t RandomStream::bits(uint64_t i) const {
  uint64_t z = key_ + (i + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

double RandomStream::uniform(uint64_t i) const { return static_cast<double>(bits(i) >> 11) * 0x1p-53; }

void RandomStream::normal_pair(uint64_t i, double& first, double& second) const {
  const double radius = std::sqrt(-2 * std::log(1 - uniform(2 * i)));  // 1 - [0, 1) is never 0
  const double angle = 2 * std::numbers::pi * uniform(2 * i + 1);
  first = radius * std::cos(angle);
  second = radius * std::sin(angle);
}

Model synthesize_model(const ClassifierConfig& config, std::vector<std::string> vocabulary,
                       const SynthOptions& options) {
  config.validate("synth");
  auto model = std::make_shared<Model>();
  model->config = config;
  model->vocabulary = vocabulary.empty() ? synthesize_vocabulary(config) : std::move(vocabulary);
  TESSERA_CHECK(model->vocabulary.size() == static_cast<size_t>(config.vocab_size), model->vocabulary.size());
  ThreadPool pool(options.num_threads > 0 ? options.num_threads : available_processors());
  const std::vector<TensorSpec> specs = tensor_specs(config, model->weights);
  for (size_t i = 0; i < specs.size(); ++i) {
    size_t size = 1;
    for (const int64_t dim : specs[i].shape) size *= static_cast<size_t>(dim);
    *specs[i].values = Buffer<float>(size);
    fill_normal(RandomStream(options.seed, i), distribution_of(config, specs[i]), *specs[i].values, pool);
  }
  std::fill_n(model->weights.embedding.data() + config.pad_id * config.embedding_size, config.embedding_size, 0.0f);
  const std::vector<float> logits = fit_logits(model, options);
  fit_output_layer(*model, logits);
  return std::move(*model);
}

std::vector<std::string> synthesize_vocabulary(const ClassifierConfig& config) {
  static constexpr std::string_view kConsonants = "bdfgklmnprstvzjh";
  static constexpr std::string_view kVowels = "aeiou";
  static constexpr uint64_t kSyllables = kConsonants.size() * kVowels.size();
  std::vector<std::string> words;
  for (int64_t id = 0; id < config.vocab_size; ++id) {
    // The id in base 80, a syllable a digit; counting from 80 gives every word two syllables at least.
    std::string word;
    for (uint64_t rest = static_cast<uint64_t>(id) + kSyllables; rest > 0; rest /= kSyllables) {
      const uint64_t digit = rest % kSyllables;
      word += {kConsonants[digit / kVowels.size()], kVowels[digit % kVowels.size()]};
    }
    words.push_back(std::move(word));
  }
  words[static_cast<size_t>(config.unknown_id)] = "<unk>";
  words[static_cast<size_t>(config.pad_id)] = "<pad>";
  return words;
}

void synthesize_ids(const ClassifierConfig& config, uint64_t seed, int64_t first, std::span<int32_t> ids) {
  const int64_t length = config.sequence_length;
  TESSERA_CHECK(ids.size() % static_cast<size_t>(length) == 0, ids.size(), length);
  const RandomStream random(seed, kSentenceStream);
  const double log_size = std::log(static_cast<double>(std::max<int64_t>(config.vocab_size - 1, 1)));
  const uint64_t draws_per_sentence = static_cast<uint64_t>(length) + 1;
  for (size_t row = 0; row < ids.size() / static_cast<size_t>(length); ++row) {
    const uint64_t draw = (static_cast<uint64_t>(first) + row) * draws_per_sentence;
    const int64_t num_words = 1 + static_cast<int64_t>(random.uniform(draw) * static_cast<double>(length));
    for (int64_t position = 0; position < length; ++position) {
      const double rank = std::exp(random.uniform(draw + 1 + static_cast<uint64_t>(position)) * log_size);
      int32_t id = static_cast<int32_t>(std::min(static_cast<int64_t>(rank) + 1, config.vocab_size - 1));
      // A sentence has no word that spells an entry which is none.
      if (id == config.unknown_id || id == config.pad_id) id = static_cast<int32_t>(config.vocab_size - 1);
      ids[row * static_cast<size_t>(length) + static_cast<size_t>(position)] =
          position < num_words ? id : config.pad_id;
    }
  }
}

}  // namespace tessera::classifier
