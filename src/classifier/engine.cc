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
#include "classifier/engine_verify.h"
#include "classifier/engine_worker.h"
#include "classifier/engine_writer.h"
#include "classifier/restartable.h"
#include "io/records.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::classifier {

namespace {

using Clock = std::chrono::steady_clock;

// How long a worker waits for a batch before it has verified what its device holds back: long against the time between
// batches of a reader that keeps up, short for who waits at the other end of a pipe.
constexpr std::chrono::milliseconds kPatience{20};

/// What a classifier is called in messages: the first words of its description.
std::string short_name(const Classifier& classifier) {
  const std::string text = classifier.description();
  return text.substr(0, text.find_first_of(",;:\n", text.starts_with("cuda:") ? 5 : 0));
}

/// One run: the threads share this.
class Pipeline {
 public:
  Pipeline(const ClassifierConfig& config, const TextEncoder* encoder, const EngineOptions& options,
           io::RecordReader& reader, ResultSink& sink, std::span<const std::unique_ptr<Classifier>> classifiers)
      : options_(options),
        classifiers_(classifiers),
        reader_(reader),
        queue_(options.max_queued_records, options.max_queued_bytes),
        num_workers_(classifiers.size()),
        lanes_(config, encoder, classifiers, options.device_of, worker_options()),
        verifier_(config, lanes_, options.verify_rate, options.max_queued_bytes),
        writer_(config, sink, 2 * num_workers_ + 2 + verifier_.max_held()),
        num_working_(num_workers_) {}

