// Labels a stream of records: a reader thread fills a bounded queue, workers pull micro-batches from it, results leave
// in input order.
//
//   Engine engine(model, std::move(classifiers), {.router_weights = true});
//   const RunStatistics statistics = engine.run(*reader, sink, stop_source.get_token());
//
// One worker thread a classifier, so a slow one takes fewer batches; the results are written on the calling thread.
// Every record that is read ends in exactly one result, ok or failed: that is checked, not assumed. A record that
// cannot be labelled (text that is no UTF-8, an id outside the vocabulary, an embedding that is not finite) fails
// alone.
//
// Memory: at most `max_queued_records` and `max_queued_bytes` wait for a worker (one batch always fits), and a few
// batches a worker wait for their turn to be written.
//
// Devices: a classifier that throws DeviceError is not used again in that run. Its batch goes back to the front of the
// queue and the others finish the work; the results are those of an undisturbed run. With none left the run ends with
// NoDeviceLeft.
//
// Processes: where a classifier works in a process of its own and that dies, its batch is given out once more. If it
// dies again, halves of the batch run alone until the record that ends the process is found; that one fails.
//
// Silent corruption: with `verify_rate` N a device's results are held back until one batch in N has been computed
// again, by another device where there is one, and found equal bit for bit. Where it is not, the device that is wrong
// is not used again, and what it computed since the last batch that was found equal is computed by others.
//
// Stop: once the token is stopped nothing more is read. What has been read is labelled as far as slices
// (preferred_batch() sentences) fit into kStopGrace, judged by how long the last one took; the slice that runs at the
// stop is finished anyway. The results written are those of the first `num_read` records of the input.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/classifier/classifier.h"
#include "tessera/classifier/model.h"
#include "tessera/core/error.h"

namespace tessera::io {
class RecordReader;
}

namespace tessera::classifier {

class TextEncoder;

/// One record's result. Views live during ResultSink::write only.
struct RecordResult {
  int64_t index = 0;                      ///< in the input, from 0
  std::string_view error;                 ///< non-empty: the record failed; label_idx is -1 and the logits are NaN
  std::string_view text;                  ///< the input where it is text, else empty
  std::string_view kept;                  ///< io::RecordBatch::kept of it
  int64_t num_words = -1;                 ///< of the text, before truncation; -1 where the input is none
  int64_t num_unknown = 0;                ///< those of the words kept that the vocabulary lacks
  int64_t label_idx = -1;                 ///< of the largest logit, the lowest index among equal ones
  float probability = 0;                  ///< softmax of the logits at label_idx
  std::span<const float> logits;          ///< [num_classes]
  std::span<const float> router_weights;  ///< [num_experts], or empty unless asked for
};

/// Where results go. Called on the thread that called Engine::run; an exception ends the run and leaves it.
class ResultSink {
 public:
  virtual ~ResultSink() = default;
  virtual void write(const RecordResult& result) = 0;
  /// After the last result of a micro-batch; `num_written` counts all results so far.
  virtual void end_batch(int64_t num_written) { static_cast<void>(num_written); }
};

/// Leaves the writer half a second of the two in which a stopped run ends.
inline constexpr std::chrono::milliseconds kStopGrace{1500};

struct EngineOptions {
  int64_t batch_size = 0;  ///< records read at a time; 0 = the largest preferred_batch() of the classifiers
  int64_t max_queued_records = 8192;
  int64_t max_queued_bytes = int64_t{256} << 20;
  int num_encode_threads = 0;   ///< that turn text into ids, per worker; 0 = chosen from the processors of this process
  bool router_weights = false;  ///< fill RecordResult::router_weights
  int64_t verify_rate = 0;      ///< one batch in so many of each device is computed again; 0 = none
  /// [classifiers] the device of each: those of one device fail a verification together. Empty: each has its own.
  std::vector<int> device_of = {};
  /// Set to true when intake ends early, by a stop or an exception. The reader's own `stop` (io::RecordSource), so that
  /// one that waits on a pipe returns; may be null for readers that never wait.
  std::atomic<bool>* stop_reader = nullptr;
};

struct FailedRecord {
  int64_t index = 0;
  std::string error;
};

/// Failed records kept by name; all are counted.
inline constexpr size_t kMaxListedFailures = 100;

struct RunStatistics {
  int64_t num_read = 0;  ///< records taken and answered: num_ok + num_failed
  int64_t num_ok = 0;
  int64_t num_failed = 0;
  std::vector<FailedRecord> failed;  ///< the first kMaxListedFailures
  int64_t num_truncated = 0;         ///< sentences with more words than the model's sequence length
  int64_t num_words = 0;             ///< of text input, before truncation
  int64_t num_unknown = 0;           ///< words the vocabulary lacks, among those kept
  double seconds = 0;
  bool interrupted = false;                 ///< stopped before the end of the input
  std::vector<std::string> failed_devices;  ///< what their DeviceErrors said, in the order of the failures
  int64_t num_verified = 0;                 ///< batches that were computed again, and were equal
  int64_t num_mismatches = 0;               ///< batches that were not
  int64_t num_worker_deaths = 0;            ///< processes that died and were started again
  std::vector<std::string> worker_deaths;   ///< of what, the first kMaxListedFailures

  /// Records a second.
  double rate() const { return seconds > 0 ? static_cast<double>(num_read) / seconds : 0; }
};

/// Every device failed. The results of the records before `first_lost` have been written, no others.
class NoDeviceLeft : public Error {
 public:
  NoDeviceLeft(const std::vector<std::string>& failed_devices, int64_t num_lost, int64_t first_lost);

  int64_t num_lost() const { return num_lost_; }      ///< records that were read and not answered
  int64_t first_lost() const { return first_lost_; }  ///< the index of the first of them

 private:
  int64_t num_lost_;
  int64_t first_lost_;
};

/// The system gives no more threads to this process (ulimit -u, a container's limit): nothing was labelled.
class NoThreads : public Error {
 public:
  using Error::Error;
};

class Engine {
 public:
  /// `classifiers`: at least one, all of `model` and of the same input kind as the records that will come.
  Engine(std::shared_ptr<const Model> model, std::vector<std::unique_ptr<Classifier>> classifiers,
         const EngineOptions& options);
  ~Engine();

  /// Returns at the end of the input or after a stop. Throws what the reader, a classifier or the sink threw, after all
  /// threads have ended; if it was the reader, the results of everything read before have been written. Throws
  /// NoDeviceLeft when the last device has failed, NoThreads where the run could not begin.
  RunStatistics run(io::RecordReader& reader, ResultSink& sink, const std::stop_token& stop = {});

  int64_t batch_size() const { return options_.batch_size; }
  /// Of each classifier, one line each.
  std::string description() const;

 private:
  std::shared_ptr<const Model> model_;
  std::vector<std::unique_ptr<Classifier>> classifiers_;
  EngineOptions options_;
  std::unique_ptr<TextEncoder> encoder_;
};

}  // namespace tessera::classifier
