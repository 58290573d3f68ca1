// Results of the engine as bytes of the output, and the journal that counts those that are on disk.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "io/checksum.h"
#include "io/journal.h"
#include "io/results.h"
#include "label_counts.h"
#include "output.h"
#include "progress.h"
#include "tessera/classifier/engine.h"

namespace tessera::cli {

/// Where a run begins: at the first record, or behind those that an earlier run finished.
struct RunStart {
  io::Checkpoint done = {};
  std::unique_ptr<io::Checksum> checksum = std::make_unique<io::Checksum>();  ///< of the output so far
  bool is_resumed = false;
};

class ResultWriter : public classifier::ResultSink {
 public:
  /// References are kept; `journal` may be null. Writes the header unless the start is behind it. `min_probability` as
  /// in LabelCounts.
  ResultWriter(const classifier::ClassifierConfig& config, const io::ResultFormat& format, Output& output,
               Progress& progress, RunStart start, io::Journal* journal, double min_probability = 0);

  void write(const classifier::RecordResult& record) override;
  /// Hands the batch over; about once a second, later ever more rarely, also a checkpoint.
  void end_batch(int64_t num_written) override;

  /// Brings everything to disk and counts it in the journal; without a journal a flush.
  void checkpoint();
  /// What is handed over, earlier runs included. Its checksum is that of the bytes so far.
  io::Checkpoint done() const;
  /// Of the records that this run has labelled.
  std::vector<LabelCount> label_counts() const { return labels_.counts(); }

 private:
  using Clock = std::chrono::steady_clock;

  void put(const std::string& bytes);

  const classifier::ClassifierConfig& config_;
  const io::ResultFormat& format_;
  Output& output_;
  Progress& progress_;
  io::Journal* journal_;
  io::Checkpoint handed_over_;
  io::Checkpoint counted_;  // with the results in pending_
  std::unique_ptr<io::Checksum> checksum_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_checkpoint_;
  LabelCounts labels_;
  std::vector<float> probabilities_;  // of the record that is being written
  std::string pending_;
};

}  // namespace tessera::cli
