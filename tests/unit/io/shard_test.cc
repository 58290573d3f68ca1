#include "io/shard.h"

#include <gtest/gtest.h>

#include <numeric>

#include "io/record_stream.h"
#include "unit/io/record_test_util.h"

namespace tessera::io {
namespace {

/// Every index below `limit` that `blocks` hold, by walking the ranges.
std::vector<int64_t> indices(const RecordBlocks& blocks, int64_t limit) {
  std::vector<int64_t> out;
  for (int64_t index = 0;;) {
    const IndexRange range = blocks.next_range(index);
    if (range.begin == range.end || range.begin >= limit) return out;
    EXPECT_GE(range.begin, index);
    for (index = range.begin; index < std::min(range.end, limit); ++index) out.push_back(index);
    index = range.end;
  }
}

TEST(Shard, is_written_i_of_n) {
  EXPECT_EQ(parse_shard("0/1"), (Shard{0, 1}));
  EXPECT_EQ(parse_shard("7/8"), (Shard{7, 8}));
  EXPECT_EQ(parse_shard("999/1000"), (Shard{999, 1000}));
  for (const char* text : {"", "/", "1", "1/", "/2", "2/2", "3/2", "-1/2", "+1/2", " 1/2", "1/2 ", "1/2/3", "0/0",
                           "0/1001", "1.0/2", "0x1/2", "99999999999999999999/2", "0/99999999999999999999", "a/b"}) {
    expect_contains(error_of([&] { parse_shard(text); }), "shard: got '");
  }
  EXPECT_EQ(part_path("a/labels.csv", {2, 8}), "a/labels.csv.2-of-8");
}

TEST(Shard, every_record_belongs_to_exactly_one) {
  for (const bool known : {false, true}) {
    for (const int64_t num_shards : {1, 2, 3, 7, 64}) {
      for (const int64_t num_records : {0, 1, 2, 63, 1023, 1024, 1025, 5000}) {
        std::vector<int> owners(static_cast<size_t>(num_records));
        int64_t total = 0;
        for (int64_t i = 0; i < num_shards; ++i) {
          const RecordBlocks blocks = shard_records({i, num_shards}, known ? num_records : -1);
          const std::vector<int64_t> mine = indices(blocks, num_records);
          for (const int64_t index : mine) ++owners[static_cast<size_t>(index)];
          EXPECT_EQ(blocks.num_records(num_records), static_cast<int64_t>(mine.size())) << i << "/" << num_shards;
          total += blocks.num_records(num_records);
          if (known) {
            EXPECT_EQ(blocks.begin, num_records * i / num_shards);
            EXPECT_EQ(blocks.end, num_records * (i + 1) / num_shards);
          }
        }
        EXPECT_EQ(total, num_records);
        EXPECT_EQ(std::count(owners.begin(), owners.end(), 1), num_records) << num_shards << " shards";
      }
    }
  }
}

TEST(Shard, of_an_unknown_number_takes_every_nth_block) {
  const RecordBlocks blocks = shard_records({1, 3}, -1);
  EXPECT_EQ(blocks.next_range(0), (IndexRange{1024, 2048}));
  EXPECT_EQ(blocks.next_range(1500), (IndexRange{1500, 2048}));
  EXPECT_EQ(blocks.next_range(2047), (IndexRange{2047, 2048}));
  EXPECT_EQ(blocks.next_range(2048), (IndexRange{4 * 1024, 5 * 1024}));
}

TEST(Shard, counts_of_a_huge_input_do_not_overflow) {
  const int64_t huge = kUnknownEnd - 1;
  int64_t next = 0;
  for (int64_t i = 0; i < kMaxShards; ++i) {
    const RecordBlocks blocks = shard_records({i, kMaxShards}, huge);
    EXPECT_EQ(blocks.begin, next);
    next = blocks.end;
  }
  EXPECT_EQ(next, huge);
}

TEST(RecordBlocks, of_hostile_numbers_end) {
  const RecordBlocks empty{.begin = 5, .end = 100, .block = 0, .stride = 7};
  EXPECT_EQ(empty.next_range(0).begin, 100);
  EXPECT_EQ(empty.next_range(50).begin, 100);
  EXPECT_EQ(empty.num_records(), 0);
  const RecordBlocks huge{.begin = kUnknownEnd, .end = kUnknownEnd, .block = kUnknownEnd, .stride = kUnknownEnd};
  EXPECT_EQ(huge.next_range(kUnknownEnd).begin, kUnknownEnd);
  EXPECT_EQ(huge.num_records(), 0);
}

// ---------------------------------------------------------------------------------------------------- skipping

/// "<index>:<text>" of every record of `reader`, in batches of `batch_size`; checks what batches promise.
Records read_selected(RecordReader& reader, int64_t batch_size) {
  Records records;
  RecordBatch batch;
  int64_t behind = 0;
  while (reader.next(batch_size, batch)) {
    EXPECT_EQ(batch.first_index - batch.num_skipped, behind);
    EXPECT_LE(batch.num_records, batch_size);
    behind = batch.first_index + batch.num_records;
    for (int64_t i = 0; i < batch.num_records; ++i) {
      const size_t position = static_cast<size_t>(i);
      const std::string value = !batch.errors[position].empty() ? "!"
                                : batch.texts.empty()           ? str_cat(batch.ids[2 * position])
                                                                : std::string(batch.texts[position]);
      records.push_back(str_cat(batch.first_index + i, ":", value));
    }
  }
  return records;
}

/// `num_records` records in a format; record 5 cannot be read where a text can be bad, record i says "i".
std::string input_of(InputFormat format, int64_t num_records) {
  std::string bytes = format == InputFormat::csv ? "id,text\n" : "";
  for (int64_t i = 0; i < num_records; ++i) {
    if (format == InputFormat::text) bytes += i == 5 ? "\xFF\n" : str_cat(i, "\n");
    if (format == InputFormat::jsonl) bytes += i == 5 ? "{\n" : str_cat("{\"text\":\"", i, "\"}\n");
    if (format == InputFormat::csv) bytes += i == 5 ? "1\n" : str_cat("\"a\nb\",\"", i, "\"\r\n");
    if (format == InputFormat::ids) {
      const int32_t row[2] = {static_cast<int32_t>(i), 0};
      bytes.append(reinterpret_cast<const char*>(row), sizeof(row));
    }
  }
  return bytes;
}

constexpr InputFormat kFormats[] = {InputFormat::text, InputFormat::jsonl, InputFormat::csv, InputFormat::ids};

class SelectTest : public ::testing::TestWithParam<InputFormat> {
 protected:
  std::unique_ptr<RecordReader> open(int64_t num_records) {
    write_file(dir_ / "input", input_of(GetParam(), num_records));
    return open_records({.format = GetParam(), .path = (dir_ / "input").string(), .sequence_length = 2});
  }
  Records all(int64_t num_records) { return read_selected(*open(num_records), 7); }
  bool is_binary() const { return GetParam() == InputFormat::ids; }

