// What `tessera verify` runs a model on, and what it keeps of a run.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/records.h"
#include "model_options.h"
#include "progress.h"
#include "tessera/classifier/engine.h"

namespace tessera::cli {

/// At most one of the files is named.
struct VerifyInput {
  std::string ids;
  std::string embeddings;
  std::string text;

  int num_named() const { return !ids.empty() + !embeddings.empty() + !text.empty(); }
};

classifier::InputKind input_kind(const VerifyInput& input);

/// The file that is named. Throws Error as io::open_records.
std::unique_ptr<io::RecordReader> open_input(const VerifyInput& input, const classifier::ClassifierConfig& config);

/// The same model on the oracle.
ModelOptions oracle_options(const ModelOptions& options);

/// Keeps the logits: [num_records, num_classes]; those of a failed record are NaN.
class LogitsSink : public classifier::ResultSink {
 public:
  explicit LogitsSink(Progress& progress) : progress_(progress) {}
  void write(const classifier::RecordResult& result) override {
    logits_.insert(logits_.end(), result.logits.begin(), result.logits.end());
  }
  void end_batch(int64_t num_written) override { progress_.update(num_written); }
  std::vector<float> take() { return std::move(logits_); }

 private:
  Progress& progress_;
  std::vector<float> logits_;
};

}  // namespace tessera::cli
