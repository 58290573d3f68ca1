// Devices whose results are wrong now and then, or always: what is written is right, or is not written.
#include "classifier/engine_verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "unit/classifier/engine_fakes.h"

namespace tessera::classifier {
namespace {

using testing::FakeClassifier;
using testing::FakeReader;
using testing::FakeSink;
using testing::FlawedReader;

/// Its results are wrong from a run on: each time in the same way, or each time in another.
struct CorruptClassifier : FakeClassifier {
  void run(const Batch& batch, const Outputs& outputs) override {
    FakeClassifier::run(batch, outputs);
    if (wrong_from < 0 || num_runs <= wrong_from) return;
    // Every sentence: one that fails by itself shows nothing.
    for (int64_t i = 0; i < batch.num_sentences; ++i) {
      if (is_stuck) {
        outputs.logits[2 * i] += 0.5f;
      } else if (num_runs % 2 == 1) {
        outputs.logits[2 * i] += static_cast<float>(num_runs);
      }
    }
  }
  std::string description() const override { return name + ", a fake"; }
  int64_t wrong_from = -1;
  bool is_stuck = false;
};

using Setup = std::function<void(size_t i, CorruptClassifier&)>;

Engine make_engine(size_t num_classifiers, EngineOptions options, const Setup& setup = {},
                   const std::shared_ptr<const Model>& model = testing::make_model()) {
  std::vector<std::unique_ptr<Classifier>> classifiers;
  for (size_t i = 0; i < num_classifiers; ++i) {
    auto classifier = std::make_unique<CorruptClassifier>();
    classifier->name = str_cat("fake ", i);
    classifier->random.seed(i);
    classifier->max_delay_us = 200;
    if (setup) setup(i, *classifier);
    classifiers.push_back(std::move(classifier));
  }
  options.num_encode_threads = 1;
  return Engine(model, std::move(classifiers), options);
}

std::string content(const FakeSink& sink) {
  std::string text;
  for (const FakeSink::Kept& kept : sink.kept) {
    text += str_cat(kept.index, " ", kept.error, " ", kept.text, " ", kept.logits[0], " ", kept.logits[1], " ",
                    kept.router_weights.empty() ? 0.0f : kept.router_weights[0], "\n");
  }
  return text;
}

std::string undisturbed(int64_t num_records) {
  Engine engine = make_engine(1, {.batch_size = 8, .router_weights = true});
  FlawedReader reader(num_records);
  FakeSink sink;
  engine.run(reader, sink);
  return content(sink);
}

/// EXPECT_EQ would print all of it.
std::string difference(const std::string& got, const std::string& wanted) {
  const auto [end, ignored] = std::mismatch(got.begin(), got.end(), wanted.begin(), wanted.end());
  if (end == got.end() && got.size() == wanted.size()) return "";
  const size_t at = static_cast<size_t>(end - got.begin());
  const size_t from = at < 20 ? 0 : at - 20;
  return str_cat("at byte ", at, " of ", wanted.size(), ": got '", got.substr(from, 60), "', expected '",
                 wanted.substr(from, 60), "'");
}

struct Result {
  RunStatistics statistics;
  std::string written;
  bool is_complete = true;
};

Result run(Engine engine, int64_t num_records) {
  FlawedReader reader(num_records);
  FakeSink sink;
  Result result;
  try {
    result.statistics = engine.run(reader, sink);
  } catch (const NoDeviceLeft& error) {
    result.is_complete = false;
    EXPECT_EQ(static_cast<int64_t>(sink.kept.size()), error.first_lost());
  }
  result.written = content(sink);
  return result;
}

TEST(EngineVerify, right_results_are_written_as_without) {
  const std::string expected = undisturbed(700);
  for (const size_t num_devices : {1u, 2u, 5u}) {
    for (const int64_t rate : {1, 3, 10, 1000}) {
      const Result result =
          run(make_engine(num_devices, {.batch_size = 8, .router_weights = true, .verify_rate = rate}), 700);
      EXPECT_EQ(difference(result.written, expected), "") << num_devices << " " << rate;
      EXPECT_EQ(result.statistics.num_mismatches, 0);
      EXPECT_GE(result.statistics.num_verified, 1);
      EXPECT_TRUE(rate != 1 || result.statistics.num_verified == 88) << result.statistics.num_verified;
      EXPECT_TRUE(result.statistics.failed_devices.empty());
    }
  }
}

TEST(EngineVerify, lanes_of_one_device_share_its_window) {
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Result result = run(
        make_engine(4, {.batch_size = 4, .router_weights = true, .verify_rate = 4, .device_of = {0, 0, 1, 1}}), 700);
    EXPECT_EQ(difference(result.written, undisturbed(700)), "");
  }
}

TEST(EngineVerify, of_three_devices_the_one_that_is_wrong_is_outvoted) {
  const std::string expected = undisturbed(1500);
  for (const bool is_stuck : {true, false}) {
    for (const int64_t from : {0, 3, 11}) {
      const Result result = run(make_engine(3, {.batch_size = 4, .router_weights = true, .verify_rate = 1},
                                            [&](size_t i, CorruptClassifier& c) {
                                              c.is_stuck = is_stuck;
                                              if (i == 1) c.wrong_from = from;
                                            }),
                                1500);
      EXPECT_TRUE(result.is_complete);
      EXPECT_EQ(difference(result.written, expected), "");
      EXPECT_GE(result.statistics.num_mismatches, 1);
      ASSERT_EQ(result.statistics.failed_devices.size(), 1u);
      EXPECT_EQ(result.statistics.failed_devices[0],
                "fake 1: its results differ, bit for bit, from those of a second computation");
    }
  }
}

TEST(EngineVerify, what_a_wrong_device_labelled_since_the_last_verified_batch_is_labelled_again) {
  // Wrong all the time, verified one batch in five: whatever the four others were, none of them is written.
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Result result = run(make_engine(3, {.batch_size = 4, .router_weights = true, .verify_rate = 5},
                                          [&](size_t i, CorruptClassifier& c) {
                                            c.is_stuck = true;
                                            if (i == 2) c.wrong_from = 0;
                                          }),
                              1500);
    EXPECT_TRUE(result.is_complete);
    EXPECT_EQ(difference(result.written, undisturbed(1500)), "");
    EXPECT_EQ(result.statistics.failed_devices.size(), 1u);
  }
}

