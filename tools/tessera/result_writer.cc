#include "result_writer.h"

#include <algorithm>
#include <utility>

#include "exit_codes.h"
#include "model_options.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

// What a crash costs at most, until the run has lasted so long that a thousandth of it is more: the journal then grows
// with the logarithm of the time.
constexpr std::chrono::seconds kMinInterval{1};
constexpr int kIntervalsPerRun = 1000;

}  // namespace

ResultWriter::ResultWriter(const classifier::ClassifierConfig& config, const io::ResultFormat& format, Output& output,
                           Progress& progress, RunStart start, io::Journal* journal)
    : config_(config),
      format_(format),
      output_(output),
      progress_(progress),
      journal_(journal),
      handed_over_(start.done),
      counted_(start.done),
      checksum_(std::move(start.checksum)),
      next_checkpoint_(start_ + kMinInterval) {
  if (start.done.num_bytes == 0) put(io::result_header(format_));
}

void ResultWriter::write(const classifier::RecordResult& record) {
  io::Result result;
  result.index = record.index;
  result.error = record.error;
  std::string label;
  if (record.label_idx >= 0) label = class_name(config_, record.label_idx);
  result.label = label;
  result.probability = record.probability;
  result.logits = record.logits;
  result.expert_weights = record.router_weights;
  result.text = record.text;
  io::append_result(format_, result, pending_);
  ++(record.error.empty() ? counted_.num_ok : counted_.num_failed);
  counted_.next_index = record.index + 1;
}

void ResultWriter::end_batch(int64_t num_written) {
  put(pending_);
  pending_.clear();
  handed_over_ = counted_;
  const Clock::time_point now = Clock::now();
  if (journal_ != nullptr && now >= next_checkpoint_) {
    checkpoint();
    next_checkpoint_ = Clock::now() + std::max<Clock::duration>(kMinInterval, (now - start_) / kIntervalsPerRun);
  } else {
    output_.flush();
  }
  progress_.update(num_written);
}

void ResultWriter::checkpoint() {
  if (journal_ == nullptr) {
    output_.flush();
    return;
  }
  output_.sync();
  try {
    journal_->append(done());
  } catch (const Error& error) {
    throw Incomplete(error.what());
  }
}

io::Checkpoint ResultWriter::done() const {
  io::Checkpoint checkpoint = handed_over_;
  checkpoint.num_bytes = output_.num_bytes();
  checkpoint.checksum = checksum_->hex();
  return checkpoint;
}

void ResultWriter::put(const std::string& bytes) {
  output_.write(bytes);
  checksum_->update(bytes);
}

}  // namespace tessera::cli
