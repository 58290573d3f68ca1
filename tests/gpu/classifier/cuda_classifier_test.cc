// The classifier on a GPU against the fp64 oracle: every form, precision, path and odd configuration; and its bits.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "cuda/core/memory.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/core/error.h"
#include "unit/classifier/classifier_run.h"
#include "unit/classifier/random_model.h"

namespace tessera::classifier {
namespace {

using testing::embed;
using testing::odd_config;
using testing::random_ids;
using testing::random_model;
using testing::Result;
using testing::run;

std::unique_ptr<CudaClassifier> make(const std::shared_ptr<const Model>& model, const CudaOptions& options) {
  return std::move(make_cuda_classifiers(model, options).front());
}

// The contract's bound of a logit.
double tau(Precision precision) {
  return precision == Precision::fp32 ? 1e-3 : precision == Precision::fp16 ? 2e-2 : 0.15;
}

// Relative Frobenius error of a sentence's features: rounded operands, products and results.
double feature_limit(Precision precision) {
  return precision == Precision::fp32 ? 1e-5 : precision == Precision::fp16 ? 1.5e-3 : 1.2e-2;
}

double worst_logit(const std::vector<float>& out, const std::vector<float>& reference) {
  double worst = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double answer = static_cast<double>(reference[i]);
    const double error = std::abs(static_cast<double>(out[i]) - answer) / std::max(1.0, std::abs(answer));
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

double worst_row(const std::vector<float>& out, const std::vector<float>& reference, int64_t columns) {
  double worst = 0;
  for (size_t begin = 0; begin < out.size(); begin += static_cast<size_t>(columns)) {
    double error = 0, norm = 1e-30;
    for (size_t i = begin; i < begin + static_cast<size_t>(columns); ++i) {
      error += std::pow(static_cast<double>(out[i]) - static_cast<double>(reference[i]), 2);
      norm += std::pow(static_cast<double>(reference[i]), 2);
    }
    const double relative = std::sqrt(error / norm);
    worst = std::isfinite(relative) ? std::max(worst, relative) : INFINITY;
  }
  return worst;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// One model with its sentences in both forms of input, and the oracle's answers.
struct Case {
  std::string name;
  std::shared_ptr<Model> model;
  std::vector<int32_t> ids;
  std::vector<float> embeddings;
  Result oracle;

  Case(const std::string& with_name, const ClassifierConfig& config, int64_t num_sentences)
      : name(with_name), model(random_model(config, 1)), ids(random_ids(config, num_sentences, 2)) {
    embeddings = embed(*model, ids);
    const auto reference = make_cpu_classifier(model, {.input = InputKind::ids, .precision = Precision::fp64});
    oracle = run(*reference, config, batch(InputKind::ids));
  }
  const ClassifierConfig& config() const { return model->config; }
  int64_t size() const { return static_cast<int64_t>(ids.size()) / config().sequence_length; }
  Batch batch(InputKind input) const { return slice(input, 0, size()); }
  Batch slice(InputKind input, int64_t begin, int64_t count) const {
    const int64_t length = config().sequence_length;
    if (input == InputKind::ids) return {.num_sentences = count, .ids = ids.data() + begin * length};
    return {.num_sentences = count, .embeddings = embeddings.data() + begin * length * config().embedding_size};
  }
};

ClassifierConfig make_config(int64_t channels, int64_t positions, std::vector<int64_t> widths, int64_t filters,
                             int64_t experts, int64_t expert_size, std::vector<int64_t> head) {
  ClassifierConfig config = odd_config();
  config.vocab_size = 101;
  config.embedding_size = channels;
  config.sequence_length = positions;
  config.filter_widths = std::move(widths);
  config.num_filters = filters;
  config.num_experts = experts;
  config.expert_size = expert_size;
  config.head_sizes = std::move(head);
  return config;
}

std::vector<Case> cases() {
  std::vector<Case> list;
  list.emplace_back("odd", odd_config(), 37);
  list.emplace_back("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 150);
  list.emplace_back("one of everything", make_config(1, 1, {1}, 1, 1, 1, {}), 5);
  list.emplace_back("no head", make_config(40, 9, {2, 9}, 12, 5, 20, {}), 61);
  list.emplace_back("wide head", make_config(24, 12, {3}, 20, 2, 16, {300, 7}), 61);
  list.emplace_back("64 experts", make_config(16, 8, {2, 3}, 24, 64, 8, {8}), 40);
  list.emplace_back("long", make_config(8, 300, {1, 44, 300}, 9, 3, 10, {6}), 6);
  list.emplace_back("longest", make_config(8, 512, {1, 5}, 9, 3, 10, {6}), 3);
  return list;
}

std::vector<Form> forms_of(const ClassifierConfig& config, InputKind input) {
  std::vector<Form> forms = {Form::automatic, Form::direct, Form::distinct};
  if (config.sequence_length >= 2 && config.sequence_length <= 32) forms.push_back(Form::dft);
  if (input == InputKind::ids) forms.push_back(Form::vocab);
  return forms;
}

TEST(CudaClassifier, AgreesWithTheOracleInEveryFormAndPrecision) {
  for (const Case& one : cases()) {
    for (const InputKind input : {InputKind::ids, InputKind::embeddings}) {
      for (const Form form : forms_of(one.config(), input)) {
        for (const Precision precision : {Precision::fp32, Precision::fp16, Precision::bf16}) {
          SCOPED_TRACE(one.name + ", " + form_name(form) + ", precision " + std::to_string(int(precision)));
          const auto classifier =
              make(one.model,
                   {.input = input, .precision = {precision, precision, precision}, .form = form, .micro_batch = 64});
          const Result result = run(*classifier, one.config(), one.batch(input));
          EXPECT_LE(worst_logit(result.logits, one.oracle.logits), tau(precision));
          EXPECT_LE(worst_row(result.features, one.oracle.features, one.config().feature_size()),
                    feature_limit(precision));
          EXPECT_LE(worst_logit(result.router_weights, one.oracle.router_weights), tau(precision));
          for (const RecordStatus status : result.status) EXPECT_EQ(status, RecordStatus::ok);
        }
      }
    }
  }
}

TEST(CudaClassifier, TheBoundsRejectWrongResults) {
  const Case one("odd", odd_config(), 37);
  const auto classifier = make(one.model, {.input = InputKind::ids});
  Result result = run(*classifier, one.config(), one.batch(InputKind::ids));
  std::vector<float> swapped = result.logits;
  std::swap_ranges(swapped.begin(), swapped.begin() + 3, swapped.begin() + 9);
  EXPECT_GT(worst_logit(swapped, one.oracle.logits), tau(Precision::bf16));
  EXPECT_GT(worst_logit(std::vector<float>(swapped.size()), one.oracle.logits), tau(Precision::bf16));
  result.features[7] += 0.1f * std::abs(result.features[7]) + 0.1f;
  EXPECT_GT(worst_row(result.features, one.oracle.features, one.config().feature_size()),
            feature_limit(Precision::fp16));
}

TEST(CudaClassifier, PrecisionsByLayer) {
  const Case one("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 150);
  for (const LayerPrecision precision : {LayerPrecision{Precision::fp32, Precision::fp16, Precision::bf16},
                                         LayerPrecision{Precision::fp16, Precision::fp32, Precision::fp32},
                                         LayerPrecision{Precision::bf16, Precision::bf16, Precision::fp32}}) {
    const auto classifier = make(one.model, {.input = InputKind::embeddings, .precision = precision});
    const Result result = run(*classifier, one.config(), one.batch(InputKind::embeddings));
    EXPECT_LE(worst_logit(result.logits, one.oracle.logits), tau(Precision::bf16));
    EXPECT_LE(worst_row(result.features, one.oracle.features, one.config().feature_size()),
              feature_limit(Precision::bf16));
  }
}

TEST(CudaClassifier, SameBitsWhateverTheBatchTheNeighboursAndTheLane) {
  const Case one("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 150);
  for (const InputKind input : {InputKind::ids, InputKind::embeddings}) {
    for (const Form form : forms_of(one.config(), input)) {
      for (const Precision precision : {Precision::fp16, Precision::fp32}) {
        SCOPED_TRACE(form_name(form));
        CudaOptions options{.input = input, .precision = {precision, precision, precision}, .form = form};
        options.micro_batch = 150;
        const Result whole = run(*make(one.model, options), one.config(), one.batch(input));
        options.num_lanes = 2;
        for (const int64_t micro_batch : {1, 7, 64, 100}) {
          options.micro_batch = micro_batch;
          for (const auto& lane : make_cuda_classifiers(one.model, options)) {
            const Result again = run(*lane, one.config(), one.batch(input));
            EXPECT_TRUE(same_bits(again.logits, whole.logits)) << micro_batch;
            EXPECT_TRUE(same_bits(again.router_weights, whole.router_weights)) << micro_batch;
            EXPECT_TRUE(same_bits(again.features, whole.features)) << micro_batch;
          }
        }
        options.micro_batch = 150;
        const Result tail = run(*make(one.model, options), one.config(), one.slice(input, 41, 83));
        EXPECT_EQ(std::memcmp(tail.logits.data(), whole.logits.data() + 41 * 3, 83 * 3 * sizeof(float)), 0);
      }
    }
  }
}

TEST(CudaClassifier, DistinctTokensAndTheVocabularyGiveTheSameBits) {
  const Case one("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 150);
  const Batch batch = one.batch(InputKind::ids);
  const Result vocab = run(*make(one.model, {.input = InputKind::ids, .form = Form::vocab}), one.config(), batch);
  const Result distinct = run(*make(one.model, {.input = InputKind::ids, .form = Form::distinct}), one.config(), batch);
  const Result from_embeddings = run(*make(one.model, {.input = InputKind::embeddings, .form = Form::distinct}),
                                     one.config(), one.batch(InputKind::embeddings));
  EXPECT_TRUE(same_bits(vocab.logits, distinct.logits));
  EXPECT_TRUE(same_bits(vocab.logits, from_embeddings.logits));
}

TEST(CudaClassifier, BadRecordsFailAloneAndChangeNoOther) {
  Case one("odd", odd_config(), 37);
  const ClassifierConfig& config = one.config();
  for (const InputKind input : {InputKind::ids, InputKind::embeddings}) {
    for (const Form form : forms_of(config, input)) {
      SCOPED_TRACE(form_name(form));
      const auto classifier = make(one.model, {.input = input, .form = form, .micro_batch = 16});
      const Result clean = run(*classifier, config, one.batch(input));
      Case broken = one;
      const int64_t record_size = config.embedding_size * config.sequence_length;
      if (input == InputKind::ids) {
        broken.ids[0] = -1;
        broken.ids[static_cast<size_t>(5 * config.sequence_length + 2)] = static_cast<int32_t>(config.vocab_size);
        broken.ids[static_cast<size_t>(36 * config.sequence_length)] = std::numeric_limits<int32_t>::min();
      } else {
        broken.embeddings[0] = std::numeric_limits<float>::quiet_NaN();
        broken.embeddings[static_cast<size_t>(5 * record_size + 2)] = std::numeric_limits<float>::infinity();
        broken.embeddings[static_cast<size_t>(36 * record_size + 3)] = -1e5f;  // beyond fp16
      }
      const Result result = run(*classifier, config, broken.batch(input));
      const RecordStatus wrong = input == InputKind::ids ? RecordStatus::id_out_of_range : RecordStatus::not_finite;
      for (int64_t n = 0; n < one.size(); ++n) {
        const bool is_broken = n == 0 || n == 5 || n == 36;
        ASSERT_EQ(result.status[static_cast<size_t>(n)], is_broken ? wrong : RecordStatus::ok) << n;
        for (int64_t c = 0; c < config.num_classes; ++c) {
          const auto i = static_cast<size_t>(n * config.num_classes + c);
          if (is_broken) {
            EXPECT_TRUE(std::isnan(result.logits[i]));
          } else {
            ASSERT_EQ(std::bit_cast<uint32_t>(result.logits[i]), std::bit_cast<uint32_t>(clean.logits[i])) << n;
          }
        }
      }
    }
  }
}

TEST(CudaClassifier, PinnedAndPageableInputGiveTheSameBits) {
  const Case one("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 150);
  const auto classifier =
      make(one.model, {.input = InputKind::embeddings, .micro_batch = 32, .num_staging_threads = 3});
  const Result pageable = run(*classifier, one.config(), one.batch(InputKind::embeddings));
  cuda::PinnedBytes pinned(one.embeddings.size() * sizeof(float));
  std::copy(one.embeddings.begin(), one.embeddings.end(), pinned.as<float>());
  const Result from_pinned =
      run(*classifier, one.config(), {.num_sentences = one.size(), .embeddings = pinned.as<float>()});
  EXPECT_TRUE(same_bits(pageable.logits, from_pinned.logits));
}

TEST(CudaClassifier, ResidentEmbeddingsGiveTheBitsOfTheSameValues) {
  Case one("like apws25", make_config(250, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 150);
  const ClassifierConfig& config = one.config();
  for (const Form form : {Form::direct, Form::dft, Form::distinct}) {
    const auto classifier = make(one.model, {.input = InputKind::embeddings, .form = form, .micro_batch = 64});
    const Result expected = run(*classifier, config, one.batch(InputKind::embeddings));
    const int64_t stride = classifier->padded_channels();
    std::vector<uint16_t> rows(static_cast<size_t>(one.size() * config.sequence_length * stride));
    for (int64_t n = 0; n < one.size(); ++n) {
      for (int64_t s = 0; s < config.sequence_length; ++s) {
        for (int64_t c = 0; c < config.embedding_size; ++c) {
          rows[static_cast<size_t>((n * config.sequence_length + s) * stride + c)] = f32_to_f16(
              one.embeddings[static_cast<size_t>((n * config.embedding_size + c) * config.sequence_length + s)]);
        }
      }
    }
    const cuda::DeviceBytes resident = cuda::DeviceBytes::zeros(rows.size() * sizeof(uint16_t));
    const cuda::DeviceBytes logits = cuda::DeviceBytes::zeros(expected.logits.size() * sizeof(float));
    TESSERA_CUDA_CHECK(cudaMemcpy(resident.data(), rows.data(), resident.bytes(), cudaMemcpyHostToDevice));
    classifier->enqueue_resident(resident.data(), one.size(), logits.as<float>());
    classifier->synchronize();
    std::vector<float> result(expected.logits.size());
    TESSERA_CUDA_CHECK(cudaMemcpy(result.data(), logits.data(), logits.bytes(), cudaMemcpyDeviceToHost));
    EXPECT_TRUE(same_bits(result, expected.logits)) << form_name(form);
  }
}

// The tail in fp64 from the features and router weights the GPU reports, without the skipped experts.
std::vector<float> tail_without(const Case& one, const Result& dense, float threshold) {
  const ClassifierConfig& config = one.config();
  const ModelWeights& weights = one.model->weights;
  const auto apply = [](const LinearWeights& layer, const std::vector<double>& x) {
    std::vector<double> y(layer.bias.begin(), layer.bias.end());
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(layer.weight[o * x.size() + i]) * x[i];
    }
    return y;
  };
  std::vector<float> logits;
  const auto num_experts = static_cast<size_t>(config.num_experts);
  for (size_t n = 0; n < static_cast<size_t>(one.size()); ++n) {
    const auto first = dense.features.begin() + static_cast<std::ptrdiff_t>(n) * config.feature_size();
    const std::vector<double> h(first, first + config.feature_size());
    std::vector<double> y(static_cast<size_t>(config.expert_size), 0.0);
    for (size_t e = 0; e < num_experts; ++e) {
      const float g = dense.router_weights[n * num_experts + e];
      if (g < threshold) continue;
      const std::vector<double> expert = apply(weights.experts[e], h);
      for (size_t i = 0; i < y.size(); ++i) y[i] += static_cast<double>(g) * expert[i];
    }
    for (const LinearWeights& layer : weights.head) {
      y = apply(layer, y);
      for (double& value : y) value = std::max(value, 0.0);
    }
    for (const double value : apply(weights.output, y)) logits.push_back(static_cast<float>(value));
  }
  return logits;
}

TEST(CudaClassifier, ExpertsBelowTheThresholdAreSkippedAndNoOthers) {
  for (const Case& one : {Case("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 300),
                          Case("no fold", make_config(24, 12, {3}, 20, 5, 17, {300, 7}), 61)}) {
    for (const Precision precision : {Precision::fp16, Precision::bf16}) {
      const LayerPrecision layers{precision, precision, precision};
      const Result dense = run(*make(one.model, {.input = InputKind::ids, .precision = layers}), one.config(),
                               one.batch(InputKind::ids));
      for (const double threshold : {1e-9, 0.1, 0.25, 0.6, 0.99}) {
        const auto classifier =
            make(one.model, {.input = InputKind::ids, .precision = layers, .expert_threshold = threshold});
        const Result result = run(*classifier, one.config(), one.batch(InputKind::ids));
        EXPECT_LE(worst_logit(result.logits, tail_without(one, dense, static_cast<float>(threshold))), tau(precision))
            << one.name << ", " << threshold;
        EXPECT_TRUE(same_bits(result.router_weights, dense.router_weights));
      }
    }
  }
}

TEST(CudaClassifier, NoSentences) {
  const Case one("odd", odd_config(), 3);
  const auto classifier = make(one.model, {.input = InputKind::ids});
  classifier->run({}, {});
}

TEST(CudaClassifier, RefusesWhatItCannotDo) {
  const auto model = random_model(odd_config(), 1);
  const auto refuses = [&](CudaOptions options) { EXPECT_THROW(make_cuda_classifiers(model, options), Error); };
  refuses({.device = 99});
  refuses({.device = -1});
  refuses({.input = InputKind::embeddings, .form = Form::vocab});
  refuses({.precision = {Precision::fp64, Precision::fp16, Precision::fp16}});
  refuses({.expert_threshold = 1.0});
  refuses({.expert_threshold = -0.5});
  refuses({.precision = {Precision::fp16, Precision::fp32, Precision::fp16}, .expert_threshold = 0.1});
  const auto refuses_config = [&](const ClassifierConfig& config, CudaOptions options) {
    EXPECT_THROW(make_cuda_classifiers(random_model(config, 1), options), Error);
  };
  refuses_config(make_config(8, 33, {1}, 8, 2, 8, {}), {.form = Form::dft});
  refuses_config(make_config(8, 513, {1}, 8, 2, 8, {}), {});
  refuses_config(make_config(8, 8, {1}, 8, 65, 8, {}), {});
}

TEST(CudaClassifier, MemoryThatIsTooSmallHalvesTheMicroBatch) {
  const Case one("like apws25", make_config(256, 16, {3, 5, 7, 9}, 64, 4, 128, {64, 32}), 20);
  size_t free_bytes = 0, all_bytes = 0;
  TESSERA_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  const CudaOptions options{.input = InputKind::embeddings, .micro_batch = int64_t{1} << 16};
  const auto roomy = make(one.model, options);
  EXPECT_EQ(roomy->preferred_batch(), options.micro_batch);
  const size_t needed = roomy->device_bytes();
  constexpr size_t kLeft = size_t{600} << 20;
  ASSERT_GT(needed, kLeft);
  TESSERA_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  const cuda::DeviceBytes hog(free_bytes - kLeft);
  const auto tight = make(one.model, options);
  EXPECT_LT(tight->preferred_batch(), options.micro_batch);
  const Result result = run(*tight, one.config(), one.batch(InputKind::embeddings));
  EXPECT_LE(worst_logit(result.logits, one.oracle.logits), tau(Precision::fp16));
}

TEST(ClassifierSmall, WholeModelInEveryForm) {
  const Case one("odd", odd_config(), 5);
  for (const InputKind input : {InputKind::ids, InputKind::embeddings}) {
    for (const Form form : forms_of(one.config(), input)) {
      const auto classifier = make(one.model, {.input = input, .form = form, .micro_batch = 4});
      const Result result = run(*classifier, one.config(), one.batch(input));
      EXPECT_LE(worst_logit(result.logits, one.oracle.logits), tau(Precision::fp16));
    }
  }
  const auto skipping = make(one.model, {.input = InputKind::ids, .expert_threshold = 0.2, .micro_batch = 4});
  const Result result = run(*skipping, one.config(), one.batch(InputKind::ids));
  for (const float logit : result.logits) EXPECT_TRUE(std::isfinite(logit));
}

}  // namespace
}  // namespace tessera::classifier