TEST(EngineVerify, of_two_devices_the_one_that_contradicts_itself_is_wrong) {
  const Result result = run(make_engine(2, {.batch_size = 4, .router_weights = true, .verify_rate = 1},
                                        [&](size_t i, CorruptClassifier& c) {
                                          if (i == 0) c.wrong_from = 5;
                                        }),
                            1500);
  EXPECT_TRUE(result.is_complete);
  EXPECT_EQ(difference(result.written, undisturbed(1500)), "");
  ASSERT_EQ(result.statistics.failed_devices.size(), 1u);
  EXPECT_TRUE(result.statistics.failed_devices[0].starts_with("fake 0: "));
}

TEST(EngineVerify, where_nobody_knows_who_is_wrong_nothing_more_is_written) {
  const std::string expected = undisturbed(1500);
  for (const size_t num_devices : {1u, 2u}) {
    const Result result = run(make_engine(num_devices, {.batch_size = 4, .router_weights = true, .verify_rate = 1},
                                          [&](size_t i, CorruptClassifier& c) {
                                            c.is_stuck = num_devices > 1;
                                            if (i == 0) c.wrong_from = 20;
                                          }),
                              1500);
    EXPECT_FALSE(result.is_complete);
    EXPECT_LT(result.written.size(), expected.size());
    EXPECT_EQ(difference(result.written, expected.substr(0, result.written.size())), "");
  }
}

TEST(EngineVerify, devices_may_fail_as_well) {
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Result result = run(make_engine(4, {.batch_size = 4, .router_weights = true, .verify_rate = 3},
                                          [&](size_t i, CorruptClassifier& c) {
                                            c.is_stuck = true;
                                            if (i == 1) c.wrong_from = 4;
                                            if (i == 2) c.device_fails_at = 9;
                                          }),
                              1500);
    EXPECT_TRUE(result.is_complete);
    EXPECT_EQ(difference(result.written, undisturbed(1500)), "");
    EXPECT_EQ(result.statistics.failed_devices.size(), 2u);
  }
}

TEST(EngineVerify, texts_are_labelled_again_with_what_was_wrong_with_them) {
  const auto label = [](int64_t rate, int64_t wrong_from) {
    Engine engine = make_engine(
        3, {.batch_size = 2, .verify_rate = rate},
        [&](size_t i, CorruptClassifier& c) {
          c.is_stuck = true;
          if (i == 0) c.wrong_from = wrong_from;
        },
        testing::make_model(10));
    std::vector<std::string> texts;
    for (int i = 0; i < 60; ++i) texts.push_back(i % 7 == 3 ? "\xFFw3" : str_cat("w", 2 + i % 8, " w3"));
    FakeReader reader(texts);
    FakeSink sink;
    const RunStatistics statistics = engine.run(reader, sink);
    EXPECT_EQ(statistics.num_failed, 9);
    EXPECT_EQ(statistics.num_words, 102);
    return content(sink);
  };
  EXPECT_EQ(label(2, 0), label(0, -1));
}

TEST(EngineVerify, after_a_stop_what_is_written_is_a_verified_prefix) {
  std::stop_source stop;
  Engine engine =
      make_engine(2, {.batch_size = 4, .router_weights = true, .verify_rate = 4}, [&](size_t, CorruptClassifier& c) {
        c.before_run = [&](int64_t run) {
          if (run == 30) stop.request_stop();
        };
      });
  FlawedReader reader(100'000);
  FakeSink sink;
  const RunStatistics statistics = engine.run(reader, sink, stop.get_token());
  EXPECT_TRUE(statistics.interrupted);
  EXPECT_EQ(statistics.num_read, static_cast<int64_t>(sink.kept.size()));
  const std::string expected = undisturbed(statistics.num_read);
  EXPECT_EQ(content(sink), expected);
}

TEST(EngineVerify, results_that_differ_in_one_bit_are_not_equal) {
  const ClassifierConfig config = testing::make_model()->config;
  const auto make = [] {
    LabelledBatch batch;
    batch.num_records = batch.num_done = 2;
    batch.errors = {"", "record 1: wrong"};
    batch.logits = Buffer<float>(4);
    std::fill_n(batch.logits.data(), 4, 0.0f);
    return batch;
  };
  const LabelledBatch one = make();
  EXPECT_TRUE(are_equal(one, make(), config));
  LabelledBatch other = make();
  other.logits[1] = -0.0f;
  EXPECT_FALSE(are_equal(one, other, config));
  other = make();
  other.logits[2] = 1.0f;  // of the failed record
  EXPECT_TRUE(are_equal(one, other, config));
  other.errors[1] = "record 1: other";
  EXPECT_FALSE(are_equal(one, other, config));
  other = make();
  other.num_done = 1;
  EXPECT_FALSE(are_equal(one, other, config));
}

}  // namespace
}  // namespace tessera::classifier
