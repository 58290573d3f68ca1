// Readers, a classifier and a sink for testing the engine without files and without a model.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "io/records.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"

namespace tessera::classifier::testing {

inline constexpr int64_t kSequenceLength = 4;
inline constexpr int64_t kVocabSize = 1 << 20;

/// Two classes, three experts; words "w2", "w3", ... when `num_words` > 0.
inline std::shared_ptr<const Model> make_model(int64_t num_words = 0) {
  auto model = std::make_shared<Model>();
  model->config.vocab_size = num_words > 0 ? num_words : kVocabSize;
  model->config.embedding_size = 2;
  model->config.sequence_length = kSequenceLength;
  model->config.num_experts = 3;
  model->config.num_classes = 2;
  for (int64_t i = 0; i < num_words; ++i) {
    model->vocabulary.push_back(i == 0 ? "<unk>" : i == 1 ? "<pad>" : "w" + std::to_string(i));
  }
  return model;
}

/// Record i has the ids [i, 0, 0, 0], or the text given; what is planted goes wrong.
struct FakeReader : io::RecordReader {
  explicit FakeReader(int64_t num_records) : num_records_(num_records) {}
  explicit FakeReader(std::vector<std::string> texts)
      : num_records_(static_cast<int64_t>(texts.size())), texts_(std::move(texts)) {}

  bool next(int64_t max_records, io::RecordBatch& batch) override {
    if (throw_at >= 0 && next_ >= throw_at) throw std::runtime_error("planted read error");
    if (wait_at >= 0 && next_ >= wait_at) {
      while (!stop) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      return false;
    }
    if (next_ >= num_records_) return false;
    batch = {};
    batch.first_index = next_ + (skip_at >= 0 && next_ >= skip_at ? 1 : 0);
    batch.num_skipped = batch_of_selection && next_ > 0 ? kSkipped : 0;
    batch.first_index += batch_of_selection ? kSkipped * num_batches_++ : 0;
    batch.num_records = std::min(max_records, num_records_ - next_);
    if (wait_at > next_) batch.num_records = std::min(batch.num_records, wait_at - next_);
    const size_t size = static_cast<size_t>(batch.num_records);
    batch.errors.resize(size);
    if (texts_.empty()) {
      batch.ids = Buffer<int32_t>(size * kSequenceLength);
      std::fill(batch.ids.begin(), batch.ids.end(), 0);
    } else {
      batch.texts.assign(texts_.begin() + next_, texts_.begin() + next_ + batch.num_records);
    }
    for (size_t i = 0; i < size; ++i) {
      const int64_t index = next_ + static_cast<int64_t>(i);
      if (texts_.empty()) batch.ids[i * kSequenceLength] = static_cast<int32_t>(index);
      if (edit) edit(index, i, batch);
    }
    next_ += batch.num_records;
    num_taken = next_;
    return true;
  }
  int64_t num_records_hint() const override { return num_records_; }
  int64_t bytes_read() const override { return 0; }
  int64_t num_bytes_hint() const override { return -1; }

  std::function<void(int64_t index, size_t i, io::RecordBatch& batch)> edit;
  int64_t throw_at = -1;
  int64_t skip_at = -1;
  static constexpr int64_t kSkipped = 1000;
  bool batch_of_selection = false;  ///< leaves out kSkipped indices between batches
  int64_t wait_at = -1;             ///< like a pipe that stays silent after so many records
  std::atomic<bool> stop{false};
  std::atomic<int64_t> num_taken{0};

 private:
  int64_t num_records_;
  std::vector<std::string> texts_;
  int64_t next_ = 0;
  int64_t num_batches_ = 0;
};

/// Records of which some fail by themselves, so that errors are compared too.
struct FlawedReader : FakeReader {
  explicit FlawedReader(int64_t num_records) : FakeReader(num_records) {
    edit = [](int64_t index, size_t i, io::RecordBatch& batch) {
      if (index % 17 == 3) batch.ids[i * kSequenceLength + 1] = -1;
      if (index % 29 == 5) batch.errors[i] = str_cat("in.bin: record ", index, ": cut short");
    };
  }
};

/// Logits [id0, -id0], router weights [id0, id1, id2]; a record with an id outside the vocabulary gets its status.
struct FakeClassifier : Classifier {
  void run(const Batch& batch, const Outputs& outputs) override {
    if (before_run) before_run(num_runs);
    num_runs += 1;
    if (batch.num_sentences > max_sentences) throw std::bad_alloc();
    if (max_delay_us > 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % static_cast<uint64_t>(max_delay_us)));
    }
    std::this_thread::sleep_for(delay);
    if (device_fails_at >= 0 && num_runs > device_fails_at) {
      if (num_entered != nullptr) *num_entered += 1;
      std::this_thread::sleep_for(delay_of_failure);
      throw DeviceError(name + ": planted device error");
    }
    for (int64_t i = 0; i < batch.num_sentences; ++i) label(batch, outputs, i);
  }
  void label(const Batch& batch, const Outputs& outputs, int64_t i) const {
    const int32_t* ids = batch.ids + i * kSequenceLength;
    float* logits = outputs.logits + 2 * i;
    logits[0] = ids[0] == nan_id ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(ids[0]);
    logits[1] = -static_cast<float>(ids[0]);
    if (ids[0] == throw_id) throw std::runtime_error("planted classifier error");
    outputs.status[i] = RecordStatus::ok;
    for (int64_t j = 0; j < kSequenceLength; ++j) {
      if (ids[j] < 0 || ids[j] >= kVocabSize) outputs.status[i] = RecordStatus::id_out_of_range;
    }
    for (int64_t j = 0; outputs.router_weights != nullptr && j < 3; ++j) {
      outputs.router_weights[3 * i + j] = static_cast<float>(ids[j]);
    }
  }
  std::string description() const override { return "a fake"; }
  int64_t preferred_batch() const override { return preferred; }

  int64_t preferred = 16;
  int64_t max_sentences = std::numeric_limits<int64_t>::max();
  int64_t max_delay_us = 0;
  std::chrono::milliseconds delay{0};
  std::function<void(int64_t run)> before_run;
  int64_t device_fails_at = -1;  ///< this run, counted from 0, and all after it
  std::chrono::milliseconds delay_of_failure{0};
  std::atomic<int64_t>* num_entered = nullptr;  ///< counts devices that are about to fail
  std::string name = "fake";
  int32_t nan_id = -1;
  int32_t throw_id = -1;
  std::mt19937_64 random{7};
  std::atomic<int64_t> num_runs{0};
};

/// Keeps everything.
struct FakeSink : ResultSink {
  struct Kept {
    int64_t index;
    std::string error;
    std::string text;
    int64_t label_idx;
    float probability;
    std::vector<float> logits;
    std::vector<float> router_weights;
  };
  void write(const RecordResult& r) override {
    if (r.index == throw_at) throw std::runtime_error("planted write error");
    kept.push_back({r.index,
                    std::string(r.error),
                    std::string(r.text),
                    r.label_idx,
                    r.probability,
                    {r.logits.begin(), r.logits.end()},
                    {r.router_weights.begin(), r.router_weights.end()}});
    if (on_write) on_write(r.index);
  }
  void end_batch(int64_t num_written) override { ends.push_back(num_written); }

  std::vector<Kept> kept;
  std::vector<int64_t> ends;
  int64_t throw_at = -1;
  std::function<void(int64_t index)> on_write;
};

}  // namespace tessera::classifier::testing
