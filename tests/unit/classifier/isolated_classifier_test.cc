// Classifiers in processes of their own: what dies is started again, what kills is found, nothing is lost or left.
#include "classifier/isolated_classifier.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "endurance/poison.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "unit/classifier/engine_fakes.h"
#include "unit/error_message.h"

namespace tessera::classifier {
namespace {

using testing::FakeReader;
using testing::FakeSink;
using testing::kSequenceLength;
using testing::make_model;
using testing::Poison;

IsolationOptions options_of(const std::vector<std::string>& settings, int num_lanes = 1) {
  IsolationOptions options;
  options.command = {TESSERA_FAKE_WORKER, std::to_string(num_lanes)};
  options.command.insert(options.command.end(), settings.begin(), settings.end());
  options.name = "fake";
  options.shape = channel_shape(make_model()->config, InputKind::ids);
  options.num_lanes = num_lanes;
  options.lease_timeout = std::chrono::seconds(20);
  return options;
}

/// One process each, and an engine over all their lanes.
Engine make_engine(const std::vector<IsolationOptions>& processes, EngineOptions options) {
  std::vector<std::unique_ptr<Classifier>> classifiers;
  for (size_t i = 0; i < processes.size(); ++i) {
    for (auto& lane : make_isolated_classifiers(processes[i])) {
      classifiers.push_back(std::move(lane));
      options.device_of.push_back(static_cast<int>(i));
    }
  }
  options.num_encode_threads = 1;
  return Engine(make_model(), std::move(classifiers), options);
}

std::string content(const FakeSink& sink) {
  std::string text;
  for (const FakeSink::Kept& kept : sink.kept) {
    text += str_cat(kept.index, " ", kept.error, " ", kept.label_idx, " ", kept.logits[0], " ", kept.logits[1], " ",
                    kept.router_weights.empty() ? 0.0f : kept.router_weights[0], "\n");
  }
  return text;
}

/// Poisons of records, by index; -1 as second id fails by itself.
using Flaws = std::vector<std::pair<int64_t, int32_t>>;

struct Result {
  std::string content;
  RunStatistics statistics;
};

Result run(Engine& engine, int64_t num_records, const Flaws& flaws) {
  FakeReader reader(num_records);
  reader.edit = [&](int64_t index, size_t i, io::RecordBatch& batch) {
    if (index % 17 == 3) batch.ids[i * kSequenceLength + 1] = -1;
    for (const auto& [where, id] : flaws) {
      if (where == index) batch.ids[i * kSequenceLength + 1] = id;
    }
  };
  FakeSink sink;
  Result result;
  result.statistics = engine.run(reader, sink);
  result.content = content(sink);
  return result;
}

/// Of a fake in this process; the poisoned records as a supervisor must fail them.
std::string expected(int64_t num_records, const Flaws& flaws) {
  std::vector<std::unique_ptr<Classifier>> classifiers;
  classifiers.push_back(std::make_unique<testing::FakeClassifier>());
  Engine engine(make_model(), std::move(classifiers), {.batch_size = 16, .router_weights = true});
  FakeReader reader(num_records);
  reader.edit = [&](int64_t index, size_t i, io::RecordBatch& batch) {
    if (index % 17 == 3) batch.ids[i * kSequenceLength + 1] = -1;
    for (const auto& flaw : flaws) {
      if (flaw.first == index) batch.errors[i] = str_cat("record ", index, ": ends the worker process that labels it");
    }
  };
  FakeSink sink;
  engine.run(reader, sink);
  return content(sink);
}

TEST(Isolated, gives_what_a_classifier_in_this_process_gives) {
  for (const int num_lanes : {1, 2, 3}) {
    Engine engine =
        make_engine({options_of({}, num_lanes), options_of({}, num_lanes)}, {.batch_size = 16, .router_weights = true});
    const Result result = run(engine, 600, {});
    EXPECT_EQ(result.content, expected(600, {}));
    EXPECT_EQ(result.statistics.num_worker_deaths, 0);
    EXPECT_NE(engine.description().find("a fake; in a process of its own"), std::string::npos);
  }
}

TEST(Isolated, a_record_that_ends_the_process_fails_alone) {
  for (const Poison poison : {Poison::segmentation, Poison::kill, Poison::exit, Poison::device}) {
    for (const int num_lanes : {1, 2}) {
      const Flaws flaws = {{137, static_cast<int32_t>(poison)}};
      Engine engine = make_engine({options_of({}, num_lanes), options_of({}, num_lanes)},
                                  {.batch_size = 16, .router_weights = true});
      const Result result = run(engine, 300, flaws);
      EXPECT_EQ(result.content, expected(300, flaws));
      EXPECT_EQ(result.statistics.num_read, 300);
      EXPECT_GE(result.statistics.num_worker_deaths, 2);
      EXPECT_TRUE(result.statistics.failed_devices.empty());
    }
  }
}

TEST(Isolated, several_records_that_end_processes_are_each_found) {
  Flaws flaws;
  for (const int64_t index : {0, 15, 16, 17, 95, 199}) {
    flaws.emplace_back(index, static_cast<int32_t>(index % 2 == 0 ? Poison::kill : Poison::exit));
  }
  Engine engine = make_engine({options_of({}, 2)}, {.batch_size = 32, .router_weights = true});
  EXPECT_EQ(run(engine, 200, flaws).content, expected(200, flaws));
}

TEST(Isolated, a_process_that_does_not_answer_is_ended) {
  const Flaws flaws = {{5, static_cast<int32_t>(Poison::hang)}};
  IsolationOptions options = options_of({});
  options.lease_timeout = std::chrono::milliseconds(60);
  Engine engine = make_engine({options}, {.batch_size = 8, .router_weights = true});
  const Result result = run(engine, 40, flaws);
  EXPECT_EQ(result.content, expected(40, flaws));
  EXPECT_NE(result.statistics.worker_deaths.at(0).find("no answer within 60 ms"), std::string::npos);
}

TEST(Isolated, a_process_without_threads_for_its_lanes_says_so_at_once) {
  for (const std::string threads : {"1", "2"}) {  // with two the second lane already waits for leases
    const auto begin = std::chrono::steady_clock::now();
    const std::string message =
        tessera::testing::error_of([&] { make_isolated_classifiers(options_of({"threads=" + threads}, 3)); });
    EXPECT_NE(message.find("cannot start a thread for each of 3 lanes"), std::string::npos) << message;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, IsolationOptions().start_timeout / 2);
  }
}

TEST(Isolated, processes_that_die_now_and_then_lose_nothing) {
  // As often as not in the middle of two runs on two lanes; the answer given before the death counts or is given anew.
  Engine engine = make_engine({options_of({"die_every=6"}, 2), options_of({"die_every=9"}, 2)},
                              {.batch_size = 8, .router_weights = true});
  const Result result = run(engine, 1500, {});
  EXPECT_EQ(result.content, expected(1500, {}));
  EXPECT_GE(result.statistics.num_worker_deaths, 3);
}

TEST(Isolated, a_device_that_does_not_come_back_is_given_up_and_the_others_finish) {
  const std::string flag = ::testing::TempDir() + str_cat("refuse_", getpid());
  const auto lose_one = [&](const char* setting, const char* said) {
    std::filesystem::remove(flag);
    Engine engine = make_engine({options_of({setting + ("=" + flag), "die_every=4"}), options_of({"delay_us=2000"})},
                                {.batch_size = 8, .router_weights = true});
    std::ofstream(flag) << "x";
    const Result result = run(engine, 600, {});
    EXPECT_EQ(result.content, expected(600, {}));
    ASSERT_EQ(result.statistics.failed_devices.size(), 1u);
    EXPECT_NE(result.statistics.failed_devices[0].find(said), std::string::npos) << result.statistics.failed_devices[0];
  };
  lose_one("refuse_if", "it cannot be started again: worker process of fake: planted: the device does not come back");
  lose_one("other_bits_if", "got other logits of a sentence of padding, expected those of the first process");
  std::filesystem::remove(flag);
}

TEST(Isolated, a_process_that_dies_while_it_is_made_is_made_again) {
  const std::string file = ::testing::TempDir() + str_cat("die_", getpid());
  const auto lost_after = [&](size_t num_deaths) {
    std::ofstream(file).close();
    Engine engine = make_engine({options_of({"die_at_start=" + file, "die_every=4"}), options_of({"delay_us=2000"})},
                                {.batch_size = 8, .router_weights = true});
    std::ofstream(file) << std::string(num_deaths, 'x');
    const Result result = run(engine, 600, {});
    EXPECT_EQ(result.content, expected(600, {}));
    return result.statistics.failed_devices;
  };
  EXPECT_TRUE(lost_after(2).empty());
  const std::vector<std::string> lost = lost_after(3);
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_NE(lost[0].find("was ended by signal 9 before it was ready"), std::string::npos) << lost[0];
  std::filesystem::remove(file);
}

TEST(Isolated, with_no_device_left_the_run_says_what_is_lost) {
  const std::string flag = ::testing::TempDir() + str_cat("gone_", getpid());
  std::filesystem::remove(flag);
  Engine engine = make_engine({options_of({"refuse_if=" + flag, "die_every=5"}, 2)}, {.batch_size = 8});
  std::ofstream(flag) << "x";
  FakeReader reader(4000);
  FakeSink sink;
  EXPECT_THROW(engine.run(reader, sink), NoDeviceLeft);
  std::filesystem::remove(flag);
}

std::string refusal(const IsolationOptions& options) {
  return tessera::testing::error_of([&] { make_isolated_classifiers(options); });
}

TEST(Isolated, what_cannot_be_started_says_why) {
  IsolationOptions options = options_of({});
  options.command = {"/nonexistent/program"};
  EXPECT_NE(refusal(options).find("worker process of fake: cannot start: No such file"), std::string::npos)
      << refusal(options);
  options.command = {"/bin/false"};
  EXPECT_NE(refusal(options).find("ended with exit code 1 before it was ready"), std::string::npos) << refusal(options);
  options = options_of({"refuse_if=/"});
  EXPECT_NE(refusal(options).find("planted: the device does not come back"), std::string::npos) << refusal(options);
}

/// Worker processes that were given this argument.
int count_marked(const std::string& mark) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "cmdline", std::ios::binary);
    const std::string arguments((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    count += arguments.find(mark) != std::string::npos && arguments.starts_with(TESSERA_FAKE_WORKER);
  }
  return count;
}

TEST(Isolated, the_death_of_the_supervisor_leaves_no_process) {
  const std::string mark = str_cat("mark=", getpid());
  const pid_t supervisor = fork();
  if (supervisor == 0) {
    const auto lanes = make_isolated_classifiers(options_of({mark}, 2));
    pause();
    _exit(0);
  }
  for (int i = 0; i < 2000 && count_marked(mark) == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(count_marked(mark), 1);
  kill(supervisor, SIGKILL);
  waitpid(supervisor, nullptr, 0);
  for (int i = 0; i < 400 && count_marked(mark) > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(count_marked(mark), 0);
}

TEST(Isolated, nothing_is_left_when_the_classifiers_are_gone) {
  const std::string mark = str_cat("here=", getpid());
  const auto count_descriptors = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
  };
  const auto before = count_descriptors();
  {
    const auto lanes = make_isolated_classifiers(options_of({mark}, 2));
    EXPECT_EQ(count_marked(mark), 1);
    EXPECT_GT(count_descriptors(), before);
  }
  EXPECT_EQ(count_marked(mark), 0);
  EXPECT_EQ(count_descriptors(), before);
}

}  // namespace
}  // namespace tessera::classifier
