#include "record_sample.h"

#include <algorithm>

namespace tessera::cli {

namespace {

constexpr int64_t kReadSize = 64;  // embeddings of the full-size model: 16 MiB

/// Grows `rows` by row `i` of `from`.
template <class T>
void append_row(const Buffer<T>& from, int64_t i, int64_t row_size, int64_t num_rows, Buffer<T>& rows) {
  if (from.empty()) return;
  std::copy_n(from.data() + i * row_size, row_size, rows.data() + num_rows * row_size);
}

class SampleReader : public io::RecordReader {
 public:
  explicit SampleReader(const RecordSample& sample) : sample_(sample) {}

  bool next(int64_t max_records, io::RecordBatch& batch) override {
    const io::RecordBatch& all = sample_.records;
    const int64_t count = std::min(max_records, all.num_records - next_);
    batch = {};
    batch.first_index = next_;
    batch.num_records = count;
    batch.errors.assign(all.errors.begin() + next_, all.errors.begin() + next_ + count);
    for (int64_t i = next_; i < next_ + count && !all.texts.empty(); ++i) {
      batch.texts.push_back(all.texts[static_cast<size_t>(i)]);
    }
    copy_rows(all.ids, sample_.ids_per_record, count, batch.ids);
    copy_rows(all.embeddings, sample_.floats_per_record, count, batch.embeddings);
    next_ += count;
    return count > 0;
  }
  int64_t num_records_hint() const override { return sample_.records.num_records; }
  int64_t bytes_read() const override { return 0; }
  int64_t num_bytes_hint() const override { return -1; }

 private:
  template <class T>
  void copy_rows(const Buffer<T>& from, int64_t row_size, int64_t count, Buffer<T>& to) const {
    if (from.empty()) return;
    to = Buffer<T>(static_cast<size_t>(count * row_size));
    std::copy_n(from.data() + next_ * row_size, count * row_size, to.data());
  }

  const RecordSample& sample_;
  int64_t next_ = 0;
};

}  // namespace

std::unique_ptr<io::RecordReader> RecordSample::reader() const { return std::make_unique<SampleReader>(*this); }

RecordSample take_sample(io::RecordReader& reader, int64_t count, const classifier::ClassifierConfig& config) {
  const int64_t total = reader.num_records_hint();
  RecordSample sample;
  sample.ids_per_record = config.sequence_length;
  sample.floats_per_record = config.embedding_size * config.sequence_length;
  io::RecordBatch& kept = sample.records;
  io::RecordBatch batch;
  while (kept.num_records < count && reader.next(kReadSize, batch)) {
    if (kept.errors.empty()) {
      const size_t capacity = static_cast<size_t>(total >= 0 ? std::min(count, total) : count);
      if (!batch.ids.empty()) kept.ids = Buffer<int32_t>(capacity * static_cast<size_t>(sample.ids_per_record));
      if (!batch.embeddings.empty()) {
        kept.embeddings = Buffer<float>(capacity * static_cast<size_t>(sample.floats_per_record));
      }
    }
    for (int64_t i = 0; i < batch.num_records && kept.num_records < count; ++i) {
      const int64_t index = batch.first_index + i;
      // Record `index` is taken when the even spread of `count` over `total` reaches a new integer with it.
      if (total > count && index * count / total < kept.num_records) continue;
      append_row(batch.ids, i, sample.ids_per_record, kept.num_records, kept.ids);
      append_row(batch.embeddings, i, sample.floats_per_record, kept.num_records, kept.embeddings);
      if (!batch.texts.empty()) kept.texts.push_back(batch.texts[static_cast<size_t>(i)]);
      kept.errors.push_back(batch.errors[static_cast<size_t>(i)]);
      sample.indices.push_back(index);
      ++kept.num_records;
    }
  }
  return sample;
}

}  // namespace tessera::cli
