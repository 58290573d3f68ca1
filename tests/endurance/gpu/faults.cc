// What ends a context or holds a device up, in worker processes: the run goes on and names the records; and in this
// very process: the library says that the device is lost, and takes no further work for it.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "classifier/isolated_classifier.h"
#include "classifier/lease_worker.h"
#include "cuda/core/cuda_check.h"
#include "endurance/gpu/device_work.h"
#include "endurance/gpu/rows.h"
#include "endurance/gpu/small_classifier.h"
#include "io/records.h"
#include "tessera/core/check.h"

namespace tessera::testing {

namespace {

using classifier::Batch;
using classifier::Outputs;

// First words of sentences that the worker breaks on; no random sentence has them twice.
constexpr int32_t kIllegalAddress = 4001, kHang = 4002;

bool has(const Batch& batch, int32_t id) {
  const int64_t length = small_config().sequence_length;
  for (int64_t i = 0; i < batch.num_sentences; ++i) {
    const int32_t* ids = batch.ids + i * length;
    if (ids[0] == id && ids[1] == id && ids[2] == id) return true;
  }
  return false;
}

/// A lane that first does to the device what the batch asks for.
class BreakingLane : public classifier::Classifier {
 public:
  BreakingLane(std::unique_ptr<classifier::CudaClassifier> lane, int kernel_seconds)
      : lane_(std::move(lane)), kernel_seconds_(kernel_seconds) {}

