#include "classifier/engine_writer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "tessera/core/check.h"

namespace tessera::classifier {

namespace {

/// Softmax of `logits` at their maximum `largest`, which no logit exceeds.
float probability_of_largest(std::span<const float> logits, float largest) {
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  return static_cast<float>(1.0 / sum);
}

}  // namespace

OrderedWriter::OrderedWriter(const ClassifierConfig& config, ResultSink& sink, size_t max_pending)
    : config_(config), sink_(sink), max_pending_(max_pending) {
  TESSERA_CHECK(max_pending >= 1, max_pending);
}

bool OrderedWriter::put(LabelledBatch batch) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return cancelled_ || batch.sequence == due_ || pending_.size() < max_pending_; });
  if (cancelled_) return false;
  const int64_t sequence = batch.sequence;
  TESSERA_CHECK(sequence >= due_ && !pending_.contains(sequence), sequence, due_);
  pending_.emplace(sequence, std::move(batch));
  changed_.notify_all();
  return true;
}

void OrderedWriter::add_room(size_t num_batches) {
  const std::lock_guard lock(mutex_);
  max_pending_ += num_batches;
  changed_.notify_all();
}

void OrderedWriter::abandon() {
  const std::lock_guard lock(mutex_);
  abandoned_ = finished_ = true;
  changed_.notify_all();
}

void OrderedWriter::finish() {
  const std::lock_guard lock(mutex_);
  finished_ = true;
  changed_.notify_all();
}

void OrderedWriter::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

void OrderedWriter::run() {
  while (true) {
    LabelledBatch batch;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return cancelled_ || finished_ || pending_.contains(due_); });
      if (cancelled_) return;
      if (!pending_.contains(due_)) {
        TESSERA_CHECK(abandoned_ || pending_.empty(), "a batch never came", due_, pending_.begin()->first);
        return;
      }
      batch = std::move(pending_.extract(due_).mapped());
      ++due_;
      changed_.notify_all();
    }
    write_batch(batch);
  }
}

void OrderedWriter::write_batch(const LabelledBatch& batch) {
  TESSERA_CHECK(batch.first_index - batch.num_skipped == next_index_, batch.first_index, batch.num_skipped, next_index_,
                batch.sequence);
  TESSERA_CHECK(batch.num_done >= 0 && batch.num_done <= batch.num_records, batch.num_done, batch.num_records);
  next_index_ = batch.first_index + batch.num_records;
  const int64_t num_written = cut_ ? 0 : batch.num_done;
  num_discarded_ += batch.num_records - num_written;
  for (int64_t i = 0; i < num_written; ++i) write_record(batch, i);
  cut_ = cut_ || batch.num_done < batch.num_records;
  if (num_written > 0) sink_.end_batch(statistics_.num_ok + statistics_.num_failed);
}

void OrderedWriter::write_record(const LabelledBatch& batch, int64_t i) {
  const size_t position = static_cast<size_t>(i);
  const size_t num_classes = static_cast<size_t>(config_.num_classes);
  const size_t num_experts = static_cast<size_t>(config_.num_experts);
  RecordResult result;
  result.index = batch.first_index + i;
  result.error = batch.errors[position];
  result.logits = batch.logits.span().subspan(position * num_classes, num_classes);
  if (!batch.texts.empty()) result.text = batch.texts[position];
  if (!batch.kept.empty()) result.kept = batch.kept[position];
  if (!result.error.empty()) {
    ++statistics_.num_failed;
    if (statistics_.failed.size() < kMaxListedFailures) {
      statistics_.failed.push_back({result.index, std::string(result.error)});
    }
  } else {
    ++statistics_.num_ok;
    const auto largest = std::max_element(result.logits.begin(), result.logits.end());
    result.label_idx = largest - result.logits.begin();
    result.probability = probability_of_largest(result.logits, *largest);
    if (!batch.router_weights.empty()) {
      result.router_weights = batch.router_weights.span().subspan(position * num_experts, num_experts);
    }
    if (!batch.encodings.empty()) {
      const io::Tokenizer::Encoding& encoding = batch.encodings[position];
      statistics_.num_truncated += encoding.num_words > config_.sequence_length;
      statistics_.num_words += encoding.num_words;
      statistics_.num_unknown += encoding.num_unknown;
      result.num_words = encoding.num_words;
      result.num_unknown = encoding.num_unknown;
    }
  }
  sink_.write(result);
}

void check_counts(const RunStatistics& statistics) {
  TESSERA_CHECK(statistics.num_read == statistics.num_ok + statistics.num_failed, statistics.num_read,
                statistics.num_ok, statistics.num_failed);
  const size_t num_listed = statistics.failed.size();
  TESSERA_CHECK(num_listed == std::min(static_cast<size_t>(statistics.num_failed), kMaxListedFailures), num_listed,
                statistics.num_failed);
}

}  // namespace tessera::classifier
