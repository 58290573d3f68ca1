// One of several GPUs' worker processes breaks, again and again, while a run goes on: nothing is lost or comes twice,
// the bits are those of one GPU, and the rate comes back at once to what the others give.
#include <cuda_runtime_api.h>
#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>
#include <stop_token>
#include <thread>

#include "classifier/isolated_classifier.h"
#include "classifier/lease_worker.h"
#include "cuda/core/cuda_check.h"
#include "cuda/core/lost_device.h"
#include "cuda/core/memory.h"
#include "endurance/gpu/device_work.h"
#include "endurance/gpu/rows.h"
#include "endurance/gpu/small_classifier.h"
#include "io/records.h"
#include "tessera/core/check.h"

namespace tessera::testing {

namespace {

using classifier::Batch;
using classifier::Outputs;
using Clock = std::chrono::steady_clock;

constexpr int kNumLanes = 2;
constexpr int64_t kBatch = 64, kNumDistinct = 16'384;
// What a sentence costs a lane at least, so that the devices and not this process set the rate.
constexpr int64_t kNanosecondsASentence = 60'000;
constexpr auto kBucket = std::chrono::milliseconds(100);
constexpr size_t kBucketsAWindow = 5;
constexpr double kShare = 0.9;  // of what the other devices give, within kLimitSeconds
constexpr double kLimitSeconds = 10;

enum class Fault : int { none, illegal_address, endless_kernel, out_of_memory };
// Of the worker process: set by a signal, taken by the lane that runs next.
std::atomic<int> fault_due{0};
static_assert(std::atomic<int>::is_always_lock_free);

constexpr std::pair<const char*, int> kSignals[] = {{"kill -9", SIGKILL},
                                                    {"illegal address", SIGUSR1},
                                                    {"kernel that does not end", SIGUSR2},
                                                    {"out of memory", SIGURG}};

void on_signal(int number) {
  fault_due = static_cast<int>(number == SIGUSR1   ? Fault::illegal_address
                               : number == SIGUSR2 ? Fault::endless_kernel
                                                   : Fault::out_of_memory);
}

class BreakableLane : public classifier::Classifier {
 public:
  BreakableLane(std::unique_ptr<classifier::CudaClassifier> lane, int device, int kernel_seconds)
      : lane_(std::move(lane)), device_(device), kernel_seconds_(kernel_seconds) {}

  void run(const Batch& batch, const Outputs& outputs) override {
    try {
      break_and_hold(batch.num_sentences);
    } catch (const cuda::CudaError& error) {
      throw classifier::DeviceError(cuda::describe_failure(device_, error));
    }
    lane_->run(batch, outputs);
  }
  std::string description() const override { return lane_->description(); }
  int64_t preferred_batch() const override { return lane_->preferred_batch(); }

 private:
  void break_and_hold(int64_t num_sentences) const {
    TESSERA_CUDA_CHECK(cudaSetDevice(device_));
    switch (static_cast<Fault>(fault_due.exchange(0))) {
      case Fault::none: break;
      case Fault::illegal_address: write_to_nowhere(nullptr); break;
      case Fault::endless_kernel:
        spin(1, int64_t{1'000'000'000} * kernel_seconds_, nullptr);
        TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
        break;
      case Fault::out_of_memory: cuda::DeviceBytes(size_t{1} << 46); break;  // throws
    }
    // On a stream of its own: the lanes of a device do not wait for each other.
    spin(1, kNanosecondsASentence * num_sentences, cudaStreamPerThread);
    TESSERA_CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));
  }

  std::unique_ptr<classifier::CudaClassifier> lane_;
  int device_;
  int kernel_seconds_;
};

/// The same sentences again and again until it is told that they are enough.
class EndlessReader : public io::RecordReader {
 public:
  explicit EndlessReader(const std::vector<int32_t>& ids) : ids_(ids) {}
  bool next(int64_t max_records, io::RecordBatch& batch) override {
    if (is_enough) return false;
    const int64_t length = small_config().sequence_length;
    const int64_t begin = next_ % kNumDistinct;
    batch = {};
    batch.first_index = next_;
    batch.num_records = std::min(max_records, kNumDistinct - begin);
    batch.errors.resize(static_cast<size_t>(batch.num_records));
    batch.ids = Buffer<int32_t>(static_cast<size_t>(batch.num_records * length));
    std::copy_n(ids_.begin() + begin * length, batch.num_records * length, batch.ids.begin());
    next_ += batch.num_records;
    return true;
  }
  int64_t num_records_hint() const override { return -1; }
  int64_t bytes_read() const override { return 0; }
  int64_t num_bytes_hint() const override { return -1; }

  std::atomic<bool> is_enough{false};

