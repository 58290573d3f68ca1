// Devices that fail in the middle of a run: the others finish, or what is lost is told.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "io/shard.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "unit/classifier/engine_fakes.h"

namespace tessera::classifier {
namespace {

using testing::FakeClassifier;
using testing::FakeReader;
using testing::FakeSink;
using testing::FlawedReader;

/// One fake a number: it fails at this run, -1 = never.
Engine make_engine(const std::vector<int64_t>& fails_at, EngineOptions options,
                   const std::function<void(FakeClassifier&)>& setup = {},
                   const std::shared_ptr<const Model>& model = testing::make_model()) {
  std::vector<std::unique_ptr<Classifier>> classifiers;
  for (size_t i = 0; i < fails_at.size(); ++i) {
    auto classifier = std::make_unique<FakeClassifier>();
    classifier->name = str_cat("fake ", i);
    classifier->device_fails_at = fails_at[i];
    classifier->random.seed(i);
    if (setup) setup(*classifier);
    classifiers.push_back(std::move(classifier));
  }
  options.num_encode_threads = 1;
  return Engine(model, std::move(classifiers), options);
}

/// Lets the healthy devices wait at their run number `run` until `num_failing` others are about to fail: else it would
/// be up to chance whether those are given enough batches for it.
class WaitForFailures {
 public:
  WaitForFailures(int64_t run, int64_t num_failing) : run_(run), num_failing_(num_failing) {}

  void operator()(FakeClassifier& classifier) {
    classifier.num_entered = &num_entered_;
    if (classifier.device_fails_at >= 0) return;
    classifier.before_run = [this](int64_t run) {
      while (run >= run_ && num_entered_ < num_failing_) std::this_thread::sleep_for(std::chrono::microseconds(50));
    };
  }

 private:
  int64_t run_;
  int64_t num_failing_;
  std::atomic<int64_t> num_entered_{0};
};

/// Everything a sink was given, as one text.
std::string content(const FakeSink& sink) {
  std::string text;
  for (const FakeSink::Kept& kept : sink.kept) {
    text += str_cat(kept.index, " ", kept.error, " ", kept.text, " ", kept.label_idx, " ", kept.probability, " ",
                    kept.logits[0], " ", kept.logits[1], "\n");
  }
  return text;
}

std::string undisturbed(int64_t num_records) {
  Engine engine = make_engine({-1}, {.batch_size = 8});
  FlawedReader reader(num_records);
  FakeSink sink;
  engine.run(reader, sink);
  return content(sink);
}

TEST(EngineDevices, the_others_finish_the_work_of_one_that_fails) {
  const std::string expected = undisturbed(600);
  for (const int64_t fails_at : {0, 1, 2, 5}) {
    WaitForFailures wait(2, 1);
    Engine engine = make_engine({-1, fails_at, -1}, {.batch_size = 8}, [&](FakeClassifier& c) {
      c.max_delay_us = 100;
      wait(c);
    });
    FlawedReader reader(600);
    FakeSink sink;
    const RunStatistics statistics = engine.run(reader, sink);
    EXPECT_EQ(content(sink), expected) << fails_at;
    EXPECT_EQ(statistics.num_read, 600);
    EXPECT_FALSE(statistics.interrupted);
    ASSERT_EQ(statistics.failed_devices.size(), 1u) << fails_at;
    EXPECT_EQ(statistics.failed_devices[0], "fake 1: planted device error");
  }
}

TEST(EngineDevices, two_of_three_may_fail) {
  const std::string expected = undisturbed(600);
  WaitForFailures wait(2, 2);
  Engine engine = make_engine({3, -1, 0}, {.batch_size = 8}, [&](FakeClassifier& c) {
    c.max_delay_us = 100;
    wait(c);
  });
  FlawedReader reader(600);
  FakeSink sink;
  EXPECT_EQ(engine.run(reader, sink).failed_devices.size(), 2u);
  EXPECT_EQ(content(sink), expected);
}

TEST(EngineDevices, a_batch_cut_in_slices_is_done_again_as_a_whole) {
  WaitForFailures wait(3, 1);
  Engine engine = make_engine({-1, 2}, {.batch_size = 64}, [&](FakeClassifier& c) {
    wait(c);
    c.preferred = 16;  // fails in the third of four slices
    c.max_delay_us = 300;
  });
  FlawedReader reader(640);
  FakeSink sink;
  engine.run(reader, sink);
  EXPECT_EQ(content(sink), undisturbed(640));
}

TEST(EngineDevices, texts_are_encoded_again) {
  const auto run = [](const std::vector<int64_t>& fails_at) {
    WaitForFailures wait(0, std::count(fails_at.begin(), fails_at.end(), 0));
    Engine engine = make_engine(fails_at, {.batch_size = 1}, std::ref(wait), testing::make_model(10));
    FakeReader reader(std::vector<std::string>{"w3 w4", "\xFFw3", "w5", "", "w9 w2"});
    FakeSink sink;
    const RunStatistics statistics = engine.run(reader, sink);
    EXPECT_EQ(statistics.num_failed, 1);
    EXPECT_EQ(statistics.num_words, 5);
    return content(sink);
  };
  EXPECT_EQ(run({0, -1}), run({-1, -1}));
}

TEST(EngineDevices, a_device_that_fails_late_holds_nobody_up) {
  // The others run far ahead of its batch, until no further one may wait for its turn to be written.
  WaitForFailures wait(0, 1);
  Engine engine = make_engine({0, -1, -1}, {.batch_size = 1}, [&](FakeClassifier& c) {
    c.delay_of_failure = std::chrono::milliseconds(150);
    wait(c);
  });
  FlawedReader reader(300);
  FakeSink sink;
  EXPECT_EQ(engine.run(reader, sink).failed_devices.size(), 1u);
  EXPECT_EQ(content(sink), undisturbed(300));
}

TEST(EngineDevices, a_device_that_fails_at_the_end_of_the_input_has_its_batch_done) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    // Two batches: the other worker has nothing to do any more when the failure comes.
    WaitForFailures wait(0, 1);
    Engine engine = make_engine({0, -1}, {.batch_size = 8}, [&](FakeClassifier& c) {
      c.delay_of_failure = std::chrono::milliseconds(5);
      wait(c);
    });
    FlawedReader reader(16);
    FakeSink sink;
    engine.run(reader, sink);
    EXPECT_EQ(content(sink), undisturbed(16));
  }
}

