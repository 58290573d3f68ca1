#include "tessera/classifier/engine.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <functional>

#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "unit/classifier/engine_fakes.h"

namespace tessera::classifier {
namespace {

using testing::FakeClassifier;
using testing::FakeReader;
using testing::FakeSink;
using testing::kSequenceLength;
using testing::kVocabSize;

using Setup = std::function<void(FakeClassifier&)>;

Engine make_engine(int num_workers, EngineOptions options, const Setup& setup = {},
                   const std::shared_ptr<const Model>& model = testing::make_model()) {
  std::vector<std::unique_ptr<Classifier>> classifiers;
  for (int i = 0; i < num_workers; ++i) {
    auto classifier = std::make_unique<FakeClassifier>();
    classifier->random.seed(static_cast<uint64_t>(i));
    if (setup) setup(*classifier);
    classifiers.push_back(std::move(classifier));
  }
  options.num_encode_threads = 2;
  return Engine(model, std::move(classifiers), options);
}

/// Every record answered once, in order, with its own values.
void expect_all_in_order(const FakeSink& sink, int64_t num_records) {
  ASSERT_EQ(sink.kept.size(), static_cast<size_t>(num_records));
  for (int64_t i = 0; i < num_records; ++i) {
    const FakeSink::Kept& kept = sink.kept[static_cast<size_t>(i)];
    ASSERT_EQ(kept.index, i);
    ASSERT_EQ(kept.error, "");
    ASSERT_EQ(kept.logits[0], static_cast<float>(i));
  }
}

TEST(Engine, keeps_the_order_under_random_delays_and_several_workers) {
  for (const int num_workers : {1, 2, 5}) {
    for (const int64_t batch_size : {1, 7, 64}) {
      Engine engine =
          make_engine(num_workers, {.batch_size = batch_size}, [](FakeClassifier& c) { c.max_delay_us = 500; });
      FakeReader reader(500);
      FakeSink sink;
      const RunStatistics statistics = engine.run(reader, sink);
      expect_all_in_order(sink, 500);
      EXPECT_EQ(statistics.num_read, 500);
      EXPECT_EQ(statistics.num_ok, 500);
      EXPECT_EQ(statistics.num_failed, 0);
      EXPECT_FALSE(statistics.interrupted);
      EXPECT_GT(statistics.rate(), 0);
      EXPECT_EQ(sink.ends.back(), 500);
    }
  }
}

TEST(Engine, every_number_of_records_around_the_batch_size) {
  for (int64_t num_records = 0; num_records <= 70; ++num_records) {
    Engine engine = make_engine(2, {.batch_size = 32});
    FakeReader reader(num_records);
    FakeSink sink;
    EXPECT_EQ(engine.run(reader, sink).num_read, num_records);
    expect_all_in_order(sink, num_records);
  }
}

TEST(Engine, batch_size_comes_from_the_classifiers) {
  EXPECT_EQ(make_engine(2, {}, [](FakeClassifier& c) { c.preferred = 48; }).batch_size(), 48);
  EXPECT_EQ(make_engine(2, {}, [](FakeClassifier& c) { c.preferred = 0; }).batch_size(), 1);
  EXPECT_EQ(make_engine(1, {.batch_size = 5}).batch_size(), 5);
}

TEST(Engine, queue_limits_hold_the_reader_back) {
  Engine engine = make_engine(1, {.batch_size = 4, .max_queued_records = 8});
  FakeReader reader(400);
  FakeSink sink;
  int64_t furthest_ahead = 0;
  sink.on_write = [&](int64_t index) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    furthest_ahead = std::max(furthest_ahead, reader.num_taken - index);
  };
  engine.run(reader, sink);
  expect_all_in_order(sink, 400);
  // The batch being written, 5 that wait for their turn or are being put, one in the worker, 8 records in the queue and
  // the batch that waits to enter it.
  EXPECT_LE(furthest_ahead, 4 * 7 + 8 + 4);
}

TEST(Engine, router_weights_only_when_asked_for) {
  for (const bool wanted : {false, true}) {
    Engine engine = make_engine(1, {.router_weights = wanted});
    FakeReader reader(3);
    FakeSink sink;
    engine.run(reader, sink);
    EXPECT_EQ(sink.kept[2].router_weights, wanted ? (std::vector<float>{2, 0, 0}) : std::vector<float>{});
  }
}

TEST(Engine, bad_records_fail_alone_and_say_why) {
  Engine engine = make_engine(1, {.batch_size = 16, .router_weights = true}, [](FakeClassifier& c) { c.nan_id = 21; });
  FakeReader reader(40);
  reader.edit = [](int64_t index, size_t i, io::RecordBatch& batch) {
    if (index == 3) batch.ids[i * kSequenceLength + 2] = kVocabSize;
    if (index == 5) batch.ids[i * kSequenceLength + 1] = -1;
    if (index == 9) {
      batch.errors[i] = "in.bin: record 9: cut short";
      batch.ids[i * kSequenceLength] = -77;  // what such a record holds is of no account
    }
  };
  FakeSink sink;
  const RunStatistics statistics = engine.run(reader, sink);
  EXPECT_EQ(statistics.num_read, 40);
  EXPECT_EQ(statistics.num_failed, 4);
  ASSERT_EQ(statistics.failed.size(), 4u);
  EXPECT_EQ(statistics.failed[0].error, "record 3, position 2: got token id 1048576, expected an id in [0, 1048576)");
  EXPECT_EQ(statistics.failed[1].error, "record 5, position 1: got token id -1, expected an id in [0, 1048576)");
  EXPECT_EQ(statistics.failed[2].error, "in.bin: record 9: cut short");
  EXPECT_EQ(statistics.failed[3].error, "record 21: got logits that are not finite, expected finite ones");
  for (const FakeSink::Kept& kept : sink.kept) {
    const bool bad = kept.index == 3 || kept.index == 5 || kept.index == 9 || kept.index == 21;
    EXPECT_EQ(kept.error.empty(), !bad) << kept.index;
    EXPECT_EQ(kept.label_idx, bad ? -1 : 0) << kept.index;
    EXPECT_EQ(std::isnan(kept.logits[1]), bad) << kept.index;
    EXPECT_EQ(kept.router_weights.empty(), bad) << kept.index;
    if (!bad) {
      EXPECT_EQ(kept.logits[0], static_cast<float>(kept.index));
    }
  }
}

TEST(Engine, embeddings_that_are_not_finite_name_channel_and_position) {
  struct EmbeddingClassifier : FakeClassifier {
    void run(const Batch& batch, const Outputs& outputs) override {
      for (int64_t i = 0; i < batch.num_sentences; ++i) {
        const float* x = batch.embeddings + i * 2 * kSequenceLength;
        const bool finite = std::all_of(x, x + 2 * kSequenceLength, [](float v) { return std::isfinite(v); });
        outputs.status[i] = finite ? RecordStatus::ok : RecordStatus::not_finite;
        outputs.logits[2 * i] = outputs.logits[2 * i + 1] = x[0];
      }
    }
  };
  std::vector<std::unique_ptr<Classifier>> classifiers;
  classifiers.push_back(std::make_unique<EmbeddingClassifier>());
  Engine engine(testing::make_model(), std::move(classifiers), {});
  FakeReader reader(3);
  reader.edit = [](int64_t index, size_t i, io::RecordBatch& batch) {
    if (i == 0) {
      batch.embeddings = Buffer<float>(batch.ids.size() * 2);
      std::fill(batch.embeddings.begin(), batch.embeddings.end(), 1.0f);
    }
    if (index == 1) batch.embeddings[i * 2 * kSequenceLength + kSequenceLength + 2] = std::nanf("");
    if (index == 2) batch.ids = {};
  };
  FakeSink sink;
  const RunStatistics statistics = engine.run(reader, sink);
  ASSERT_EQ(statistics.num_failed, 1);
  EXPECT_EQ(statistics.failed[0].error, "record 1, channel 1, position 2: got nan, expected a finite number");
}

TEST(Engine, text_becomes_ids_and_is_counted) {
  Engine engine = make_engine(2, {.batch_size = 2}, {}, testing::make_model(10));
  FakeReader reader(std::vector<std::string>{"w3 w4", "", "w5 what w6 w7 w8 w9", "\xFFw3", "w9"});
  FakeSink sink;
  const RunStatistics statistics = engine.run(reader, sink);
  ASSERT_EQ(sink.kept.size(), 5u);
  EXPECT_EQ(sink.kept[0].logits[0], 3.0f);
  EXPECT_EQ(sink.kept[0].text, "w3 w4");
  EXPECT_EQ(sink.kept[1].logits[0], 1.0f);  // padding
  EXPECT_EQ(sink.kept[2].logits[0], 5.0f);
  EXPECT_EQ(sink.kept[3].label_idx, -1);
  EXPECT_NE(sink.kept[3].error.find("record 3"), std::string::npos) << sink.kept[3].error;
  EXPECT_EQ(sink.kept[4].logits[0], 9.0f);
  EXPECT_EQ(statistics.num_truncated, 1);
  EXPECT_EQ(statistics.num_words, 9);
  EXPECT_EQ(statistics.num_unknown, 1);
  EXPECT_EQ(statistics.num_failed, 1);
}

TEST(Engine, text_without_a_vocabulary_is_an_error) {
  Engine engine = make_engine(1, {});
  FakeReader reader(std::vector<std::string>{"hello"});
  FakeSink sink;
  EXPECT_THROW(engine.run(reader, sink), Error);
}

TEST(Engine, little_memory_halves_the_slice_and_changes_nothing_else) {
  for (const int64_t max_sentences : {1, 3, 16, 40}) {
    Engine engine = make_engine(1, {.batch_size = 64}, [&](FakeClassifier& c) {
      c.preferred = 64;
      c.max_sentences = max_sentences;
    });
    FakeReader reader(200);
    FakeSink sink;
    EXPECT_EQ(engine.run(reader, sink).num_ok, 200);
    expect_all_in_order(sink, 200);
  }
  Engine engine = make_engine(1, {}, [](FakeClassifier& c) { c.max_sentences = 0; });
  FakeReader reader(2);
  FakeSink sink;
  EXPECT_THROW(engine.run(reader, sink), Error);
}

TEST(Engine, what_is_dropped_or_repeated_by_a_reader_is_found) {
  Engine engine = make_engine(2, {.batch_size = 8});
  FakeReader reader(100);
  reader.skip_at = 40;
  FakeSink sink;
  EXPECT_THROW(engine.run(reader, sink), ProgrammerError);
}

TEST(Engine, an_exception_of_the_reader_surfaces_after_what_was_read_is_answered) {
  Engine engine = make_engine(3, {.batch_size = 8});
  FakeReader reader(100);
  reader.throw_at = 40;
  FakeSink sink;
  EXPECT_THROW(engine.run(reader, sink), std::runtime_error);
  expect_all_in_order(sink, 40);
}

TEST(Engine, an_exception_of_a_classifier_surfaces_and_ends_every_thread) {
  for (const int num_workers : {1, 4}) {
    FakeReader reader(1'000'000);
    reader.wait_at = 5000;  // a silent pipe must not hold the exception back
    Engine engine = make_engine(num_workers, {.batch_size = 8, .stop_reader = &reader.stop}, [](FakeClassifier& c) {
      c.max_delay_us = 50;
      c.throw_id = 1000;
    });
    FakeSink sink;
    EXPECT_THROW(engine.run(reader, sink), std::runtime_error);
    EXPECT_LE(sink.kept.size(), 1000u);
    FakeReader again(20);
    FakeSink second;
    EXPECT_EQ(engine.run(again, second).num_ok, 20) << "the engine can be used again";
  }
}

TEST(Engine, an_exception_of_the_sink_surfaces_and_ends_every_thread) {
  FakeReader reader(1'000'000);
  reader.wait_at = 5000;
  Engine engine = make_engine(2, {.batch_size = 8, .stop_reader = &reader.stop});
  FakeSink sink;
  sink.throw_at = 500;
  EXPECT_THROW(engine.run(reader, sink), std::runtime_error);
  expect_all_in_order(sink, 500);
}

TEST(Engine, a_stop_answers_what_was_read_from_a_silent_pipe) {
  FakeReader reader(1000);
  reader.wait_at = 100;
  Engine engine = make_engine(2, {.batch_size = 8, .stop_reader = &reader.stop});
  FakeSink sink;
  std::stop_source source;
  sink.on_write = [&](int64_t index) {
    if (index == 50) source.request_stop();
  };
  const RunStatistics statistics = engine.run(reader, sink, source.get_token());
  EXPECT_TRUE(statistics.interrupted);
  expect_all_in_order(sink, statistics.num_read);
  EXPECT_GE(statistics.num_read, 51);
  EXPECT_LE(statistics.num_read, 100);
}

TEST(Engine, a_stop_with_slow_classifiers_ends_soon_with_a_prefix) {
  FakeReader reader(10'000);
  Engine engine = make_engine(3, {.batch_size = 64, .stop_reader = &reader.stop}, [](FakeClassifier& c) {
    c.preferred = 4;
    c.delay = std::chrono::milliseconds(20);
  });
  FakeSink sink;
  std::stop_source source;
  std::chrono::steady_clock::time_point stopped_at;
  sink.on_write = [&](int64_t index) {
    if (index != 70) return;
    stopped_at = std::chrono::steady_clock::now();
    source.request_stop();
  };
  const RunStatistics statistics = engine.run(reader, sink, source.get_token());
  EXPECT_LT(std::chrono::steady_clock::now() - stopped_at, std::chrono::seconds(2));
  EXPECT_TRUE(statistics.interrupted);
  EXPECT_LT(statistics.num_read, 10'000);
  expect_all_in_order(sink, statistics.num_read);
}

TEST(Engine, a_stop_starts_no_slice_that_would_last_too_long) {
  FakeReader reader(10'000);
  Engine engine = make_engine(1, {.batch_size = 8, .stop_reader = &reader.stop}, [](FakeClassifier& c) {
    c.preferred = 8;
    c.delay =
        std::chrono::milliseconds(1400);  // the one under way at the stop ends within the grace, another would not
  });
  FakeSink sink;
  std::stop_source source;
  std::chrono::steady_clock::time_point stopped_at;
  sink.on_write = [&](int64_t index) {
    if (index != 0) return;
    stopped_at = std::chrono::steady_clock::now();
    source.request_stop();
  };
  const RunStatistics statistics = engine.run(reader, sink, source.get_token());
  EXPECT_LT(std::chrono::steady_clock::now() - stopped_at, std::chrono::milliseconds(2300));  // another slice: 2800
  EXPECT_GE(statistics.num_read, 16);
  expect_all_in_order(sink, statistics.num_read);
}

TEST(Engine, a_stop_before_the_start_reads_nothing) {
  FakeReader reader(100);
  Engine engine = make_engine(1, {.stop_reader = &reader.stop});
  FakeSink sink;
  std::stop_source source;
  source.request_stop();
  const RunStatistics statistics = engine.run(reader, sink, source.get_token());
  EXPECT_TRUE(statistics.interrupted);
  EXPECT_EQ(statistics.num_read, 0);
  EXPECT_TRUE(sink.kept.empty());
}

TEST(Engine, a_stop_after_the_last_record_was_read_is_no_interruption) {
  Engine engine = make_engine(1, {});
  FakeReader reader(10);
  FakeSink sink;
  std::stop_source source;
  sink.on_write = [&](int64_t index) {
    if (index == 9) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the reader meets the end of the input meanwhile
      source.request_stop();
    }
  };
  EXPECT_FALSE(engine.run(reader, sink, source.get_token()).interrupted);
}

}  // namespace
}  // namespace tessera::classifier
