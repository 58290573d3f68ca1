// Input records of every format, in batches, in input order.
//
//   auto reader = open_records({.format = InputFormat::csv, .path = "reviews.csv"});
//   RecordBatch batch;
//   while (reader->next(256, batch)) { ... }
//
// A record that cannot be read (invalid UTF-8, a NUL byte, a CSV row with missing columns, a JSON line that is none) is
// still a record: it has its index and an error text, and the records after it are read. What makes the rest unreadable
// (a missing file, a header without the wanted column, a binary file whose size is no multiple of a record) is an
// Error.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/byte_input.h"
#include "io/text_arena.h"
#include "tessera/core/buffer.h"

namespace tessera::io {

enum class InputFormat : uint8_t {
  text,        ///< one record a line; a blank line is a record; a last line without newline counts
  csv,         ///< RFC 4180 with a header; the column is named by `field` (default "text", else "sentence"); blank
               ///< lines between records, and before the header, are none
  tsv,         ///< the same with tabs for commas
  jsonl,       ///< one JSON object a line; the member is named by `field` (default "text", else "sentence"); blank
               ///< lines are no records
  ids,         ///< int32 little endian [N, sequence_length]
  embeddings,  ///< fp32 little endian [N, embedding_size, sequence_length]
};

struct RecordSource {
  InputFormat format = InputFormat::text;
  std::string path = {};   ///< "-" is standard input
  std::string field = {};  ///< csv column or jsonl member; empty = default
  char delimiter = '\0';   ///< csv: between fields; NUL = the format's
  bool has_header = true;  ///< csv: else the first row is a record, and columns are called 1, 2, ...
  /// csv columns or jsonl members that go on to the result (RecordBatch::kept), or all of them.
  std::vector<std::string> keep = {};
  bool keep_all = false;
  int64_t sequence_length = 0;  ///< for ids and embeddings
  int64_t embedding_size = 0;   ///< for embeddings
  /// Optional. Once it is true a reader that waits on a pipe or terminal gives up within 100 ms, as if the input ended
  /// with the last complete record.
  const std::atomic<bool>* stop = nullptr;
  /// Optional, for the text formats: what decompresses, and makes UTF-8 of other encodings.
  ByteFilter filter = {};
};

/// Longest text record; a longer one is a failed record ("longer than ... bytes"), never held in memory whole.
inline constexpr size_t kMaxTextRecordBytes = 16u << 20;

/// A batch of text records ends early once it holds this much, so that memory is bounded whatever the lines' lengths:
/// by this, one record more, and the reader's own buffer.
inline constexpr size_t kMaxBatchTextBytes = 16u << 20;

/// A failed record has an empty text, or a row of zeros. Batches are reused: `next` keeps their memory where it fits.
struct RecordBatch {
  int64_t first_index = 0;  ///< global index of record 0, counted from 0
  /// Records right before record 0 that a reader of a selection (shard.h) left out on purpose.
  int64_t num_skipped = 0;
  int64_t num_records = 0;
  TextArena texts;                  ///< text formats: [num_records]
  TextArena kept;                   ///< where fields are kept: [num_records], as kept_fields.h packs them; else empty
  Buffer<int32_t> ids;              ///< ids: [num_records, sequence_length], or larger
  Buffer<float> embeddings;         ///< embeddings: [num_records, embedding_size, sequence_length], or larger
  std::vector<std::string> errors;  ///< [num_records], empty = readable; else says what is wrong, with the line
};

class RecordReader {
 public:
  virtual ~RecordReader() = default;
  /// Fills `batch` with 1 to `max_records` records; false, with none, when the input has ended. Blocks on a pipe for
  /// the first record; hands out what it has where no more come within 50 ms (text formats). Throws Error when the
  /// input cannot be read any further; every record before that point has been handed out then.
  virtual bool next(int64_t max_records, RecordBatch& batch) = 0;
  /// Leaves out the next `count` records without looking at what they say: returns how many there were, fewer than
  /// `count` only at the end of the input. Throws as `next` does. Here: reads and drops them.
  virtual int64_t skip(int64_t count);
  /// What the fields of RecordBatch::kept are called, in their order; empty where each record names its own (all
  /// members of jsonl), or nothing is kept.
  virtual std::vector<std::string> kept_names() const { return {}; }
  /// Records in all, where the size of the input tells (binary formats), else -1.
  virtual int64_t num_records_hint() const = 0;
  /// Blank lines passed over so far, in a format where they are no records.
  virtual int64_t num_blank_lines() const { return 0; }
  /// Bytes consumed and in all (-1 when unknown, as on a pipe), for a progress bar. Thread-safe.
  virtual int64_t bytes_read() const = 0;
  virtual int64_t num_bytes_hint() const = 0;
};

/// Opens the source (a file, a pipe, or standard input, whose bytes are read from where it stands); throws Error when
/// it cannot be read at all, be it that its first bytes are those of a compressed file or of UTF-16. A CSV header is
/// read here. UTF-8's byte order mark at the start is skipped.
std::unique_ptr<RecordReader> open_records(const RecordSource& source);

std::string_view input_format_name(InputFormat format);
/// The other way; Error naming "format" for anything else.
InputFormat parse_input_format(std::string_view name);

}  // namespace tessera::io