  void run(const Batch& batch, const Outputs& outputs) override {
    if (has(batch, kIllegalAddress)) write_to_nowhere(nullptr);
    if (has(batch, kHang)) {
      spin(1, int64_t{1'000'000'000} * kernel_seconds_, nullptr);
      TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
    }
    lane_->run(batch, outputs);
  }
  std::string description() const override { return lane_->description(); }
  int64_t preferred_batch() const override { return lane_->preferred_batch(); }

 private:
  std::unique_ptr<classifier::CudaClassifier> lane_;
  int kernel_seconds_;
};

class IdReader : public io::RecordReader {
 public:
  explicit IdReader(const std::vector<int32_t>& ids) : ids_(ids) {}
  bool next(int64_t max_records, io::RecordBatch& batch) override {
    const int64_t length = small_config().sequence_length;
    batch = {};
    batch.first_index = next_;
    batch.num_records = std::min(max_records, num_records_hint() - next_);
    if (batch.num_records == 0) return false;
    batch.errors.resize(static_cast<size_t>(batch.num_records));
    batch.ids = Buffer<int32_t>(static_cast<size_t>(batch.num_records * length));
    std::copy_n(ids_.begin() + next_ * length, batch.num_records * length, batch.ids.begin());
    next_ += batch.num_records;
    return true;
  }
  int64_t num_records_hint() const override {
    return static_cast<int64_t>(ids_.size()) / small_config().sequence_length;
  }
  int64_t bytes_read() const override { return 0; }
  int64_t num_bytes_hint() const override { return -1; }

 private:
  const std::vector<int32_t>& ids_;
  int64_t next_ = 0;
};

struct KeepAll : classifier::ResultSink {
  void write(const classifier::RecordResult& result) override {
    logits.insert(logits.end(), result.logits.begin(), result.logits.end());
    errors.emplace_back(result.error);
  }
  std::vector<float> logits;
  std::vector<std::string> errors;
};

Row run_broken(const GpuEndurance& options, int32_t poison, int64_t num_sentences, int64_t batch_size) {
  Row problems = Row::array();
  const classifier::ClassifierConfig config = small_config();
  const int64_t length = config.sequence_length;
  std::vector<int32_t> ids = small_sentences(num_sentences);
  const std::vector<float> golden = logits_of(*small_lanes(64)[0], ids);
  std::vector<bool> is_poisoned(static_cast<size_t>(num_sentences), false);
  for (int i = 0; i < options.faults; ++i) {
    const int64_t at = (2 * i + 1) * num_sentences / (2 * options.faults);
    std::fill_n(ids.begin() + at * length, 3, poison);
    is_poisoned[static_cast<size_t>(at)] = true;
  }
  classifier::IsolationOptions isolation;
  isolation.command = {"/proc/self/exe", "worker-process", std::to_string(options.kernel_seconds)};
  isolation.name = "cuda:0";
  isolation.shape = classifier::channel_shape(config, classifier::InputKind::ids);
  isolation.num_lanes = 2;
  isolation.lease_timeout = std::chrono::milliseconds(options.lease_ms);
  std::vector<std::unique_ptr<classifier::Classifier>> lanes;
  for (auto& lane : classifier::make_isolated_classifiers(isolation)) lanes.push_back(std::move(lane));
  classifier::Engine engine(small_model(), std::move(lanes), {.batch_size = batch_size});
  IdReader reader(ids);
  KeepAll sink;
  const classifier::RunStatistics statistics = engine.run(reader, sink);
  int num_found = 0;
  const auto classes = static_cast<size_t>(config.num_classes);
  for (size_t i = 0; i < is_poisoned.size(); ++i) {
    const bool failed = !sink.errors[i].empty();
    num_found += failed && is_poisoned[i] ? 1 : 0;
    if (failed != is_poisoned[i]) problems.push_back(str_cat("record ", i, ": '", sink.errors[i], "'"));
    if (!failed && std::memcmp(&sink.logits[i * classes], &golden[i * classes], classes * sizeof(float)) != 0) {
      problems.push_back(str_cat("record ", i, ": other bits"));
    }
  }
  if (num_found != options.faults) problems.push_back("a record that breaks the device was not found");
  if (!statistics.failed_devices.empty()) problems.push_back(statistics.failed_devices[0]);
  return {{"ok", problems.empty()},
          {"records", statistics.num_read},
          {"records_ok", statistics.num_ok},
          {"records_failed", statistics.num_failed},
          {"planted", options.faults},
          {"found", num_found},
          {"worker_deaths", statistics.num_worker_deaths},
          {"seconds", statistics.seconds},
          {"first_death", statistics.worker_deaths.empty() ? "" : statistics.worker_deaths[0]},
          {"problems", problems}};
}

}  // namespace

Row illegal_address(const GpuEndurance& options) { return run_broken(options, kIllegalAddress, 400, 8); }

// Batches of one: each death may wait for the kernel to end by itself.
Row hanging_kernel(const GpuEndurance& options) { return run_broken(options, kHang, 50, 1); }

Row device_lost(const GpuEndurance&) {
  const pid_t child = fork();  // before it has used the device, this process may
  if (child == 0) {
    execl("/proc/self/exe", "gpu_endurance", "lost-process", static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return {{"ok", code == 0}, {"exit_code", code}};
}

int run_fault_worker(const std::vector<std::string>& arguments) {
  classifier::become_worker_process();
  const int kernel_seconds = arguments.empty() ? 20 : std::atoi(arguments[0].c_str());
  const bool ends_well = classifier::serve_leases(2, [&](const classifier::ChannelShape&) {
    std::vector<std::unique_ptr<classifier::Classifier>> lanes;
    for (auto& lane : small_lanes(64)) lanes.push_back(std::make_unique<BreakingLane>(std::move(lane), kernel_seconds));
    return lanes;
  });
  return ends_well ? 0 : 1;
}

int run_lost_process() {
  const std::vector<int32_t> ids = small_sentences(10);
  const auto lanes = small_lanes(64);
  static_cast<void>(logits_of(*lanes[0], ids));
  write_to_nowhere(nullptr);
  // The first call that meets the error, every later one of either lane, and a new classifier.
  const auto says = [&](const auto& action, const char* what) {
    try {
      action();
    } catch (const classifier::DeviceError& error) {
      const bool is_right = std::strstr(error.what(), "device lost") != nullptr;
      if (!is_right) std::fprintf(stderr, "%s: %s\n", what, error.what());
      return is_right;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: no DeviceError: %s\n", what, error.what());
      return false;
    }
    std::fprintf(stderr, "%s: no error\n", what);
    return false;
  };
  bool is_right = says([&] { logits_of(*lanes[0], ids); }, "first run");
  is_right = says([&] { logits_of(*lanes[0], ids); }, "second run") && is_right;
  is_right = says([&] { logits_of(*lanes[1], ids); }, "the other lane") && is_right;
  is_right = says([&] { small_lanes(64); }, "a new classifier") && is_right;
  std::fflush(stderr);
  _exit(is_right ? 0 : 1);  // nothing can be given back to a device that is lost
}

}  // namespace tessera::testing
