#include "result_writer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "exit_codes.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

// What a crash costs at most, until the run has lasted so long that a thousandth of it is more: the journal then grows
// with the logarithm of the time.
constexpr std::chrono::seconds kMinInterval{1};
constexpr int kIntervalsPerRun = 1000;

void softmax(std::span<const float> logits, std::vector<float>& probabilities) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  probabilities.clear();
  for (const float logit : logits) {
    probabilities.push_back(static_cast<float>(std::exp(static_cast<double>(logit) - largest) / sum));
  }
}

}  // namespace

ResultWriter::ResultWriter(const classifier::ClassifierConfig& config, const io::ResultFormat& format, Output& output,
                           Progress& progress, RunStart start, io::Journal* journal, double min_probability)
    : config_(config),
      format_(format),
      output_(output),
      progress_(progress),
      journal_(journal),
      handed_over_(start.done),
      counted_(start.done),
      checksum_(std::move(start.checksum)),
      next_checkpoint_(start_ + kMinInterval),
      labels_(config, min_probability) {
  if (start.done.num_bytes == 0) put(io::result_header(format_));
}

void ResultWriter::write(const classifier::RecordResult& record) {
  io::Result result;
  result.index = record.index;
  result.error = record.error;
  if (record.error.empty()) {
    result.label = labels_.add(record);
    result.has_numbers = !LabelCounts::is_empty(record);
    result.num_tokens = record.num_words;
    result.num_unknown = record.num_unknown;
    result.is_truncated = record.num_words > config_.sequence_length;
    if (!format_.class_names.empty()) {
      softmax(record.logits, probabilities_);
      result.probabilities = probabilities_;
    }
  }
  result.probability = record.probability;
  result.logits = record.logits;
  result.expert_weights = record.router_weights;
  result.text = record.text;
  result.kept = record.kept;
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