TEST(EngineDevices, with_none_left_what_was_finished_is_written_and_what_was_lost_is_told) {
  FlawedReader reader(1000);
  FakeSink sink;
  Engine engine = make_engine({4}, {.batch_size = 8});
  try {
    engine.run(reader, sink);
    FAIL() << "no error";
  } catch (const NoDeviceLeft& error) {
    EXPECT_EQ(error.first_lost(), 32);
    EXPECT_EQ(error.num_lost(), reader.num_taken - 32);
    EXPECT_EQ(content(sink), undisturbed(32));
    EXPECT_EQ(std::string(error.what()),
              str_cat("devices: none is left, 1 failed (fake 0: planted device error); ", error.num_lost(),
                      " records were read and not labelled, the first of them is record 32"));
  }
}

TEST(EngineDevices, all_of_three_fail) {
  const std::string expected = undisturbed(2000);
  for (const std::vector<int64_t>& fails_at : {std::vector<int64_t>{0, 0, 0}, {5, 9, 20}, {0, 30, 3}}) {
    FlawedReader reader(2000);
    FakeSink sink;
    Engine engine = make_engine(fails_at, {.batch_size = 8}, [](FakeClassifier& c) { c.max_delay_us = 200; });
    try {
      engine.run(reader, sink);
      FAIL() << "no error";
    } catch (const NoDeviceLeft& error) {
      const std::string written = content(sink);
      EXPECT_EQ(static_cast<int64_t>(sink.kept.size()), error.first_lost()) << "a prefix, up to the first one missing";
      EXPECT_EQ(error.num_lost(), reader.num_taken - error.first_lost());
      EXPECT_EQ(written, expected.substr(0, written.size()));
      for (const char* name : {"fake 0", "fake 1", "fake 2"}) {
        EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      }
    }
  }
}

TEST(EngineDevices, the_first_record_lost_may_be_of_a_device_that_failed_earlier) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    // Slow enough that each has one of the first two batches, in either order, before one of them fails.
    int64_t delay = 0;
    Engine engine = make_engine({0, 0}, {.batch_size = 8},
                                [&](FakeClassifier& c) { c.delay_of_failure = std::chrono::milliseconds(delay += 5); });
    FlawedReader reader(1000);
    FakeSink sink;
    try {
      engine.run(reader, sink);
      FAIL() << "no error";
    } catch (const NoDeviceLeft& error) {
      EXPECT_EQ(error.first_lost(), 0);
      EXPECT_EQ(error.num_lost(), reader.num_taken);
    }
  }
}

TEST(EngineDevices, a_second_run_from_the_first_record_lost_completes_the_output) {
  FakeSink sink;
  int64_t first_lost = 0;
  try {
    FlawedReader reader(500);
    make_engine({3, 9}, {.batch_size = 8}).run(reader, sink);
    FAIL() << "no error";
  } catch (const NoDeviceLeft& error) {
    first_lost = error.first_lost();
  }
  io::SelectedReader rest(std::make_unique<FlawedReader>(500), {}, first_lost, nullptr);
  FakeSink second;
  const RunStatistics statistics = make_engine({-1}, {.batch_size = 32}).run(rest, second);
  EXPECT_EQ(statistics.num_read, 500 - first_lost);
  EXPECT_EQ(content(sink) + content(second), undisturbed(500));
}

TEST(EngineDevices, with_none_left_a_silent_pipe_holds_nothing_up) {
  FlawedReader reader(1000);
  reader.wait_at = 40;
  FakeSink sink;
  Engine engine = make_engine({1, 2}, {.batch_size = 8, .stop_reader = &reader.stop});
  EXPECT_THROW(engine.run(reader, sink), NoDeviceLeft);
}

TEST(EngineDevices, indices_left_out_by_a_selection_are_no_gap) {
  Engine engine = make_engine({-1, 1}, {.batch_size = 10});
  FakeReader reader(95);
  reader.batch_of_selection = true;
  FakeSink sink;
  const RunStatistics statistics = engine.run(reader, sink);
  EXPECT_EQ(statistics.num_read, 95);
  ASSERT_EQ(sink.kept.size(), 95u);
  for (int64_t i = 0; i < 95; ++i) EXPECT_EQ(sink.kept[static_cast<size_t>(i)].index, i + 1000 * (i / 10));
}

}  // namespace
}  // namespace tessera::classifier
