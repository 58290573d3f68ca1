// What `tessera bench classify` stands on: inputs, blocks of threads, and the judge, which finds what is planted.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>

#include "classifier/synth.h"
#include "classify_blocks.h"
#include "classify_check.h"
#include "classify_data.h"
#include "tessera/core/check.h"

namespace tessera::cli {
namespace {

using classifier::InputKind;
using classifier::Precision;

constexpr int64_t kSentences = 37;

std::shared_ptr<const classifier::Model> small_model() {
  static const auto model = std::make_shared<const classifier::Model>(
      classifier::synthesize_model(classifier::preset_config("small"), {}, {.seed = 1, .num_threads = 1}));
  return model;
}

std::shared_ptr<ClassifyData> small_data(bool embeddings_of_ids = false, int num_threads = 1) {
  ClassifyDataOptions options;
  options.num_sentences = kSentences;
  options.embeddings_of_ids = embeddings_of_ids;
  options.num_threads = num_threads;
  return std::make_shared<ClassifyData>(small_model(), options);
}

std::vector<float> all_embeddings(ClassifyData& data) {
  std::vector<float> embeddings(static_cast<size_t>(kSentences * data.sentence_size()));
  data.fill(0, kSentences, embeddings.data());
  return embeddings;
}

TEST(ClassifyData, AnySentenceAloneIsTheOneOfTheWhole) {
  for (const bool of_ids : {false, true}) {
    const auto data = small_data(of_ids), threaded = small_data(of_ids, 3);
    const std::vector<float> whole = all_embeddings(*data);
    EXPECT_EQ(whole, all_embeddings(*threaded));
    const auto size = static_cast<size_t>(data->sentence_size());
    std::vector<float> one(size);
    for (const int64_t i : {int64_t{0}, int64_t{17}, kSentences - 1}) {
      data->sentence(i, one.data());
      EXPECT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + i * data->sentence_size())) << i;
    }
  }
}

TEST(ClassifyData, RandomEmbeddingsAreNormalAndHardlyEverTheSame) {
  const auto data = small_data();
  const std::vector<float> whole = all_embeddings(*data);
  double sum = 0, squares = 0;
  for (const float value : whole) {
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  const auto count = static_cast<double>(whole.size());
  EXPECT_NEAR(sum / count, 0.0, 5.0 / std::sqrt(count));
  EXPECT_NEAR(squares / count, 1.0, 10.0 / std::sqrt(count));
  std::vector<float> sorted = whole;  // sentences or columns that come again would halve the number of values
  std::sort(sorted.begin(), sorted.end());
  EXPECT_GT(std::unique(sorted.begin(), sorted.end()) - sorted.begin(), static_cast<int64_t>(whole.size()) * 9 / 10);
}

TEST(ClassifyData, ResidentEmbeddingsAreTheSameOnesTransposedRoundedAndPadded) {
  const auto data = small_data();
  const std::vector<float> whole = all_embeddings(*data);
  const int64_t channels = small_model()->config.embedding_size, positions = data->sequence_length();
  const int64_t padded = channels + 5, first = 3, count = 4;
  for (const DType dtype : {DType::f16, DType::bf16}) {
    std::vector<uint16_t> resident(static_cast<size_t>(count * positions * padded), 0x7FFF);
    data->fill_resident(first, count, dtype, padded, resident.data());
    for (int64_t i = 0; i < count * positions * padded; ++i) {
      const int64_t channel = i % padded, position = i / padded % positions, sentence = i / padded / positions;
      const float value =
          channel < channels
              ? whole[static_cast<size_t>(((first + sentence) * channels + channel) * positions + position)]
              : 0.0f;
      ASSERT_EQ(resident[static_cast<size_t>(i)], dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value)) << i;
    }
  }
}

