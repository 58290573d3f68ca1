#include "tessera/classifier/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "classifier/engine_queue.h"
#include "classifier/engine_worker.h"
#include "classifier/engine_writer.h"
#include "io/records.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

namespace {

using Clock = std::chrono::steady_clock;

/// What a record occupies while it waits.
int64_t batch_bytes(const io::RecordBatch& batch) {
  size_t bytes = batch.ids.size() * sizeof(int32_t) + batch.embeddings.size() * sizeof(float);
  bytes += batch.texts.num_bytes() + batch.kept.num_bytes() + batch.texts.size() * sizeof(size_t);
  return static_cast<int64_t>(bytes);
}

/// One run: the threads share this.
class Pipeline {
 public:
  Pipeline(const ClassifierConfig& config, const TextEncoder* encoder, const EngineOptions& options,
           io::RecordReader& reader, ResultSink& sink, size_t num_workers)
      : config_(config),
        encoder_(encoder),
        options_(options),
        reader_(reader),
        queue_(options.max_queued_records, options.max_queued_bytes),
        writer_(config, sink, 2 * num_workers + 2),
        num_workers_(num_workers),
        num_working_(num_workers) {}

  void run(std::span<const std::unique_ptr<Classifier>> classifiers) {
    {
      std::vector<std::jthread> threads;
      guarded([&] { start(threads, classifiers); });
      guarded([this] { writer_.run(); });
    }
    if (failure_) std::rethrow_exception(failure_);
    if (failed_devices_.size() == num_workers_) {
      const RunStatistics& written = writer_.statistics();
      throw NoDeviceLeft(failed_devices_, num_read_ - written.num_ok - written.num_failed, first_lost_);
    }
    if (read_failure_) std::rethrow_exception(read_failure_);
  }

  /// From any thread: no further intake, and workers start no slice that would end after the grace.
  void stop() {
    stop_deadline_ = Clock::now() + kStopGrace;
    stopping_ = true;
    if (options_.stop_reader != nullptr) *options_.stop_reader = true;
  }

  RunStatistics statistics() const {
    RunStatistics statistics = writer_.statistics();
    statistics.num_read = num_read_ - writer_.num_discarded();
    statistics.failed_devices = failed_devices_;
    statistics.interrupted = stopping_ && (!reached_end_ || writer_.num_discarded() > 0);
    return statistics;
  }

 private:
  void start(std::vector<std::jthread>& threads, std::span<const std::unique_ptr<Classifier>> classifiers) {
    try {
      // The reader last: where a worker cannot be started, no record has been taken.
      for (const auto& classifier : classifiers) {
        threads.emplace_back([this, &classifier] {
          guarded([&] { work(*classifier); });
          if (--num_working_ == 0) end_of_work();
        });
      }
      threads.emplace_back([this] { guarded([this] { read(); }); });
    } catch (const std::system_error& error) {
      throw NoThreads("threads", str_cat(threads.size(), " of them (", error.code().message(), ")"),
                      str_cat(classifiers.size() + 1, " that a run starts: a higher limit on processes"));
    }
  }

