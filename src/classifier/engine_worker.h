// One worker of the engine: text to token ids, then the classifier, on one micro-batch at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/records.h"
#include "io/tokenizer.h"
#include "io/vocabulary.h"
#include "tessera/classifier/classifier.h"
#include "tessera/classifier/model.h"
#include "tessera/core/buffer.h"
#include "tessera/core/thread_pool.h"

namespace tessera::classifier {

/// Text to ids as the model was trained. Thread-safe.
class TextEncoder {
 public:
  explicit TextEncoder(const Model& model);
  io::Tokenizer::Encoding encode(std::string_view text, std::span<int32_t> ids) const {
    return tokenizer_.encode(text, vocabulary_, ids);
  }

 private:
  io::Tokenizer tokenizer_;
  io::Vocabulary vocabulary_;
};

/// A micro-batch on its way through the engine; `sequence` counts batches from 0.
struct EngineBatch {
  int64_t sequence = 0;
  int num_deaths = 0;  ///< of processes that had it (restartable.h)
  io::RecordBatch records;
};

/// What a record occupies while it waits.
int64_t batch_bytes(const io::RecordBatch& batch);

/// What a worker made of a batch.
struct LabelledBatch {
  int64_t sequence = 0;
  int64_t first_index = 0;
  int64_t num_skipped = 0;  ///< as in io::RecordBatch
  int64_t num_records = 0;
  int64_t num_done = 0;             ///< less than num_records only after a stop: the rest was not labelled
  io::TextArena texts;              ///< [num_records] or empty
  io::TextArena kept;               ///< as in io::RecordBatch
  std::vector<std::string> errors;  ///< [num_records], empty = ok
  Buffer<float> logits;             ///< [num_records, num_classes]
  Buffer<float> router_weights;     ///< [num_records, num_experts] or empty
  std::vector<io::Tokenizer::Encoding> encodings;  ///< [num_records] for text input, else empty
};

class Worker {
 public:
  struct Options {
    int num_encode_threads = 1;
    bool router_weights = false;
    /// Told of each process that died while halves of a batch ran alone. May be empty.
    std::function<void(const std::string& what)> on_death = {};
  };

  /// References are kept. `encoder` may be null where no text comes.
  Worker(const ClassifierConfig& config, const TextEncoder* encoder, Classifier& classifier, const Options& options);

  /// Whether to give up instead of starting a slice that will take about `expected`.
  using GiveUp = std::function<bool(std::chrono::nanoseconds expected)>;

  /// Labels `batch` in slices of the classifier's preferred batch; leaves the rest once `give_up` says so. When memory
  /// runs out slices are halved, down to one sentence. Takes the texts out of `batch`; when it throws DeviceError, or
  /// WorkerLost, the batch is as good as before for another worker. A batch that a process has died of runs alone, and
  /// its record that ends processes is found. A batch without its texts, its ids left by an earlier call, is labelled
  /// again as it was.
  LabelledBatch label(EngineBatch& batch, const GiveUp& give_up);

 private:
  void encode_texts(io::RecordBatch& records, LabelledBatch& out);
  void blank_failed_records(const std::vector<std::string>& errors, io::RecordBatch& records) const;
  void run_slice(const io::RecordBatch& records, int64_t begin, int64_t count, LabelledBatch& out);
  void run_suspect(io::RecordBatch& records, int64_t begin, int64_t count, LabelledBatch& out);
  void call(const io::RecordBatch& records, int64_t begin, int64_t count, bool alone, LabelledBatch& out);
  void describe_failure(const io::RecordBatch& records, int64_t i, RecordStatus status, LabelledBatch& out) const;

  const ClassifierConfig& config_;
  const TextEncoder* encoder_;
  Classifier& classifier_;
  Options options_;
  ThreadPool encode_threads_;
  int64_t slice_size_;
  std::chrono::nanoseconds last_slice_{0};  // how long it took
  std::vector<RecordStatus> status_;
};

}  // namespace tessera::classifier