 private:
  const std::vector<int32_t>& ids_;
  int64_t next_ = 0;
};

/// Compares each result with what one GPU gave for its sentence, and counts those of each tenth of a second.
class ComparingSink : public classifier::ResultSink {
 public:
  explicit ComparingSink(const std::vector<float>& golden) : golden_(golden) {}
  void write(const classifier::RecordResult& result) override {
    num_out_of_turn += result.index != num_written_;
    const size_t at = static_cast<size_t>(num_written_ % kNumDistinct) * result.logits.size();
    num_failed += !result.error.empty();
    num_other_bits += std::memcmp(result.logits.data(), &golden_[at], result.logits.size_bytes()) != 0;
    ++num_written_;
  }
  void end_batch(int64_t num_written) override {
    const std::lock_guard lock(mutex_);
    const auto bucket = static_cast<size_t>((Clock::now() - begin) / kBucket);
    if (counts_.size() <= bucket) counts_.resize(bucket + 1);
    counts_[bucket] += num_written - counted_;
    counted_ = num_written;
  }
  /// Records a second of the window that ends with the bucket before this one.
  double rate_before(size_t bucket) const {
    const std::lock_guard lock(mutex_);
    int64_t count = 0;
    for (size_t i = bucket - kBucketsAWindow; i < std::min(bucket, counts_.size()); ++i) count += counts_[i];
    return static_cast<double>(count) / (std::chrono::duration<double>(kBucket).count() * kBucketsAWindow);
  }
  static size_t bucket_of(Clock::time_point begin, Clock::time_point now) {
    return static_cast<size_t>((now - begin) / kBucket);
  }

  Clock::time_point begin = Clock::now();
  int64_t num_out_of_turn = 0, num_failed = 0, num_other_bits = 0;

 private:
  const std::vector<float>& golden_;
  int64_t num_written_ = 0;
  mutable std::mutex mutex_;
  std::vector<int64_t> counts_;  // guarded by mutex_
  int64_t counted_ = 0;          // guarded by mutex_
};

/// The process that works for this device, or 0.
pid_t worker_of(int device) {
  const std::string mark = str_cat("device=", device);
  DIR* const all = opendir("/proc");
  pid_t found = 0;
  while (const dirent* entry = readdir(all)) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0) continue;
    std::ifstream status(str_cat("/proc/", pid, "/stat")), file(str_cat("/proc/", pid, "/cmdline"));
    std::string ignored, state;
    pid_t parent = 0;
    status >> ignored >> ignored >> state >> parent;
    std::stringstream arguments;
    arguments << file.rdbuf();
    if (parent == getpid() && state != "Z" && arguments.str().find(mark + '\0') != std::string::npos) found = pid;
  }
  closedir(all);
  return found;
}

std::vector<std::unique_ptr<classifier::Classifier>> lanes_of(const GpuEndurance& options, int num_devices,
                                                              std::vector<int>& device_of) {
  std::vector<std::unique_ptr<classifier::Classifier>> lanes;
  for (int device = 0; device < num_devices; ++device) {
    classifier::IsolationOptions isolation;
    isolation.command = {"/proc/self/exe", "breakable-process", std::to_string(options.kernel_seconds),
                         str_cat("device=", device)};
    isolation.name = str_cat("cuda:", device);
    isolation.shape = classifier::channel_shape(small_config(), classifier::InputKind::ids);
    isolation.num_lanes = kNumLanes;
    isolation.lease_timeout = std::chrono::milliseconds(options.lease_ms);
    for (auto& lane : classifier::make_isolated_classifiers(isolation)) {
      lanes.push_back(std::move(lane));
      device_of.push_back(device);
    }
  }
  return lanes;
}

/// Breaks one worker after another while the run goes on.
class Breaker {
 public:
  Breaker(const GpuEndurance& options, int num_devices, ComparingSink& sink)
      : options_(options), num_devices_(num_devices), sink_(sink) {}

  void run() {
    pause(std::chrono::milliseconds(1500));
    const size_t first = now();
    pause(std::chrono::seconds(3));
    const size_t last = now();
    for (size_t bucket = first + kBucketsAWindow; bucket <= last; bucket += kBucketsAWindow) {
      whole_rate += sink_.rate_before(bucket) / static_cast<double>((last - first) / kBucketsAWindow);
    }
    const double enough = kShare * (num_devices_ - 1) / num_devices_ * whole_rate;
    int device = 0;
    for (const auto& [name, number] : kSignals) {
      double slowest = 0, all_back = 0;
      for (int i = 0; i < options_.faults && !run_has_ended; ++i, device = (device + 1) % num_devices_) {
        const pid_t pid = worker_of(device);
        if (pid == 0) problems.push_back(str_cat("no process works for device ", device));
        if (pid == 0 || kill(pid, number) != 0) continue;
        ++num_faults;
        const size_t at = now();
        wait_for_all_to_be_back(at, device, pid, number);
        slowest = std::max(slowest, seconds_below(at, enough));
        all_back = std::max(all_back, seconds_below(at, kShare * whole_rate));
      }
      if (slowest > kLimitSeconds) problems.push_back(str_cat(name, ": ", slowest, " s below the others' rate"));
      kinds[name] = {
          {"faults", options_.faults}, {"slowest_back_seconds", slowest}, {"slowest_whole_seconds", all_back}};
    }
  }

