// Bytes and lines of an input of records, in bounded memory. Shared by the readers of the text formats.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/records.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::io {

/// A file, a pipe or standard input, read once from front to back.
class ByteStream final : public ByteInput {
 public:
  /// Throws Error if `path` ("-" is standard input) cannot be opened or is a directory. `stop` as in RecordSource.
  ByteStream(const std::string& path, const std::atomic<bool>* stop);
  ~ByteStream() override;
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  /// Much at once of a regular file is read by several threads: one copies about 7 GB/s out of the page cache, a bus
  /// takes 55. A regular file that ends before the size it had when it was opened is an Error.
  size_t read(std::span<char> destination) override;
  bool is_ready(std::chrono::milliseconds timeout) const override;
  /// Moves a regular file's position on, at most to the end it had when it was opened. Returns by how much.
  int64_t seek_forward(int64_t num_bytes);

  const std::string& name() const override { return name_; }
  bool is_file() const override { return num_bytes_ >= 0; }
  int64_t num_bytes() const override { return num_bytes_; }  ///< from where it stood when opened
  int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }
  bool stopped() const override { return stopped_; }

 private:
  bool wait_for_bytes();
  void check_end() const;
  size_t read_pieces(std::span<char> destination);

  int descriptor_ = -1;
  std::string name_;
  bool is_named_ = false;    // a path, not standard input, whose position others may move
  int64_t file_bytes_ = -1;  // of the whole file, when it was opened
  int64_t num_bytes_ = -1;
  const std::atomic<bool>* stop_;
  bool stopped_ = false;
  std::atomic<int64_t> bytes_read_{0};
  std::unique_ptr<ThreadPool> threads_;  // made when much is first read at once
};

/// What is no text in UTF-8, by its first bytes: compressed, UTF-16, another program's format. Nothing was read of it.
class NotText : public Error {
 public:
  using Error::Error;
};

/// The bytes of a text input one at a time, or a line at a time, without the byte order mark that may stand first.
class TextStream {
 public:
  /// Throws NotText for a file whose first bytes are of another format, and Error as ByteStream does. What comes by a
  /// pipe is looked at when it comes. `filter` may be empty.
  TextStream(const std::string& path, const std::atomic<bool>* stop, const ByteFilter& filter = {});

  static constexpr int kEnd = -1;
  /// The next byte, 0..255, or kEnd.
  int get() {
    if (begin_ == end_ && !refill()) return kEnd;
    return static_cast<unsigned char>(buffer_[begin_++]);
  }

  enum class Line : uint8_t { complete, too_long, end };
  /// The next line without its "\n" or "\r\n". `too_long`: it has more than kMaxTextRecordBytes, `line` is empty, and
  /// the stream stands behind it. A last line without newline counts, unless the input was stopped. The view lives
  /// until the next call: a line that lies in the buffer whole is not copied.
  Line next_line(std::string_view& line);
  /// The same into memory of the caller.
  Line next_line(std::string& line);

  const ByteInput& bytes() const { return *stream_; }
  /// Whether the next line can be had before `deadline`, as far as the buffer and the pipe tell.
  bool has_line_before(std::chrono::steady_clock::time_point deadline) const;

 private:
  static constexpr size_t kBufferBytes = 256 << 10;
  bool refill();
  void start();
  Line gather_line(std::string& line);

  std::unique_ptr<ByteInput> stream_;
  std::vector<char> buffer_;
  std::string gathered_;  // a line that did not lie in the buffer whole
  size_t begin_ = 0;      // [begin_, end_) of buffer_ is still to be handed out
  size_t end_ = 0;
  bool started_ = false;
  bool has_newlines_ = false;  // at least one has been seen
};

/// Whether a line holds nothing but spaces and tabs.
bool is_blank(std::string_view line);

/// What makes `text` unfit as a record ("got ..., expected ..."), or empty: the same whichever way it came in.
std::string text_problem(std::string_view text);

/// The readers of each format; `open_records` chooses.
std::unique_ptr<RecordReader> open_line_records(const RecordSource& source);    // text, jsonl
std::unique_ptr<RecordReader> open_csv_records(const RecordSource& source);     // csv, tsv
std::unique_ptr<RecordReader> open_binary_records(const RecordSource& source);  // ids, embeddings

/// Reader of a text format: batches what `read_record` yields one at a time.
class TextRecordReader : public RecordReader {
 public:
  explicit TextRecordReader(const RecordSource& source)
      : input_(source.path, source.stop, source.filter), keeps_fields_(source.keep_all || !source.keep.empty()) {}

  bool next(int64_t max_records, RecordBatch& batch) final;
  int64_t skip(int64_t count) final;
  int64_t num_records_hint() const final { return -1; }
  int64_t bytes_read() const final { return input_.bytes().bytes_read(); }
  int64_t num_bytes_hint() const final { return input_.bytes().num_bytes(); }
  int64_t num_blank_lines() const final { return num_blank_lines_; }

 protected:
  /// The next record: its text, or an empty text and an error, which are empty before. The view lives until the next
  /// call. False at the end of the input.
  virtual bool read_record(std::string_view& text, std::string& error) = 0;

  /// Passes over the next record. False at the end of the input.
  virtual bool skip_record() = 0;

  TextStream& input() { return input_; }
  /// Whether fields of the records go on to the results, and where `read_record` puts those of the record, packed;
  /// empty before.
  bool keeps_fields() const { return keeps_fields_; }
  std::string& kept() { return kept_; }
  /// "FILE:LINE", as messages name a record.
  std::string line_place(int64_t line) const;
  /// Lines that hold no record, in a format that has such lines.
  void count_blank_lines(int64_t count) { num_blank_lines_ += count; }

 private:
  bool try_read_record(std::string_view& text, std::string& error, bool batch_has_records);

  TextStream input_;
  bool keeps_fields_;
  std::string kept_;  // of the record that is being read
  int64_t num_records_ = 0;
  int64_t num_blank_lines_ = 0;
  size_t text_bytes_ = 0;  // of the last batch, as the one below: about what the next one will take
  size_t last_count_ = 0;
  std::exception_ptr failure_;  // thrown by every `next` once the records before it have been handed out
};

}  // namespace tessera::io
