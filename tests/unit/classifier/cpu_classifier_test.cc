#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "classifier/cpu_form.h"
#include "classifier_run.h"
#include "cpu/gemm.h"
#include "cpu/reference.h"
#include "random_model.h"
#include "tessera/classifier/classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "unit/numeric_check.h"

namespace tessera::classifier {
namespace {

using testing::embed;
using testing::odd_config;
using testing::random_ids;
using testing::random_model;
using testing::Result;
using testing::run;

constexpr RecordStatus kOk = RecordStatus::ok;

// One model with the sentences of a test in both forms of input.
struct Case {
  std::string name;
  std::shared_ptr<Model> model;
  std::vector<int32_t> ids;
  std::vector<float> embeddings;

  Case(const std::string& with_name, const ClassifierConfig& config, int64_t num_sentences)
      : name(with_name), model(random_model(config, 1)), ids(random_ids(config, num_sentences, 2)) {
    embeddings = embed(*model, ids);
  }
  const ClassifierConfig& config() const { return model->config; }

  Batch batch(InputKind input, int64_t first, int64_t count) const {
    Batch sentences;
    sentences.num_sentences = count;
    if (input == InputKind::ids) sentences.ids = ids.data() + first * config().sequence_length;
    if (input == InputKind::embeddings) {
      sentences.embeddings = embeddings.data() + first * config().sequence_length * config().embedding_size;
    }
    return sentences;
  }
};

// Every form on both kinds of input: see the names. Sizes are odd.
std::vector<Case> cases(int64_t num_sentences) {
  std::vector<Case> all;
  ClassifierConfig config = odd_config();
  all.emplace_back("ids multiplied, head folded", config, num_sentences);
  config.embedding_size = 21;
  all.emplace_back("ids projected, head folded", config, num_sentences);
  config.head_sizes = {};
  all.emplace_back("no head", config, num_sentences);
  config.head_sizes = {40, 3};
  all.emplace_back("head wider than the experts: not folded", config, num_sentences);
  config.sequence_length = 1;
  config.filter_widths = {1};
  config.num_experts = 1;
  all.emplace_back("sequence of one, one expert", config, num_sentences);
  config = odd_config();
  config.embedding_size = 33;
  config.sequence_length = 56;
  config.filter_widths = {1, 2, 5, 56};
  config.num_filters = 16;
  all.emplace_back("long sequence, one window beside 56", config, num_sentences);
  all.emplace_back("small preset", preset_config("small"), num_sentences);
  return all;
}

std::vector<Precision> fast_precisions() {
  std::vector<Precision> all = {Precision::fp32};
  if (cpu_supports_bf16()) all.push_back(Precision::bf16);
  return all;
}

constexpr InputKind kInputs[] = {InputKind::ids, InputKind::embeddings};

std::string label(const Case& test, InputKind input, Precision precision) {
  return test.name + (input == InputKind::ids ? ", ids" : ", embeddings") +
         (precision == Precision::bf16   ? ", bf16"
          : precision == Precision::fp32 ? ", fp32"
                                         : ", fp64");
}

TEST(CpuClassifier, TheOracleIsTheDefinition) {
  namespace reference = cpu::reference;
  const Case test("odd", odd_config(), 9);
  const auto oracle = make_cpu_classifier(test.model, {.input = InputKind::ids, .precision = Precision::fp64});
  const Result result = run(*oracle, test.config(), test.batch(InputKind::ids, 0, 9));
  const ModelWeights& weights = test.model->weights;
  const auto apply = [](const LinearWeights& layer, const std::vector<double>& x) {
    return reference::linear(layer.weight.span(), layer.bias.span(), x);
  };
  for (size_t sentence = 0; sentence < 9; ++sentence) {
    const auto begin = test.embeddings.begin() + static_cast<std::ptrdiff_t>(sentence * 42);
    const std::vector<double> x(begin, begin + 42);
    std::vector<double> h;
    for (size_t i = 0; i < 3; ++i) {
      const auto pooled = reference::conv_relu_max(x, 7, 6, weights.conv[i].weight.span(), weights.conv[i].bias.span(),
                                                   test.config().filter_widths[i]);
      h.insert(h.end(), pooled.begin(), pooled.end());
    }
    const auto g = reference::softmax(apply(weights.router, h));
    std::vector<double> y(11);
    for (size_t e = 0; e < 3; ++e) {
      const auto expert = apply(weights.experts[e], h);
      for (size_t i = 0; i < 11; ++i) y[i] += g[e] * expert[i];
    }
    for (const LinearWeights& layer : weights.head) {
      y = apply(layer, y);
      reference::relu(y);
    }
    const auto logits = apply(weights.output, y);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(result.logits[sentence * 3 + i], static_cast<float>(logits[i]));
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(result.router_weights[sentence * 3 + i], static_cast<float>(g[i]));
    for (size_t i = 0; i < 15; ++i) EXPECT_EQ(result.features[sentence * 15 + i], static_cast<float>(h[i]));
    EXPECT_EQ(result.status[sentence], kOk);
  }
}

TEST(CpuClassifier, EveryFormAgreesWithTheOracle) {
  for (const Case& test : cases(70)) {
    for (const InputKind input : kInputs) {
      const auto oracle = make_cpu_classifier(test.model, {.input = input, .precision = Precision::fp64});
      const Result expected = run(*oracle, test.config(), test.batch(input, 0, 70));
      for (const Precision precision : fast_precisions()) {
        SCOPED_TRACE(label(test, input, precision));
        const auto classifier = make_cpu_classifier(test.model, {.input = input, .precision = precision});
        const Result result = run(*classifier, test.config(), test.batch(input, 0, 70));
        const double tau = precision == Precision::bf16 ? test::kLogitTauBf16 : test::kLogitTauF32;
        EXPECT_TRUE(test::logits_within(result.logits, expected.logits, tau));
        EXPECT_TRUE(test::logits_within(result.router_weights, expected.router_weights, tau / 10));
        EXPECT_TRUE(test::logits_within(result.features, expected.features, tau / 5));
        EXPECT_EQ(result.status, expected.status);
        EXPECT_FALSE(test::logits_within(std::vector<float>(result.logits.size()), expected.logits, tau));
      }
    }
  }
}

TEST(CpuClassifier, EveryBatchSizeGivesTheSameBits) {
  for (const Case& test : cases(70)) {
    for (const InputKind input : kInputs) {
      for (const Precision precision : fast_precisions()) {
        SCOPED_TRACE(label(test, input, precision));
        const auto classifier = make_cpu_classifier(test.model, {.input = input, .precision = precision});
        const Result all = run(*classifier, test.config(), test.batch(input, 0, 70));
        for (int64_t count = 0; count <= 70; ++count) {
          const Result some = run(*classifier, test.config(), test.batch(input, 0, count));
          EXPECT_TRUE(test::same_bits(some.logits, std::span(all.logits).first(some.logits.size())));
          EXPECT_TRUE(test::same_bits(some.features, std::span(all.features).first(some.features.size())));
          EXPECT_TRUE(
              test::same_bits(some.router_weights, std::span(all.router_weights).first(some.router_weights.size())));
          EXPECT_EQ(some.status, std::vector<RecordStatus>(static_cast<size_t>(count), kOk));
        }
      }
    }
  }
}

TEST(CpuClassifier, PlaceNeighboursAndThreadsDoNotShow) {
  constexpr int64_t kSentences = 300;  // more than a slice
  for (const Case& test : cases(kSentences)) {
    std::vector<int64_t> order(kSentences);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    Case shuffled = test;
    const auto move_rows = [&](const auto& from, auto& to, int64_t size) {
      for (int64_t i = 0; i < kSentences; ++i) {
        std::copy_n(from.begin() + order[static_cast<size_t>(i)] * size, size, to.begin() + i * size);
      }
    };
    move_rows(test.ids, shuffled.ids, test.config().sequence_length);
    move_rows(test.embeddings, shuffled.embeddings, test.config().sequence_length * test.config().embedding_size);
    for (const InputKind input : kInputs) {
      for (const Precision precision : fast_precisions()) {
        SCOPED_TRACE(label(test, input, precision));
        std::vector<float> expected;
        for (const int num_threads : {1, 2, 3, 4}) {
          const CpuOptions options = {.input = input, .precision = precision, .num_threads = num_threads};
          const auto classifier = make_cpu_classifier(test.model, options);
          const Result straight = run(*classifier, test.config(), test.batch(input, 0, kSentences));
          if (expected.empty()) expected = straight.logits;
          EXPECT_TRUE(test::same_bits(straight.logits, expected)) << num_threads << " threads";
          const Result mixed = run(*classifier, test.config(), shuffled.batch(input, 0, kSentences));
          std::vector<float> reordered(expected.size());
          move_rows(expected, reordered, test.config().num_classes);
          EXPECT_TRUE(test::same_bits(mixed.logits, reordered)) << num_threads << " threads, shuffled";
        }
      }
    }
  }
}

void expect_only_these_are_bad(const Result& result, const Result& clean, const ClassifierConfig& config,
                               const std::vector<size_t>& bad, RecordStatus bad_status) {
  for (size_t i = 0; i < result.status.size(); ++i) {
    const bool is_bad = std::find(bad.begin(), bad.end(), i) != bad.end();
    EXPECT_EQ(result.status[i], is_bad ? bad_status : kOk) << i;
    const auto check = [&](const std::vector<float>& values, const std::vector<float>& good, int64_t columns) {
      const auto size = static_cast<size_t>(columns);
      const auto row = std::span(values).subspan(i * size, size);
      if (is_bad) {
        EXPECT_TRUE(std::all_of(row.begin(), row.end(), [](float value) { return std::isnan(value); })) << i;
      } else {
        EXPECT_TRUE(test::same_bits(row, std::span(good).subspan(i * size, size))) << i;
      }
    };
    check(result.logits, clean.logits, config.num_classes);
    check(result.router_weights, clean.router_weights, config.num_experts);
    check(result.features, clean.features, config.feature_size());
  }
}

TEST(CpuClassifier, AnIdOutOfRangeHurtsNoOtherSentence) {
  for (const Case& test : cases(40)) {
    Case damaged = test;
    const auto positions = static_cast<size_t>(test.config().sequence_length);
    damaged.ids[0] = -1;
    damaged.ids[7 * positions + positions - 1] = static_cast<int32_t>(test.config().vocab_size);
    damaged.ids[8 * positions] = std::numeric_limits<int32_t>::min();
    damaged.ids[39 * positions + positions / 2] = std::numeric_limits<int32_t>::max();
    std::vector<Precision> precisions = fast_precisions();
    precisions.push_back(Precision::fp64);
    for (const Precision precision : precisions) {
      SCOPED_TRACE(label(test, InputKind::ids, precision));
      const auto classifier = make_cpu_classifier(test.model, {.input = InputKind::ids, .precision = precision});
      const Result clean = run(*classifier, test.config(), test.batch(InputKind::ids, 0, 40));
      const Result result = run(*classifier, test.config(), damaged.batch(InputKind::ids, 0, 40));
      expect_only_these_are_bad(result, clean, test.config(), {0, 7, 8, 39}, RecordStatus::id_out_of_range);
    }
  }
}

TEST(CpuClassifier, AnEmbeddingThatIsNotFiniteHurtsNoOtherSentence) {
  for (const Case& test : cases(40)) {
    Case damaged = test;
    const auto size = static_cast<size_t>(test.config().sequence_length * test.config().embedding_size);
    damaged.embeddings[0] = std::numeric_limits<float>::quiet_NaN();
    damaged.embeddings[9 * size - 1] = std::numeric_limits<float>::infinity();
    damaged.embeddings[31 * size + size / 2] = -std::numeric_limits<float>::infinity();
    std::vector<Precision> precisions = fast_precisions();
    precisions.push_back(Precision::fp64);
    for (const Precision precision : precisions) {
      SCOPED_TRACE(label(test, InputKind::embeddings, precision));
      const auto classifier = make_cpu_classifier(test.model, {.input = InputKind::embeddings, .precision = precision});
      const Result clean = run(*classifier, test.config(), test.batch(InputKind::embeddings, 0, 40));
      const Result result = run(*classifier, test.config(), damaged.batch(InputKind::embeddings, 0, 40));
      expect_only_these_are_bad(result, clean, test.config(), {0, 8, 31}, RecordStatus::not_finite);
    }
  }
}

TEST(CpuClassifier, FiniteInputWhoseSumsOverflowIsReported) {
  const Case test("odd", odd_config(), 3);
  Case damaged = test;
  std::fill_n(damaged.embeddings.begin() + 42, 42, 3e38f);
  for (const Precision precision : fast_precisions()) {
    const auto classifier = make_cpu_classifier(test.model, {.input = InputKind::embeddings, .precision = precision});
    const Result clean = run(*classifier, test.config(), test.batch(InputKind::embeddings, 0, 3));
    const Result result = run(*classifier, test.config(), damaged.batch(InputKind::embeddings, 0, 3));
    expect_only_these_are_bad(result, clean, test.config(), {1}, RecordStatus::not_finite);
  }
}

TEST(CpuClassifier, OutputsAreOptionalAndNoSentencesAreFine) {
  const Case test("odd", odd_config(), 5);
  for (const Precision precision : {Precision::fp32, Precision::fp64}) {
    const auto classifier = make_cpu_classifier(test.model, {.input = InputKind::ids, .precision = precision});
    const Result all = run(*classifier, test.config(), test.batch(InputKind::ids, 0, 5));
    test::GuardedArray<float> logits(15);
    classifier->run(test.batch(InputKind::ids, 0, 5), {.logits = logits.data()});
    EXPECT_TRUE(test::same_bits(logits.span(), all.logits));
    classifier->run(test.batch(InputKind::ids, 0, 5), {});
    classifier->run({}, {});
  }
}

TEST(CpuClassifier, WrongUseIsRefused) {
  const Case test("odd", odd_config(), 2);
  EXPECT_THROW(make_cpu_classifier(nullptr, {}), ProgrammerError);
  EXPECT_THROW(make_cpu_classifier(test.model, {.num_threads = -1}), Error);
  const auto classifier = make_cpu_classifier(test.model, {.input = InputKind::ids});
  EXPECT_THROW(classifier->run(test.batch(InputKind::embeddings, 0, 2), {}), ProgrammerError);

  auto broken = random_model(odd_config(), 4);
  broken->config.filter_widths = {1, 7, 3};
  EXPECT_THROW(make_cpu_classifier(broken, {}), Error);
  broken = random_model(odd_config(), 4);
  broken->weights.experts[1].weight = Buffer<float>(3);
  EXPECT_THROW(make_cpu_classifier(broken, {}), ProgrammerError);
  broken = random_model(odd_config(), 4);
  broken->weights.embedding = {};
  EXPECT_THROW(make_cpu_classifier(broken, {.input = InputKind::ids}), Error);
  EXPECT_NE(make_cpu_classifier(broken, {.input = InputKind::embeddings}), nullptr);
}

TEST(CpuClassifier, Bf16RunsInHardwareOrIsRefused) {
  EXPECT_EQ(cpu_supports_bf16(), cpu::gemm_supports_bf16());
  const Case test("odd", odd_config(), 1);
  const CpuOptions options = {.precision = Precision::bf16};
  if (cpu_supports_bf16()) {
    EXPECT_NE(make_cpu_classifier(test.model, options)->description().find("bf16"), std::string::npos);
  } else {
    EXPECT_THROW(make_cpu_classifier(test.model, options), Error);
  }
}

TEST(CpuClassifier, SaysWhatItDoes) {
  const Case test("small", preset_config("small"), 1);
  const auto direct = make_cpu_classifier(test.model, {.input = InputKind::embeddings, .num_threads = 2});
  EXPECT_NE(direct->description().find("fp32, 2 threads; direct convolutions"), std::string::npos)
      << direct->description();
  ClassifierConfig config = odd_config();
  config.embedding_size = 16;
  const auto projected = make_cpu_classifier(random_model(config, 5), {.input = InputKind::ids, .num_threads = 1});
  EXPECT_NE(projected->description().find("projected vocabulary, first head layer folded into the experts (0 of 29"),
            std::string::npos)
      << projected->description();
  const auto oracle = make_cpu_classifier(test.model, {.precision = Precision::fp64});
  EXPECT_NE(oracle->description().find("fp64"), std::string::npos);
  for (const auto* classifier : {direct.get(), projected.get(), oracle.get()}) {
    EXPECT_GE(classifier->preferred_batch(), 1);
    EXPECT_LE(classifier->preferred_batch(), 4096);
  }
}

}  // namespace
}  // namespace tessera::classifier