/// A run of the fp32 back end; the test may change what it left.
struct TimedRun {
  explicit TimedRun(InputKind kind) : input(kind), data(small_data()), embeddings(all_embeddings(*data)) {
    const auto classifier = classifier::make_cpu_classifier(
        small_model(), {.input = input, .precision = Precision::fp32, .num_threads = 1});
    logits.resize(static_cast<size_t>(kSentences * small_model()->config.num_classes));
    classifier::Batch batch;
    batch.num_sentences = kSentences;
    batch.ids = data->ids().data();
    batch.embeddings = embeddings.data();
    classifier::Outputs outputs;
    outputs.logits = logits.data();
    classifier->run(batch, outputs);
  }
  ClassifyCheck check(const std::vector<float>& second, int64_t num_checked = kSentences) const {
    return check_classified(*data, input, DType::f32, "fp32", num_checked, 1, {logits, second});
  }

  InputKind input;
  std::shared_ptr<ClassifyData> data;
  std::vector<float> embeddings, logits;
};

TEST(ClassifyCheck, PassesWhatTheClassifierComputes) {
  for (const InputKind input : {InputKind::ids, InputKind::embeddings}) {
    const TimedRun run(input);
    std::vector<float> repeated = run.logits;  // rows that come again, the last ones in part
    repeated.insert(repeated.end(), run.logits.begin(), run.logits.end());
    repeated.insert(repeated.end(), run.logits.begin(), run.logits.begin() + 6);
    for (const int64_t num_checked : {int64_t{1}, int64_t{4}, kSentences + 10}) {
      const ClassifyCheck check = run.check(repeated, num_checked);
      EXPECT_TRUE(check.passed());
      EXPECT_EQ(check.num_records, std::min(num_checked, kSentences));
      EXPECT_GT(check.largest_error, 0.0);
      EXPECT_LT(check.largest_error, 1e-5);
      EXPECT_EQ(check.bound, 1e-3);
    }
  }
}

TEST(ClassifyCheck, FindsWhatIsPlanted) {
  TimedRun run(InputKind::embeddings);
  const std::vector<float> right = run.logits;
  const auto classes = static_cast<size_t>(small_model()->config.num_classes);
  run.logits[5] += 0.01f * std::max(1.0f, std::abs(right[5]));
  EXPECT_FALSE(run.check(run.logits).passed());
  EXPECT_GT(run.check(run.logits).largest_error, 9e-3);

  run.logits = right;  // two records swapped
  std::swap_ranges(run.logits.begin(), run.logits.begin() + static_cast<int64_t>(classes),
                   run.logits.begin() + static_cast<int64_t>(7 * classes));
  EXPECT_FALSE(run.check(run.logits).passed());

  run.logits = right;  // never written, in a record that the oracle does not see
  run.logits[classes] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(run.check(run.logits, 2).passed());
  EXPECT_FALSE(run.check(run.logits, 2).bits_agree);

  run.logits = right;  // one bit in the last row of the second run
  std::vector<float> second = right;
  second.back() = std::nextafter(second.back(), 100.0f);
  EXPECT_FALSE(run.check(second).passed());
  EXPECT_LE(run.check(second).largest_error, 1e-3);

  run.logits = std::vector<float>(right.size(), 0.0f);
  EXPECT_FALSE(run.check(run.logits).passed());
  EXPECT_FALSE(TimedRun(InputKind::ids).check(right).passed());  // another input's logits
}

TEST(ClassifyCheck, EmbeddingsThatWereRoundedAreRoundedForTheOracleToo) {
  TimedRun run(InputKind::embeddings);
  for (float& value : run.embeddings) value = bf16_to_f32(f32_to_bf16(value));
  const auto classifier = classifier::make_cpu_classifier(
      small_model(), {.input = InputKind::embeddings, .precision = Precision::fp32, .num_threads = 1});
  classifier::Batch batch;
  batch.num_sentences = kSentences;
  batch.embeddings = run.embeddings.data();
  classifier::Outputs outputs;
  outputs.logits = run.logits.data();
  classifier->run(batch, outputs);
  const auto check = [&](DType rounded) {
    return check_classified(*run.data, InputKind::embeddings, rounded, "fp32", kSentences, 1, {run.logits});
  };
  EXPECT_TRUE(check(DType::bf16).passed());
  EXPECT_FALSE(check(DType::f32).passed());
}