  std::atomic<bool> run_has_ended{false};  // by an error: nothing more to break
  double whole_rate = 0;
  int num_faults = 0;
  Row kinds, problems = Row::array();

 private:
  size_t now() const { return ComparingSink::bucket_of(sink_.begin, Clock::now()); }
  static void pause(std::chrono::milliseconds time) { std::this_thread::sleep_for(time); }

  /// Until another process works where this one did, or, where it is to live on, a while.
  void wait_for_all_to_be_back(size_t at, int device, pid_t broken, int number) const {
    const auto limit = at + static_cast<size_t>((kLimitSeconds + options_.kernel_seconds) * 10);
    while (number != SIGURG && !run_has_ended && now() < limit &&
           (worker_of(device) == broken || worker_of(device) == 0)) {
      pause(std::chrono::milliseconds(20));
    }
    pause(std::chrono::milliseconds(2000));
  }
  /// From the fault to the end of the last window, until now, that had less than this rate.
  double seconds_below(size_t at, double rate) const {
    size_t last = at;
    for (size_t bucket = at + 1; bucket < now(); ++bucket) {
      if (sink_.rate_before(bucket) < rate) last = bucket;
    }
    return std::chrono::duration<double>(kBucket).count() * static_cast<double>(last - at);
  }

  const GpuEndurance& options_;
  const int num_devices_;
  ComparingSink& sink_;
};

}  // namespace

Row several_workers(const GpuEndurance& options) {
  int num_devices = 0;
  TESSERA_CUDA_CHECK(cudaGetDeviceCount(&num_devices));
  if (num_devices < 2) return {{"ok", true}, {"skipped", "one GPU is not several"}};
  const std::vector<int32_t> ids = small_sentences(kNumDistinct);
  const std::vector<float> golden = logits_of(*small_lanes(kBatch)[0], ids);
  classifier::EngineOptions engine_options{.batch_size = kBatch};
  auto lanes = lanes_of(options, num_devices, engine_options.device_of);
  classifier::Engine engine(small_model(), std::move(lanes), engine_options);
  EndlessReader reader(ids);
  ComparingSink sink(golden);
  Breaker breaker(options, num_devices, sink);
  std::jthread breaking([&] {
    breaker.run();
    reader.is_enough = true;
  });
  classifier::RunStatistics statistics;
  try {
    statistics = engine.run(reader, sink);
  } catch (const std::exception& error) {
    breaker.run_has_ended = true;
    breaking.join();
    return {{"ok", false}, {"problems", {std::string("the run ended: ") + error.what()}}};
  }
  breaking.join();
  Row problems = breaker.problems;
  if (sink.num_out_of_turn != 0 || sink.num_failed != 0 || sink.num_other_bits != 0) {
    problems.push_back(str_cat(sink.num_out_of_turn, " records lost or twice, ", sink.num_failed, " failed, ",
                               sink.num_other_bits, " with other bits"));
  }
  if (!statistics.failed_devices.empty()) problems.push_back(statistics.failed_devices[0]);
  const int expected_deaths = 3 * options.faults;  // what runs out of memory goes on
  if (statistics.num_worker_deaths < expected_deaths) {
    problems.push_back(str_cat(statistics.num_worker_deaths, " processes died of ", expected_deaths));
  }
  return {{"ok", problems.empty()},
          {"gpus", num_devices},
          {"records", statistics.num_read},
          {"records_ok", statistics.num_ok},
          {"faults", breaker.num_faults},
          {"worker_deaths", statistics.num_worker_deaths},
          {"records_lost_or_twice", sink.num_out_of_turn},
          {"records_with_other_bits", sink.num_other_bits},
          {"records_a_second", breaker.whole_rate},
          {"kinds", breaker.kinds},
          {"seconds", statistics.seconds},
          {"problems", problems}};
}

int run_breakable_worker(const std::vector<std::string>& arguments) {
  classifier::become_worker_process();
  for (const int number : {SIGUSR1, SIGUSR2, SIGURG}) signal(number, on_signal);
  const int kernel_seconds = std::atoi(arguments.at(0).c_str());
  const int device = std::atoi(arguments.at(1).substr(std::strlen("device=")).c_str());
  const bool ends_well = classifier::serve_leases(kNumLanes, [&](const classifier::ChannelShape&) {
    std::vector<std::unique_ptr<classifier::Classifier>> lanes;
    for (auto& lane : small_lanes(kBatch, device)) {
      lanes.push_back(std::make_unique<BreakableLane>(std::move(lane), device, kernel_seconds));
    }
    return lanes;
  });
  return ends_well ? 0 : 1;
}

}  // namespace tessera::testing
