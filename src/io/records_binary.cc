// Formats whose records are rows of one size: token ids and embeddings.
#include <algorithm>
#include <bit>
#include <exception>

#include "io/record_stream.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

static_assert(std::endian::native == std::endian::little, "rows are read as they are in memory");

template <class T>
class BinaryRecordReader final : public RecordReader {
 public:
  /// Rows of `row_size` elements go into the batch's member `rows`.
  BinaryRecordReader(const RecordSource& source, size_t row_size, Buffer<T> RecordBatch::*rows)
      : input_(source.path, source.stop), is_named_(source.path != "-"), row_size_(row_size), rows_(rows) {
    const uint64_t remainder = input_.is_file() ? static_cast<uint64_t>(input_.num_bytes()) % row_bytes() : 0;
    if (is_named_ && remainder != 0) {
      throw Error(input_.name(), str_cat(input_.num_bytes(), " bytes"),
                  str_cat("a multiple of the ", row_bytes(), " bytes of a record"));
    }
  }

  bool next(int64_t max_records, RecordBatch& batch) override {
    TESSERA_CHECK(max_records >= 1, max_records);
    batch.first_index = num_records_;
    batch.num_records = 0;
    batch.texts.clear();
    batch.errors.clear();
    if (failure_) std::rethrow_exception(failure_);
    if (ended_) return false;
    const size_t capacity = static_cast<size_t>(
        num_records_hint() < 0 ? max_records : std::min(max_records, num_records_hint() - num_records_));
    Buffer<T>& rows = batch.*rows_;
    if (rows.size() < capacity * row_size_) rows = Buffer<T>(capacity * row_size_);
    const size_t num_bytes = fill({reinterpret_cast<char*>(rows.data()), capacity * row_bytes()});
    if (failure_ && num_bytes == 0) std::rethrow_exception(failure_);
    size_t count = num_bytes / row_bytes();
    batch.errors.resize(count);
    if (num_bytes % row_bytes() != 0) {
      std::fill_n(rows.data() + count * row_size_, row_size_, T{});
      batch.errors.push_back(str_cat(input_.name(), ": record ", num_records_ + static_cast<int64_t>(count), ": got ",
                                     num_bytes % row_bytes(), " bytes, expected ", row_bytes()));
      ++count;
    }
    batch.num_records = static_cast<int64_t>(count);
    num_records_ += batch.num_records;
    return count > 0;
  }

  int64_t skip(int64_t count) override {
    if (!input_.is_file()) return RecordReader::skip(count);
    if (failure_) std::rethrow_exception(failure_);
    const int64_t done = std::min(count, num_records_hint() - num_records_);
    // The last record of standard input may be cut short: the position never moves beyond the end.
    input_.seek_forward(done * static_cast<int64_t>(row_bytes()));
    num_records_ += done;
    return done;
  }

  int64_t num_records_hint() const override {
    if (!input_.is_file()) return -1;
    const uint64_t num_bytes = static_cast<uint64_t>(input_.num_bytes());
    return static_cast<int64_t>((num_bytes + row_bytes() - 1) / row_bytes());
  }
  int64_t bytes_read() const override { return input_.bytes_read(); }
  int64_t num_bytes_hint() const override { return input_.num_bytes(); }

 private:
  uint64_t row_bytes() const { return row_size_ * sizeof(T); }

  /// Bytes had; fewer than asked for only at the end, or before a failure. The row that a stop or a failure cuts is
  /// dropped: it is no record of the input, or the failure tells of it.
  size_t fill(std::span<char> destination) {
    size_t done = 0;
    try {
      while (done < destination.size() && !ended_) {
        const size_t count = input_.read(destination.subspan(done));
        done += count;
        ended_ = count == 0;
      }
      ended_ = ended_ || input_.bytes_read() == input_.num_bytes();
    } catch (const Error&) {
      failure_ = std::current_exception();
    }
    return failure_ || input_.stopped() ? done - done % row_bytes() : done;
  }

  ByteStream input_;
  bool is_named_;  // a path, not standard input: its size must fit
  size_t row_size_;
  Buffer<T> RecordBatch::*rows_;
  int64_t num_records_ = 0;
  bool ended_ = false;
  std::exception_ptr failure_;  // thrown by `next` once the records before it have been handed out
};

}  // namespace

std::unique_ptr<RecordReader> open_binary_records(const RecordSource& source) {
  TESSERA_CHECK(source.sequence_length >= 1, source.sequence_length);
  const size_t sequence_length = static_cast<size_t>(source.sequence_length);
  if (source.format == InputFormat::ids) {
    return std::make_unique<BinaryRecordReader<int32_t>>(source, sequence_length, &RecordBatch::ids);
  }
  TESSERA_CHECK(source.embedding_size >= 1, source.embedding_size);
  const size_t row_size = static_cast<size_t>(source.embedding_size) * sequence_length;
  return std::make_unique<BinaryRecordReader<float>>(source, row_size, &RecordBatch::embeddings);
}

}  // namespace tessera::io