TEST(ClassifyBlocks, EveryWorkerMakesItsFewestStepsInOrder) {
  std::vector<int64_t> steps[2];
  std::vector<Worker> workers;
  for (auto& made : steps) {
    workers.push_back({.step =
                           [&made](int64_t i) {
                             made.push_back(i);
                             return 2.0;
                           },
                       .fewest_steps = 3});
  }
  const Block block = run_block(workers, 0.0);
  EXPECT_EQ(steps[0], (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(steps[1], steps[0]);
  EXPECT_EQ(block.amount, 12.0);
  EXPECT_GT(block.seconds, 0.0);
}

Worker sleeper(std::chrono::milliseconds time, double amount) {
  return {.step = [=](int64_t) {
    std::this_thread::sleep_for(time);
    return amount;
  }};
}

TEST(ClassifyBlocks, WorkersWorkAtTheSameTimeUntilTheLastEnds) {
  using std::chrono::milliseconds;
  const Block block = run_block({sleeper(milliseconds(100), 1.0), sleeper(milliseconds(150), 1.0)}, 0.0);
  EXPECT_EQ(block.amount, 2.0);
  EXPECT_GE(block.seconds, 0.15);
  EXPECT_LT(block.seconds, 0.24);
  const Block longer = run_block({sleeper(milliseconds(20), 1.0)}, 0.1);
  EXPECT_GE(longer.seconds, 0.1);
  EXPECT_LE(longer.amount, 5.0);
  EXPECT_GE(longer.amount, 2.0);
}

TEST(ClassifyBlocks, WhatAStepThrowsEndsTheBlock) {
  const Worker failing = {.step = [](int64_t i) -> double {
    if (i == 2) throw std::runtime_error("lost");
    return 1.0;
  }};
  EXPECT_THROW(run_block({sleeper(std::chrono::milliseconds(1), 1.0), failing}, 60.0), std::runtime_error);
}

TEST(ClassifyBlocks, TurnsCompareNeighboursAndWatchTheClassifierOnly) {
  using std::chrono::milliseconds;
  std::atomic<int> begun{0}, ended{0};
  bool limit_ran_watched = false;
  Worker limit = sleeper(milliseconds(10), 40.0);
  const auto sleep = limit.step;
  limit.step = [&, sleep](int64_t i) {
    limit_ran_watched = limit_ran_watched || begun != ended;
    return sleep(i);
  };
  const Watch watch = {.begin = [&] { ++begun; },
                       .end =
                           [&] {
                             ++ended;
                             return std::vector<DeviceState>{{1000.0 + ended, 500.0}};
                           }};
  const Turns turns = take_turns({sleeper(milliseconds(10), 10.0)}, {limit}, 0.1, watch);
  EXPECT_EQ(begun, 2);
  EXPECT_EQ(ended, 2);
  EXPECT_FALSE(limit_ran_watched);
  EXPECT_EQ(turns.num_blocks, 2);
  EXPECT_NEAR(turns.ratio.median, 0.25, 0.1);
  EXPECT_LE(turns.ratio.low, turns.ratio.high);
  EXPECT_GE(turns.seconds_a_block, 0.1);
  ASSERT_EQ(turns.states.size(), 1u);
  EXPECT_EQ(turns.states[0].sm_mhz, 1002.0);  // of the last block
  EXPECT_EQ(take_turns({sleeper(milliseconds(1), 1.0)}, {}, 0.0, watch).ratio.median, 0.0);
}

TEST(ClassifyBlocks, RepeatsAtLeastThreeTimesAfterOneThatIsNotCounted) {
  std::atomic<int> runs{0};
  const Spread seconds = repeated_seconds({{.step = [&](int64_t) {
    ++runs;
    std::this_thread::sleep_for(std::chrono::milliseconds(runs == 1 ? 200 : 5));
    return 1.0;
  }}});
  EXPECT_GE(runs, 4);
  EXPECT_LE(runs, 10);
  EXPECT_LT(seconds.high, 0.15);
  EXPECT_GE(seconds.low, 0.005);
}

}  // namespace
}  // namespace tessera::cli
