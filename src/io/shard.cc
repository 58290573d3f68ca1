#include "io/shard.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::io {

namespace {

constexpr int64_t kRecordsAtOnce = 1 << 16;  // passed over between two looks at the stop

/// The whole of `text` as a number without a sign; -1 if it is none.
int64_t parse_count(std::string_view text) {
  int64_t value = -1;
  if (text.empty() || text.front() < '0' || text.front() > '9') return -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : -1;
}

/// floor(num_records * i / n), where the product may not fit.
int64_t range_begin(int64_t num_records, int64_t i, int64_t n) { return num_records / n * i + num_records % n * i / n; }

}  // namespace

Shard parse_shard(std::string_view text) {
  const size_t slash = text.find('/');
  Shard shard{.index = parse_count(text.substr(0, slash)), .count = -1};
  if (slash != std::string_view::npos) shard.count = parse_count(text.substr(slash + 1));
  if (shard.index < 0 || shard.count > kMaxShards || shard.index >= shard.count) {
    throw Error("shard", quote(text), str_cat("I/N with 0 <= I < N <= ", kMaxShards));
  }
  return shard;
}

std::filesystem::path part_path(const std::filesystem::path& output, const Shard& shard) {
  std::filesystem::path path = output;
  path += str_cat(".", shard.index, "-of-", shard.count);
  return path;
}

IndexRange RecordBlocks::next_range(int64_t index) const {
  TESSERA_CHECK(index >= 0 && begin >= 0 && stride >= 1 && block <= stride, index, begin, stride, block);
  int64_t block_begin = begin;
  if (index > begin) {
    block_begin += (index - begin) / stride * stride;
    if (index >= block_begin + block) block_begin += stride;
  }
  const IndexRange range{.begin = std::max(block_begin, index), .end = std::min(block_begin + block, end)};
  return range.begin < range.end ? range : IndexRange{.begin = end, .end = end};
}

int64_t RecordBlocks::num_records(int64_t limit) const {
  const int64_t length = std::max<int64_t>(std::min(end, limit) - begin, 0);
  return length / stride * block + std::min(length % stride, block);
}

RecordBlocks shard_records(const Shard& shard, int64_t num_records) {
  TESSERA_CHECK(shard.index >= 0 && shard.index < shard.count && shard.count <= kMaxShards, shard.index, shard.count);
  TESSERA_CHECK(num_records < kUnknownEnd, num_records);
  if (num_records < 0) {
    return {.begin = shard.index * kShardBlockRecords,
            .end = kUnknownEnd,
            .block = kShardBlockRecords,
            .stride = shard.count * kShardBlockRecords};
  }
  const int64_t begin = range_begin(num_records, shard.index, shard.count);
  const int64_t end = range_begin(num_records, shard.index + 1, shard.count);
  return {.begin = begin, .end = end, .block = end - begin, .stride = std::max<int64_t>(end - begin, 1)};
}

SelectedReader::SelectedReader(std::unique_ptr<RecordReader> reader, const RecordBlocks& blocks, int64_t first_index,
                               const std::atomic<bool>* stop)
    : reader_(std::move(reader)), blocks_(blocks), first_index_(first_index), stop_(stop) {
  TESSERA_CHECK(reader_ != nullptr && first_index >= 0, first_index);
}

bool SelectedReader::next(int64_t max_records, RecordBatch& batch) {
  TESSERA_CHECK(max_records >= 1, max_records);
  const IndexRange range = blocks_.next_range(std::max(position_, first_index_));
  const bool is_over = range.begin == range.end;
  if (is_over && reader_->num_records_hint() >= 0) return end_at(reader_->num_records_hint());
  if (!pass_over((is_over ? kUnknownEnd : range.begin) - position_)) return false;
  if (!reader_->next(std::min(max_records, range.end - range.begin), batch)) return end_at(position_);
  TESSERA_CHECK(batch.first_index == range.begin, batch.first_index, range.begin);
  batch.num_skipped = batch.first_index - next_index_;
  position_ = next_index_ = batch.first_index + batch.num_records;
  return true;
}

/// False when the input ended, or a stop came, before.
bool SelectedReader::pass_over(int64_t count) {
  while (count > 0) {
    if (stop_ != nullptr && stop_->load(std::memory_order_relaxed)) return false;
    const int64_t wanted = std::min(count, kRecordsAtOnce);
    const int64_t had = reader_->skip(wanted);
    position_ += had;
    count -= had;
    if (had < wanted) return end_at(position_);
  }
  return true;
}

bool SelectedReader::end_at(int64_t num_records) {
  if (stop_ == nullptr || !stop_->load(std::memory_order_relaxed)) {
    if (num_records < first_index_) {
      throw Error("input", str_cat(num_records, " records"),
                  str_cat("at least the ", first_index_, " that were read the first time"));
    }
    num_input_records_ = num_records;
  }
  return false;
}

int64_t SelectedReader::num_records_hint() const {
  const int64_t all = reader_->num_records_hint();
  if (all < 0) return -1;
  return blocks_.num_records(all) - blocks_.num_records(first_index_);
}

}  // namespace tessera::io
