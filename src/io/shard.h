// Which records of an input one of several processes labels, and a reader of just those.
//
//   Shard shard{.index = 0, .count = 4};
//   auto reader = open_records(source);
//   auto mine = select_records(std::move(reader), shard_records(shard, is_binary ? reader->num_records_hint() : -1));
//
// Where the number of records N is known, a shard is one range, [N i / n, N (i + 1) / n). Where it is not (the text
// formats), blocks of kShardBlockRecords records take turns: block b belongs to shard b mod n, so that every process
// reads the input once and nobody has to count it before. Records keep their index in the whole input.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

#include "io/records.h"

namespace tessera::io {

/// Bounded by the files that a merge has open at once.
inline constexpr int64_t kMaxShards = 1000;
inline constexpr int64_t kShardBlockRecords = 1024;
inline constexpr int64_t kUnknownEnd = int64_t{1} << 60;

struct Shard {
  int64_t index = 0;
  int64_t count = 1;

  bool operator==(const Shard&) const = default;
};

/// "2/8"; throws Error naming "shard" for anything but 0 <= i < n <= kMaxShards.
Shard parse_shard(std::string_view text);

/// OUTPUT.2-of-8
std::filesystem::path part_path(const std::filesystem::path& output, const Shard& shard);

/// Half-open; empty where begin == end.
struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;

  bool operator==(const IndexRange&) const = default;
};

/// The indices [begin + k stride, begin + k stride + block) for k = 0, 1, ..., as far as they are below `end`.
struct RecordBlocks {
  int64_t begin = 0;
  int64_t end = kUnknownEnd;
  int64_t block = kUnknownEnd;   ///< at most stride
  int64_t stride = kUnknownEnd;  ///< at least 1

  /// What is left at or behind `index` of the first block that reaches beyond it; empty, at `end`, if there is none.
  IndexRange next_range(int64_t index) const;
  /// In all of [begin, min(end, limit)).
  int64_t num_records(int64_t limit = kUnknownEnd) const;

  bool operator==(const RecordBlocks&) const = default;
};

/// `num_records` < 0: unknown, blocks that take turns.
RecordBlocks shard_records(const Shard& shard, int64_t num_records);

/// Hands out the records of `blocks` from index `first_index` on, with their own indices.
class SelectedReader : public RecordReader {
 public:
  /// `stop`: as in RecordSource, also ends a long skip; may be null.
  SelectedReader(std::unique_ptr<RecordReader> reader, const RecordBlocks& blocks, int64_t first_index,
                 const std::atomic<bool>* stop);

  bool next(int64_t max_records, RecordBatch& batch) override;
  /// Those that are still to come from `first_index` on, or -1.
  int64_t num_records_hint() const override;
  std::vector<std::string> kept_names() const override { return reader_->kept_names(); }
  int64_t num_blank_lines() const override { return reader_->num_blank_lines(); }
  int64_t bytes_read() const override { return reader_->bytes_read(); }
  int64_t num_bytes_hint() const override { return reader_->num_bytes_hint(); }

  /// Records of the whole input, once `next` has said that it has ended; -1 before, and after a stop.
  int64_t num_input_records() const { return num_input_records_; }

 private:
  bool pass_over(int64_t count);
  bool end_at(int64_t num_records);

  std::unique_ptr<RecordReader> reader_;
  RecordBlocks blocks_;
  int64_t first_index_;
  const std::atomic<bool>* stop_;
  int64_t position_ = 0;    // index of the record that `reader_` hands out next
  int64_t next_index_ = 0;  // behind the last record handed out
  int64_t num_input_records_ = -1;
};

}  // namespace tessera::io