  template <class Body>
  void guarded(const Body& body) {
    try {
      body();
    } catch (...) {
      {
        const std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
      stop();
      queue_.cancel();
      writer_.cancel();
    }
  }

  void read() {
    try {
      for (int64_t sequence = 0; !stopping_; ++sequence) {
        EngineBatch batch{.sequence = sequence, .records = take_spare()};
        if (!reader_.next(options_.batch_size, batch.records)) {
          reached_end_ = !stopping_;
          break;
        }
        const int64_t num_records = batch.records.num_records;
        TESSERA_CHECK(num_records >= 1 && num_records <= options_.batch_size, num_records, options_.batch_size);
        num_read_ += num_records;
        const int64_t num_bytes = batch_bytes(batch.records);
        queue_.push(std::move(batch), num_records, num_bytes);
      }
    } catch (const ProgrammerError&) {
      throw;
    } catch (...) {
      read_failure_ = std::current_exception();  // what was read before is still answered
    }
    queue_.finish();
  }

  /// Memory of a batch that has been labelled: new memory costs the reader more than reading does.
  io::RecordBatch take_spare() {
    const std::lock_guard lock(mutex_);
    if (spare_.empty()) return {};
    io::RecordBatch batch = std::move(spare_.back());
    spare_.pop_back();
    return batch;
  }
  void give_spare(io::RecordBatch batch) {
    batch.num_records = batch.num_skipped = 0;  // what a reader may leave as it finds it
    const std::lock_guard lock(mutex_);
    if (spare_.size() <= num_workers_) spare_.push_back(std::move(batch));
  }

  void work(Classifier& classifier) {
    // Two workers take turns, one encoding while the other waits for its device; more share the processors.
    const int share =
        static_cast<int>((2 * static_cast<size_t>(available_processors()) + num_workers_ - 1) / num_workers_);
    const int num_threads =
        options_.num_encode_threads > 0 ? options_.num_encode_threads : std::min(available_processors(), share);
    Worker worker(config_, encoder_, classifier,
                  {.num_encode_threads = num_threads, .router_weights = options_.router_weights});
    const Worker::GiveUp give_up = [this](std::chrono::nanoseconds expected) { return gives_up(expected); };
    while (std::optional<EngineBatch> batch = queue_.pop()) {
      LabelledBatch labelled;
      try {
        labelled = worker.label(*batch, give_up);
      } catch (const DeviceError& error) {
        retire(*std::move(batch), error.what());
        return;
      }
      {
        const std::lock_guard lock(mutex_);
        put_back_.erase(labelled.first_index);
      }
      queue_.done();
      give_spare(std::move(batch->records));
      if (!writer_.put(std::move(labelled))) return;
    }
  }

  /// The calling worker's device failed on `batch`: another worker takes it, or the run is over.
  void retire(EngineBatch batch, const char* message) {
    bool is_last = false;
    {
      const std::lock_guard lock(mutex_);
      failed_devices_.emplace_back(message);
      put_back_.insert(batch.records.first_index);
      // With the last one no worker holds a batch any more, and what was never taken comes behind what was.
      is_last = failed_devices_.size() == num_workers_;
      if (is_last) first_lost_ = *put_back_.begin();
    }
    if (is_last) {
      stop();
      queue_.cancel();
      return;
    }
    const int64_t num_records = batch.records.num_records;
    const int64_t num_bytes = batch_bytes(batch.records);
    queue_.put_back(std::move(batch), num_records, num_bytes);
    // Every other worker may be waiting for room in the writer, behind this very batch. Only now that the batch is what
    // they take next: each puts one batch at most before, so that the room lasts.
    writer_.add_room(num_workers_);
  }

  /// The last worker calls it.
  void end_of_work() {
    const std::lock_guard lock(mutex_);
    if (failed_devices_.size() == num_workers_) {
      writer_.abandon();
    } else {
      writer_.finish();
    }
  }

  bool gives_up(std::chrono::nanoseconds expected) const {
    return stopping_ && Clock::now() + expected > stop_deadline_.load();
  }

  const ClassifierConfig& config_;
  const TextEncoder* encoder_;
  const EngineOptions& options_;
  io::RecordReader& reader_;
  BoundedQueue<EngineBatch> queue_;
  OrderedWriter writer_;
  const size_t num_workers_;
  std::atomic<size_t> num_working_;
  std::atomic<bool> stopping_{false};
  std::atomic<Clock::time_point> stop_deadline_{Clock::time_point::max()};
  int64_t num_read_ = 0;  // the reader thread's until it has ended, as the two below
  bool reached_end_ = false;
  std::exception_ptr read_failure_;
  std::mutex mutex_;
  std::exception_ptr failure_;  // guarded by mutex_ while threads run, as everything below
  std::vector<std::string> failed_devices_;
  std::set<int64_t> put_back_;  // first indices of batches that wait for another worker
  int64_t first_lost_ = 0;
  std::vector<io::RecordBatch> spare_;
};

/// "2 failed (first message; second message)"
std::string failures_text(const std::vector<std::string>& failed_devices) {
  std::string text = str_cat(failed_devices.size(), " failed (");
  for (size_t i = 0; i < failed_devices.size(); ++i) text += (i == 0 ? "" : "; ") + failed_devices[i];
  return text + ")";
}

}  // namespace

NoDeviceLeft::NoDeviceLeft(const std::vector<std::string>& failed_devices, int64_t num_lost, int64_t first_lost)
    : Error("devices", str_cat("none is left, ", failures_text(failed_devices), "; ", num_lost,
                               " records were read and not labelled, the first of them is record ", first_lost)),
      num_lost_(num_lost),
      first_lost_(first_lost) {}

Engine::Engine(std::shared_ptr<const Model> model, std::vector<std::unique_ptr<Classifier>> classifiers,
               const EngineOptions& options)
    : model_(std::move(model)), classifiers_(std::move(classifiers)), options_(options) {
  TESSERA_CHECK(model_ != nullptr && !classifiers_.empty(), classifiers_.size());
  TESSERA_CHECK(options.batch_size >= 0 && options.num_encode_threads >= 0, options.batch_size,
                options.num_encode_threads);
  if (options_.batch_size == 0) {
    for (const auto& classifier : classifiers_) {
      options_.batch_size = std::max(options_.batch_size, classifier->preferred_batch());
    }
    options_.batch_size = std::max<int64_t>(options_.batch_size, 1);
  }
  if (!model_->vocabulary.empty()) encoder_ = std::make_unique<TextEncoder>(*model_);
}

Engine::~Engine() = default;

std::string Engine::description() const {
  std::string text;
  for (const auto& classifier : classifiers_) text += (text.empty() ? "" : "\n") + classifier->description();
  return text;
}

RunStatistics Engine::run(io::RecordReader& reader, ResultSink& sink, const std::stop_token& stop) {
  const auto start = Clock::now();
  Pipeline pipeline(model_->config, encoder_.get(), options_, reader, sink, classifiers_.size());
  {
    const std::stop_callback on_stop(stop, [&] { pipeline.stop(); });
    pipeline.run(classifiers_);
  }
  RunStatistics statistics = pipeline.statistics();
  statistics.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  check_counts(statistics);
  return statistics;
}

}  // namespace tessera::classifier