  void run() {
    {
      std::vector<std::jthread> threads;
      guarded([&] { start(threads); });
      guarded([this] { writer_.run(); });
    }
    if (failure_) std::rethrow_exception(failure_);
    if (num_retired_ == num_workers_) {
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
    statistics.num_verified = num_verified_;
    statistics.num_mismatches = num_mismatches_;
    statistics.num_worker_deaths = static_cast<int64_t>(worker_deaths_.size());
    statistics.worker_deaths = worker_deaths_;
    if (worker_deaths_.size() > kMaxListedFailures) statistics.worker_deaths.resize(kMaxListedFailures);
    statistics.interrupted = stopping_ && (!reached_end_ || writer_.num_discarded() > 0);
    return statistics;
  }

 private:
  void start(std::vector<std::jthread>& threads) {
    try {
      // The reader last: where a worker cannot be started, no record has been taken.
      for (size_t lane = 0; lane < num_workers_; ++lane) {
        threads.emplace_back([this, lane] {
          guarded([&] { work(lane); });
          if (--num_working_ == 0) end_of_work();
        });
      }
      threads.emplace_back([this] { guarded([this] { read(); }); });
    } catch (const std::system_error& error) {
      throw NoThreads("threads", str_cat(threads.size(), " of them (", error.code().message(), ")"),
                      str_cat(num_workers_ + 1, " that a run starts: a higher limit on processes"));
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

  Worker::Options worker_options() {
    // Two workers take turns, one encoding while the other waits for its device; more share the processors.
    const size_t processors = 2 * static_cast<size_t>(available_processors());
    const int share = static_cast<int>((processors + num_workers_ - 1) / num_workers_);
    return {.num_encode_threads =
                options_.num_encode_threads > 0 ? options_.num_encode_threads : std::min(available_processors(), share),
            .router_weights = options_.router_weights,
            .on_death = [this](const std::string& what) { note_death(what); }};
  }

  /// Until there is nothing more to do for this lane.
  void work(size_t lane) {
    const size_t device = lanes_.device(lane);
    while (std::optional<EngineBatch> batch = next_batch(lane)) {
      LabelledBatch labelled;
      try {
        labelled = lanes_.label(lane, *batch, give_up_);
      } catch (const WorkerLost& lost) {
        note_death(lost.what());
        batch->num_deaths += 1;
        give_back(*std::move(batch));
        if (!recover(lane)) return;
        continue;
      } catch (const DeviceError& error) {
        retire(lane, std::move(batch), error.what());
        return;
      }
      HeldBatch held{*std::move(batch), std::move(labelled)};
      if (!verifier_.is_on()) {
        if (!deliver(std::move(held))) return;
      } else if (verifier_.is_quarantined(device)) {
        give_back(whole_again(std::move(held)));
      } else if (!settle(lane, verifier_.hold(lane, std::move(held)))) {
        return;
      }
    }
    if (verifier_.is_quarantined(device)) retire(lane, std::nullopt, {});
  }

  /// False where the lane's process died and no other takes its place.
  bool recover(size_t lane) {
    auto* const restartable = dynamic_cast<RestartableClassifier*>(classifiers_[lane].get());
    if (restartable == nullptr) return true;
    try {
      restartable->recover();
    } catch (const DeviceError& error) {
      retire(lane, std::nullopt, error.what());
      return false;
    }
    return true;
  }

  /// Empty once the queue has ended, or the device is not to be trusted. Whoever waits verifies what is held back.
  std::optional<EngineBatch> next_batch(size_t lane) {
    const size_t device = lanes_.device(lane);
    if (!verifier_.is_on()) return queue_.pop();
    bool ended = false;
    while (!ended && !verifier_.is_quarantined(device)) {
      std::optional<EngineBatch> batch = queue_.pop_for(kPatience, ended);
      if (batch) return batch;
      if (!settle(lane, verifier_.close(device))) break;
    }
    return std::nullopt;
  }

  /// Verifies the window's last batch and writes all of it, or lets others compute it. False once nothing is written
  /// any more.
  bool settle(size_t lane, Window window) {
    if (window.empty()) return true;
    const size_t device = lanes_.device(lane);
    const Verdict verdict = verifier_.judge(lane, window.back(), give_up_);
    const bool is_own = std::find(verdict.wrong.begin(), verdict.wrong.end(), device) != verdict.wrong.end();
    if (verdict.wrong.empty() && verdict.is_known) ++num_verified_;
    if (!verdict.wrong.empty()) ++num_mismatches_;
    for (const size_t wrong : verdict.wrong) quarantine(wrong);
    if (is_own || verifier_.is_quarantined(device) || (!verdict.is_known && !stopping_)) {
      give_back_all(std::move(window), verdict.is_known ? 0 : 1);
      return true;
    }
    // The lowest first, whichever lane was ready first: else one could wait for room behind one that is due.
    std::sort(window.begin(), window.end(),
              [](const HeldBatch& a, const HeldBatch& b) { return a.batch.sequence < b.batch.sequence; });
    for (HeldBatch& held : window) {
      if (!verdict.is_known) held.labelled.num_done = 0;  // nobody vouches for it: what is written ends here
      if (!deliver(std::move(held))) return false;
    }
    return true;
  }

  /// The device's results differ from a second computation: what it holds is computed by others.
  void quarantine(size_t device) {
    if (!verifier_.quarantine(device)) return;
    size_t lane = 0;
    while (lanes_.device(lane) != device) ++lane;
    {
      const std::lock_guard lock(mutex_);
      failed_devices_.push_back(short_name(*classifiers_[lane]) +
                                ": its results differ, bit for bit, from those of a second computation");
    }
    give_back_all(verifier_.close(device), 0);
  }

  bool deliver(HeldBatch held) {
    {
      const std::lock_guard lock(mutex_);
      put_back_.erase(held.labelled.first_index);
    }
    queue_.done();
    give_spare(std::move(held.batch.records));
    return writer_.put(std::move(held.labelled));
  }

  static EngineBatch whole_again(HeldBatch held) {
    held.batch.records.texts = std::move(held.labelled.texts);
    return std::move(held.batch);
  }

  void give_back_all(Window window, int num_deaths) {
    // The lowest comes to the front.
    std::sort(window.begin(), window.end(),
              [](const HeldBatch& a, const HeldBatch& b) { return a.batch.sequence > b.batch.sequence; });
    for (HeldBatch& held : window) {
      held.batch.num_deaths += num_deaths;
      give_back(whole_again(std::move(held)));
    }
  }

  /// The batch is for whoever is free next.
  void give_back(EngineBatch batch) {
    {
      const std::lock_guard lock(mutex_);
      put_back_.insert(batch.records.first_index);
    }
    const int64_t num_records = batch.records.num_records;
    const int64_t num_bytes = batch_bytes(batch.records);
    queue_.put_back(std::move(batch), num_records, num_bytes);
    // Every other worker may be waiting for room in the writer, behind this very batch. Only now that the batch is what
    // they take next: each puts what it has at most before, so that the room lasts.
    writer_.add_room(num_workers_ + verifier_.max_held());
  }

  /// The calling worker's device failed, on `batch` if it had one: another takes it, or the run is over.
  void retire(size_t lane, std::optional<EngineBatch> batch, const std::string& message) {
    lanes_.fail(lane);
    Window held = verifier_.is_on() ? verifier_.close(lanes_.device(lane)) : Window();
    bool is_last = false;
    {
      const std::lock_guard lock(mutex_);
      if (!message.empty()) failed_devices_.push_back(message);
      if (batch) put_back_.insert(batch->records.first_index);
      for (const HeldBatch& each : held) put_back_.insert(each.batch.records.first_index);
      // With the last one no worker holds a batch any more, and what was never taken comes behind what was.
      is_last = ++num_retired_ == num_workers_;
      if (is_last && !put_back_.empty()) first_lost_ = *put_back_.begin();
    }
    if (is_last) {
      stop();
      queue_.cancel();
      return;
    }
    give_back_all(std::move(held), 0);
    if (batch) give_back(*std::move(batch));
  }

  void note_death(const std::string& what) {
    const std::lock_guard lock(mutex_);
    // Each lane of a process tells of its death; the text has the process's number.
    if (std::find(worker_deaths_.begin(), worker_deaths_.end(), what) == worker_deaths_.end()) {
      worker_deaths_.push_back(what);
    }
  }

  /// The last worker calls it.
  void end_of_work() {
    const std::lock_guard lock(mutex_);
    if (num_retired_ == num_workers_) {
      writer_.abandon();
    } else {
      writer_.finish();
    }
  }

  bool gives_up(std::chrono::nanoseconds expected) const {
    return stopping_ && Clock::now() + expected > stop_deadline_.load();
  }

  const EngineOptions& options_;
  const std::span<const std::unique_ptr<Classifier>> classifiers_;
  io::RecordReader& reader_;
  BoundedQueue<EngineBatch> queue_;
  const size_t num_workers_;
  Lanes lanes_;
  Verifier verifier_;
  OrderedWriter writer_;
  const Worker::GiveUp give_up_ = [this](std::chrono::nanoseconds expected) { return gives_up(expected); };
  std::atomic<size_t> num_working_;
  std::atomic<bool> stopping_{false};
  std::atomic<Clock::time_point> stop_deadline_{Clock::time_point::max()};
  std::atomic<int64_t> num_verified_{0};
  std::atomic<int64_t> num_mismatches_{0};
  int64_t num_read_ = 0;  // the reader thread's until it has ended, as the two below
  bool reached_end_ = false;
  std::exception_ptr read_failure_;
  std::mutex mutex_;
  std::exception_ptr failure_;  // guarded by mutex_ while threads run, as everything below
  std::vector<std::string> failed_devices_;
  std::vector<std::string> worker_deaths_;
  size_t num_retired_ = 0;
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
  Pipeline pipeline(model_->config, encoder_.get(), options_, reader, sink, classifiers_);
  {
    const std::stop_callback on_stop(stop, [&] { pipeline.stop(); });
    pipeline.run();
  }
  RunStatistics statistics = pipeline.statistics();
  statistics.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  check_counts(statistics);
  return statistics;
}

}  // namespace tessera::classifier
