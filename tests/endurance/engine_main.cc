// endurance_engine ROW [ARGUMENT]: the engine with fake devices under load, against the clock and against memory.
// Prints JSON.
//
//   backpressure RECORDS     a producer 100 times as fast as the devices
//   slow_device SECONDS      one of three devices is four times slower
//   failing_devices REPEATS  every call of a device fails in turn: it is lost, out of memory, or wrong
//   lost_device SECONDS      one of three devices fails in the middle
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>

#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "unit/classifier/engine_fakes.h"

namespace tessera::classifier {
namespace {

using Row = nlohmann::ordered_json;
using testing::FakeClassifier;
using testing::kSequenceLength;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

int64_t status_kib(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":")) return std::atoll(line.c_str() + name.size() + 1);
  }
  return -1;
}

/// Counts, and looks at what comes: every record once, in order, with its own values.
struct CheckingSink : ResultSink {
  void write(const RecordResult& result) override {
    wrong += result.index != next || !result.error.empty() ||
             result.logits[0] != static_cast<float>(ids_of_texts ? 2 : next);
    ++next;
    if (on_write) on_write(next);
  }
  int64_t next = 0, wrong = 0;
  bool ids_of_texts = false;
  std::function<void(int64_t)> on_write;
};

/// Texts of half a kibibyte, as fast as memory takes them.
struct TextReader : testing::FakeReader {
  explicit TextReader(int64_t num_records) : FakeReader(0), total(num_records) {}
  bool next(int64_t max_records, io::RecordBatch& batch) override {
    if (given == total) return false;
    const Clock::time_point begin = Clock::now();
    batch.first_index = given;
    batch.num_records = std::min(max_records, total - given);
    batch.errors.assign(static_cast<size_t>(batch.num_records), {});
    batch.texts.clear();
    for (int64_t i = 0; i < batch.num_records; ++i) batch.texts.push_back(text);
    given += batch.num_records;
    busy_seconds += seconds_since(begin);
    return true;
  }
  int64_t total, given = 0;
  double busy_seconds = 0;
  std::string text = "w2 " + std::string(509, ' ');
};

/// What a run costs is the delay, and what the machine adds to it, which is measured.
struct TimedDevice : FakeClassifier {
  explicit TimedDevice(std::chrono::microseconds time_of_a_run) : sleep(time_of_a_run) { preferred = 256; }
  void run(const Batch& batch, const Outputs& outputs) override {
    const Clock::time_point begin = Clock::now();
    std::this_thread::sleep_for(sleep);
    FakeClassifier::run(batch, outputs);
    num_labelled += batch.num_sentences;
    busy_seconds += seconds_since(begin);
  }
  /// Records a second while it is kept busy: what this machine gave in this very run.
  double rate() const { return busy_seconds > 0 ? static_cast<double>(num_labelled) / busy_seconds : 0; }

  std::chrono::microseconds sleep;
  int64_t num_labelled = 0;  // of runs that did not fail, as the time
  double busy_seconds = 0;
};

std::vector<std::unique_ptr<Classifier>> devices(const std::vector<std::chrono::microseconds>& delays) {
  std::vector<std::unique_ptr<Classifier>> made;
  for (const auto delay : delays) made.push_back(std::make_unique<TimedDevice>(delay));
  return made;
}