  TempDir dir_;
};

TEST_P(SelectTest, skipping_leaves_out_so_many_and_keeps_the_indices) {
  const Records whole = all(40);
  ASSERT_EQ(whole.size(), 40u);
  EXPECT_EQ(whole[39], "39:39");
  EXPECT_EQ(whole[5], is_binary() ? "5:5" : "5:!");
  for (int64_t first = 0; first <= 40; ++first) {
    auto reader = open(40);
    RecordBatch batch;
    if (first >= 3) {  // in two steps, with records read between them
      EXPECT_TRUE(reader->next(2, batch));
      EXPECT_EQ(reader->skip(first - 2), first - 2);
    } else {
      EXPECT_EQ(reader->skip(first), first);
    }
    EXPECT_EQ(reader->skip(0), 0);
    int64_t next = first;
    while (reader->next(7, batch)) {
      EXPECT_EQ(batch.first_index, next);
      next += batch.num_records;
    }
    EXPECT_EQ(next, 40);
    EXPECT_EQ(reader->bytes_read(), reader->num_bytes_hint());
  }
}

TEST_P(SelectTest, messages_name_the_line_whatever_was_skipped) {
  auto reader = open(10);
  EXPECT_EQ(reader->skip(5), 5);
  RecordBatch batch;
  ASSERT_TRUE(reader->next(1, batch));
  const std::string line = GetParam() == InputFormat::csv ? "input:12:" : "input:6:";
  if (is_binary()) {
    EXPECT_EQ(batch.errors[0], "");
  } else {
    expect_contains(batch.errors[0], line);
  }
}

TEST_P(SelectTest, skipping_beyond_the_end_says_how_many_there_were) {
  auto reader = open(10);
  EXPECT_EQ(reader->skip(4), 4);
  EXPECT_EQ(reader->skip(100), 6);
  EXPECT_EQ(reader->skip(1), 0);
  RecordBatch batch;
  EXPECT_FALSE(reader->next(5, batch));
}

TEST_P(SelectTest, shards_together_are_the_input_and_each_sees_its_end) {
  for (const int64_t num_records : {0, 3, 1024, 3000}) {
    const Records whole = all(num_records);
    for (const int64_t num_shards : {1, 2, 5}) {
      Records together;
      for (int64_t i = 0; i < num_shards; ++i) {
        auto reader = open(num_records);
        const auto blocks = shard_records({i, num_shards}, is_binary() ? reader->num_records_hint() : -1);
        SelectedReader selected(std::move(reader), blocks, 0, nullptr);
        EXPECT_EQ(selected.num_input_records(), -1);
        const Records mine = read_selected(selected, 100);
        EXPECT_EQ(selected.num_input_records(), num_records) << i << "/" << num_shards;
        together.insert(together.end(), mine.begin(), mine.end());
      }
      const auto number = [](const std::string& record) { return std::stoll(record); };
      std::sort(together.begin(), together.end(),
                [&](const std::string& a, const std::string& b) { return number(a) < number(b); });
      EXPECT_EQ(together, whole) << num_shards;
    }
  }
}

TEST_P(SelectTest, a_shard_goes_on_from_any_index) {
  auto reader = open(2500);
  const auto blocks = shard_records({1, 2}, is_binary() ? 2500 : -1);
  const Records mine = read_selected(*std::make_unique<SelectedReader>(std::move(reader), blocks, 0, nullptr), 64);
  for (const int64_t first : {0, 1, 1024, 1300, 2047, 2048, 2499, 2500}) {
    SelectedReader selected(open(2500), blocks, first, nullptr);
    Records expected;
    for (const std::string& record : mine) {
      if (std::stoll(record) >= first) expected.push_back(record);
    }
    if (is_binary()) {
      EXPECT_EQ(selected.num_records_hint(), static_cast<int64_t>(expected.size())) << first;
    }
    EXPECT_EQ(read_selected(selected, 64), expected) << first;
    EXPECT_EQ(selected.num_input_records(), 2500);
  }
}

TEST_P(SelectTest, an_input_that_ends_before_the_start_is_an_error) {
  SelectedReader selected(open(10), {}, 11, nullptr);
  RecordBatch batch;
  expect_contains(error_of([&] { selected.next(5, batch); }), "got 10 records, expected at least the 11");
}

TEST_P(SelectTest, a_stop_ends_a_long_skip) {
  std::atomic<bool> stop{true};
  SelectedReader selected(open(10), {}, 8, &stop);
  RecordBatch batch;
  EXPECT_FALSE(selected.next(5, batch));
  EXPECT_EQ(selected.num_input_records(), -1);
}

INSTANTIATE_TEST_SUITE_P(Formats, SelectTest, ::testing::ValuesIn(kFormats),
                         [](const auto& format) { return std::string(input_format_name(format.param)); });

TEST(Skip, through_a_pipe_reads_and_drops) {
  const std::string bytes = input_of(InputFormat::ids, 20);
  const Records records = with_piped_input(bytes, 5, [&] {
    auto reader = open_records({.format = InputFormat::ids, .path = "-", .sequence_length = 2});
    EXPECT_EQ(reader->skip(17), 17);
    RecordBatch batch;
    Records out;
    while (reader->next(1, batch)) out.push_back(str_cat(batch.first_index, ":", batch.ids[0]));
    return out;
  });
  EXPECT_EQ(records, (Records{"17:17", "18:18", "19:19"}));
}

TEST(Skip, a_file_that_shrank_is_found_by_the_next_read) {
  const TempDir dir;
  write_file(dir / "input", input_of(InputFormat::ids, 20));
  auto reader = open_records({.format = InputFormat::ids, .path = (dir / "input").string(), .sequence_length = 2});
  std::filesystem::resize_file(dir / "input", 40);
  EXPECT_EQ(reader->skip(10), 10);
  RecordBatch batch;
  expect_contains(error_of([&] { reader->next(5, batch); }), "bytes");
}

}  // namespace
}  // namespace tessera::io
