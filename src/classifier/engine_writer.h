// Puts labelled batches back into input order and hands them to the sink.
//
//   writer.put(batch);   // workers, in any order; waits while too many batches are ahead of the one that is due
//   writer.run();        // one thread: writes until finish() or cancel(); a stopped batch ends the output
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>

#include "classifier/engine_worker.h"
#include "tessera/classifier/engine.h"

namespace tessera::classifier {

class OrderedWriter {
 public:
  /// At most `max_pending` batches wait for their turn; the one that is due is always let in. References are kept.
  OrderedWriter(const ClassifierConfig& config, ResultSink& sink, size_t max_pending);

  /// False, and the batch is dropped, once cancelled.
  bool put(LabelledBatch batch);
  /// From now on `num_batches` more may wait: a batch that was put back may be due, and whoever is to take it must not
  /// be held up here.
  void add_room(size_t num_batches);
  /// No batch will follow; `run` returns when all are written.
  void finish();
  /// No batch will follow and some are missing; `run` returns when all before the first of those are written.
  void abandon();
  /// `run` returns at once.
  void cancel();

  /// Writes in the order of `sequence`. Throws what the sink throws, ProgrammerError when a batch is missing, comes
  /// twice, or does not continue the indices of the one before. After a batch that a stop cut short nothing more is
  /// written: the output stays a prefix.
  void run();

  /// Records written, and what is counted along the way. To be read after `run`.
  const RunStatistics& statistics() const { return statistics_; }
  /// Records that were labelled, or given to a worker, but lie behind the cut of a stop.
  int64_t num_discarded() const { return num_discarded_; }

 private:
  void write_batch(const LabelledBatch& batch);
  void write_record(const LabelledBatch& batch, int64_t i);

  const ClassifierConfig& config_;
  ResultSink& sink_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t max_pending_;  // guarded by mutex_, as everything down to cancelled_
  std::map<int64_t, LabelledBatch> pending_;
  int64_t due_ = 0;
  bool finished_ = false;
  bool abandoned_ = false;
  bool cancelled_ = false;
  RunStatistics statistics_;  // the running thread's, as everything below
  int64_t next_index_ = 0;
  int64_t num_discarded_ = 0;
  bool cut_ = false;
};

/// Every record read is answered exactly once. Throws ProgrammerError otherwise.
void check_counts(const RunStatistics& statistics);

}  // namespace tessera::classifier