Row backpressure(int64_t num_records) {
  constexpr int64_t kCapBytes = int64_t{64} << 20;
  constexpr int64_t kBatch = 256;
  const auto model = testing::make_model(10);
  // Twice, the first time short: threads, arenas and the queue's own room are there before what is measured.
  const auto run = [&](int64_t count, TextReader& reader, CheckingSink& sink) {
    // 1 us a record by itself; a hundred times what the producer needs is waited for.
    const double per_batch =
        100.0 * reader.busy_seconds / static_cast<double>(std::max<int64_t>(1, reader.given / kBatch));
    const auto delay = std::chrono::microseconds(static_cast<int64_t>(1e6 * per_batch));
    EngineOptions options{.batch_size = kBatch, .max_queued_records = int64_t{1} << 40, .max_queued_bytes = kCapBytes};
    options.num_encode_threads = 1;
    Engine engine(model, devices({delay}), options);
    TextReader fresh(count);
    const RunStatistics statistics = engine.run(fresh, sink);
    reader.busy_seconds = fresh.busy_seconds;
    reader.given = fresh.given;
    return statistics;
  };
  TextReader timing(0);
  CheckingSink warm;
  warm.ids_of_texts = true;
  run(20'000, timing, warm);
  const int64_t before = status_kib("VmRSS");
  CheckingSink sink;
  sink.ids_of_texts = true;
  const Clock::time_point begin = Clock::now();
  const RunStatistics statistics = run(num_records, timing, sink);
  const double seconds = seconds_since(begin);
  const int64_t grown = (status_kib("VmHWM") - before) * 1024;
  const double ratio = seconds / timing.busy_seconds;
  const bool ok = statistics.num_ok == num_records && sink.wrong == 0 && grown <= kCapBytes + kCapBytes / 10;
  return {{"ok", ok},
          {"records", statistics.num_read},
          {"cap_bytes", kCapBytes},
          {"grown_bytes", grown},
          {"grown_over_cap", static_cast<double>(grown) / static_cast<double>(kCapBytes)},
          {"producer_times_faster", ratio},
          {"seconds", seconds}};
}

/// Records a second of devices that take `delays` for each batch of 256, on a machine that does nothing else.
double planned_rate(const std::vector<std::chrono::microseconds>& delays) {
  double rate = 0;
  for (const auto delay : delays) rate += 256.0 * 1e6 / static_cast<double>(delay.count());
  return rate;
}

/// What the devices gave in the run that has ended, all of them busy all the time.
double ideal_rate(const std::vector<const TimedDevice*>& devices) {
  double rate = 0;
  for (const TimedDevice* device : devices) rate += device->rate();
  return rate;
}

Row slow_device(double seconds) {
  using std::chrono::microseconds;
  const std::vector<microseconds> delays = {microseconds(20000), microseconds(20000), microseconds(80000)};
  const auto num_records = static_cast<int64_t>(planned_rate(delays) * seconds);
  EngineOptions options{.batch_size = 256};
  options.num_encode_threads = 1;
  std::vector<std::unique_ptr<Classifier>> made = devices(delays);
  std::vector<const TimedDevice*> timed;
  for (const auto& device : made) timed.push_back(dynamic_cast<const TimedDevice*>(device.get()));
  Engine engine(testing::make_model(), std::move(made), options);
  testing::FakeReader reader(num_records);
  CheckingSink sink;
  const RunStatistics statistics = engine.run(reader, sink);
  const double ideal = ideal_rate(timed), share = statistics.rate() / ideal;
  return {{"ok", share >= 0.9 && sink.wrong == 0 && statistics.num_ok == num_records},
          {"records", statistics.num_read},
          {"share_of_ideal", share},
          {"ideal_records_per_second", ideal},
          {"ideal_share_of_a_quiet_machine", ideal / planned_rate(delays)},
          {"seconds", statistics.seconds}};
}

Row lost_device(double seconds) {
  using std::chrono::microseconds;
  const std::vector<microseconds> delays(3, microseconds(20000));
  const double whole = planned_rate(delays), planned_rest = whole * 2 / 3;
  const auto num_records = static_cast<int64_t>(whole * seconds / 3 + planned_rest * seconds * 2 / 3);
  std::vector<std::unique_ptr<Classifier>> made = devices(delays);
  auto& lost = dynamic_cast<FakeClassifier&>(*made[1]);
  lost.device_fails_at = static_cast<int64_t>(seconds / 3 * 1e6 / 20000);
  std::atomic<int64_t> num_lost{0};
  lost.num_entered = &num_lost;
  EngineOptions options{.batch_size = 256};
  options.num_encode_threads = 1;
  const std::vector<const TimedDevice*> left = {dynamic_cast<const TimedDevice*>(made[0].get()),
                                                dynamic_cast<const TimedDevice*>(made[2].get())};
  Engine engine(testing::make_model(), std::move(made), options);
  testing::FakeReader reader(num_records);
  CheckingSink sink;
  // Results in windows of 100 ms, from the loss on.
  Clock::time_point lost_at;
  std::vector<int64_t> windows;
  sink.on_write = [&](int64_t) {
    if (num_lost == 0) return;
    if (lost_at == Clock::time_point()) lost_at = Clock::now();
    const auto window = static_cast<size_t>(seconds_since(lost_at) / 0.1);
    if (windows.size() <= window) windows.resize(window + 1);
    ++windows[window];
  };
  const RunStatistics statistics = engine.run(reader, sink);
  windows.resize(windows.empty() ? 0 : windows.size() - 1);  // the last is cut off
  const double rest = ideal_rate(left);
  const auto rate_in = [&](size_t begin, size_t end) {
    int64_t count = 0;
    for (size_t i = begin; i < end; ++i) count += windows[i];
    return end > begin ? static_cast<double>(count) / (0.1 * static_cast<double>(end - begin)) : 0.0;
  };
  const size_t one_second = std::min<size_t>(10, windows.size());
  const double share = rate_in(one_second, windows.size()) / rest;
  return {{"ok", share >= 0.9 && sink.wrong == 0 && statistics.num_ok == num_records &&
                     statistics.failed_devices.size() == 1},
          {"records", statistics.num_read},
          {"share_of_what_is_left_after_1_s", share},
          {"share_in_the_first_second", rate_in(0, one_second) / rest},
          {"ideal_records_per_second", rest},
          {"ideal_share_of_a_quiet_machine", rest / planned_rest},
          {"seconds", statistics.seconds}};
}

/// One call of one device goes wrong.
enum class Fault { lost, out_of_memory, wrong };

struct FailingDevice : FakeClassifier {
  void run(const Batch& batch, const Outputs& outputs) override {
    const int64_t call = num_calls++;
    if (call == fails_at && fault == Fault::lost) is_lost = true;
    if (is_lost) throw DeviceError("planted: the device is lost");
    if (call == fails_at && fault == Fault::out_of_memory) throw std::bad_alloc();
    FakeClassifier::run(batch, outputs);
    if (call != fails_at || fault != Fault::wrong) return;
    for (int64_t i = 0; i < batch.num_sentences; ++i) outputs.logits[2 * i] += 1;
  }
  std::string description() const override { return "a failing fake"; }
  Fault fault = Fault::lost;
  int64_t fails_at = -1, num_calls = 0;
  bool is_lost = false;
};

struct DeviceRun {
  int64_t num_calls = 0;  // of the device that fails
  bool is_complete = true, is_right = true;
};

DeviceRun run_failing(size_t num_devices, Fault fault, int64_t fails_at) {
  constexpr int64_t kRecords = 200;
  std::vector<std::unique_ptr<Classifier>> made;
  for (size_t i = 0; i < num_devices; ++i) {
    auto device = std::make_unique<FailingDevice>();
    device->fault = fault;
    device->fails_at = i == 0 ? fails_at : -1;
    made.push_back(std::move(device));
  }
  const auto& first = dynamic_cast<const FailingDevice&>(*made[0]);
  EngineOptions options{.batch_size = 8, .verify_rate = fault == Fault::wrong ? 1 : 0};
  options.num_encode_threads = 1;
  Engine engine(testing::make_model(), std::move(made), options);
  testing::FakeReader reader(kRecords);
  CheckingSink sink;
  DeviceRun result;
  try {
    const RunStatistics statistics = engine.run(reader, sink);
    result.is_right = statistics.num_read == kRecords && statistics.num_ok == kRecords && statistics.num_failed == 0;
  } catch (const NoDeviceLeft& error) {
    result.is_complete = false;
    result.is_right = error.first_lost() == sink.next;
  }
  result.is_right = result.is_right && sink.wrong == 0 && (sink.next == kRecords || !result.is_complete);
  result.num_calls = first.num_calls;
  return result;
}

Row failing_devices(int64_t repeats) {
  int64_t num_runs = 0, num_complete = 0, num_wrong = 0, num_calls = 0;
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    for (const size_t num_devices : {1u, 2u, 3u}) {
      for (const Fault fault : {Fault::lost, Fault::out_of_memory, Fault::wrong}) {
        // Every call that the device gets, until there is no such call any more.
        for (int64_t call = 0;; ++call) {
          const DeviceRun run = run_failing(num_devices, fault, call);
          ++num_runs;
          num_complete += run.is_complete;
          num_wrong += !run.is_right || (num_devices > 1 && !run.is_complete && fault != Fault::wrong);
          num_calls += call < run.num_calls;
          if (call >= run.num_calls) break;
        }
      }
    }
  }
  return {{"ok", num_wrong == 0},
          {"runs", num_runs},
          {"calls_failed", num_calls},
          {"runs_complete", num_complete},
          {"runs_wrong", num_wrong}};
}

int run(std::string_view row, const char* argument) {
  Row result;
  if (row == "backpressure") result = backpressure(std::atoll(argument));
  if (row == "slow_device") result = slow_device(std::atof(argument));
  if (row == "lost_device") result = lost_device(std::atof(argument));
  if (row == "failing_devices") result = failing_devices(std::atoll(argument));
  if (result.is_null()) return 2;
  std::printf("%s\n", result.dump().c_str());
  return result["ok"].get<bool>() ? 0 : 1;
}

}  // namespace
}  // namespace tessera::classifier

int main(int argc, char** argv) { return argc < 3 ? 2 : tessera::classifier::run(argv[1], argv[2]); }
