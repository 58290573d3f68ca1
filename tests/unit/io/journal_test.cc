#include "io/journal.h"

#include <gtest/gtest.h>

#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

const Fingerprint kRun{{"model", "a \"model\""}, {"precision", "fp32"}};

Checkpoint checkpoint(int64_t num_records) {
  return {.num_ok = num_records - 1,
          .num_failed = 1,
          .next_index = num_records + 5,
          .num_bytes = static_cast<uint64_t>(num_records) * 10,
          .checksum = str_cat("sum", num_records)};
}

class JournalTest : public ::testing::Test {
 protected:
  std::string read_error() const {
    return error_of([&] { read_journal(path_); });
  }

  TempDir dir_;
  std::filesystem::path path_ = dir_ / "o.journal";
};

TEST_F(JournalTest, the_last_checkpoint_counts) {
  Journal journal(path_, kRun);
  for (const int64_t num_records : {1, 4, 4, 9}) {
    journal.append(checkpoint(num_records));
    const auto content = read_journal(path_);
    ASSERT_TRUE(content.has_value());
    EXPECT_EQ(content->last, checkpoint(num_records));
    EXPECT_NO_THROW(require_equal(kRun, content->fingerprint, "o.journal"));
  }
  const std::string text = read_file(path_);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5);
}

TEST_F(JournalTest, nothing_is_written_before_the_first_checkpoint) {
  { Journal journal(path_, kRun); }
  EXPECT_FALSE(read_journal(path_).has_value());
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(JournalTest, a_new_run_replaces_what_is_there) {
  Journal(path_, kRun).append(checkpoint(9));
  Journal(path_, {{"model", "b"}}).append(checkpoint(2));
  const auto content = read_journal(path_);
  EXPECT_EQ(content->last, checkpoint(2));
  EXPECT_EQ(content->fingerprint.size(), 1u);
}

TEST_F(JournalTest, a_torn_last_line_is_as_good_as_none_wherever_it_is_torn) {
  Journal journal(path_, kRun);
  journal.append(checkpoint(3));
  const size_t whole = read_file(path_).size();
  journal.append(checkpoint(7));
  const std::string text = read_file(path_);
  for (size_t size = 0; size <= text.size(); ++size) {
    write_file(path_, text.substr(0, size));
    const auto content = read_journal(path_);
    ASSERT_EQ(content.has_value(), size >= whole) << size;
    if (content) {
      EXPECT_EQ(content->last, checkpoint(size == text.size() ? 7 : 3)) << size;
    }
  }
}

TEST_F(JournalTest, an_append_after_a_failed_one_repairs_the_file) {
  Journal journal(path_, kRun);
  journal.append(checkpoint(3));
  std::filesystem::rename(path_, dir_ / "away");
  std::filesystem::create_directory(path_);
  EXPECT_THROW(journal.append(checkpoint(4)), Error);
  std::filesystem::remove(path_);
  write_file(path_, read_file(dir_ / "away") + "{\"ok\":");  // as a full disk leaves it
  journal.append(checkpoint(5));
  EXPECT_EQ(read_journal(path_)->last, checkpoint(5));
}

TEST_F(JournalTest, damage_is_an_error_that_names_the_line) {
  Journal journal(path_, kRun);
  journal.append(checkpoint(3));
  journal.append(checkpoint(7));
  const std::string text = read_file(path_);
  const size_t first_end = text.find('\n');
  const size_t second_end = text.find('\n', first_end + 1);
  const std::string head = text.substr(0, first_end + 1);
  const std::string second = text.substr(first_end + 1, second_end - first_end);
  const struct {
    std::string content;
    std::string expected;
  } cases[] = {
      {"\n" + second, "line 1: got nothing"},
      {std::string(200, '\0') + "\n" + second, "line 1"},
      {"\xEF\xBB\xBF" + head + second, "line 1"},
      {"{}\n" + second, "line 1: 'format': got no such key"},
      {"[]\n" + second, "line 1"},
      {std::string(100'000, '[') + "\n", "line 1"},
      {"{\"format\":\"other\",\"version\":1,\"fingerprint\":{}}\n", "'format': got 'other'"},
      {"{\"format\":\"tessera-journal\",\"version\":2,\"fingerprint\":{}}\n", "'version': got 2"},
      {"{\"format\":\"tessera-journal\",\"version\":1}\n", "'fingerprint': got no such key"},
      {"{\"format\":\"tessera-journal\",\"version\":1,\"fingerprint\":[]}\n", "'fingerprint': got no object"},
      {"{\"format\":\"tessera-journal\",\"version\":1,\"fingerprint\":{\"a\":1}}\n", "'a': got no string"},
      {head + "half a li\n" + second, "line 2"},
      {head + "{\"ok\":1}\n", "line 2: 'failed': got no such key"},
      {head + "{\"ok\":-1,\"failed\":0,\"next_index\":0,\"bytes\":0,\"checksum\":\"\"}\n", "'ok': got -1"},
      {head + "{\"ok\":1.0,\"failed\":0,\"next_index\":1,\"bytes\":0,\"checksum\":\"\"}\n", "'ok': got 1.0"},
      {head + "{\"ok\":9223372036854775807,\"failed\":0,\"next_index\":1,\"bytes\":0,\"checksum\":\"\"}\n",
       "'ok': got"},
      {head + "{\"ok\":5,\"failed\":1,\"next_index\":5,\"bytes\":0,\"checksum\":\"\"}\n", "'next_index': got 5"},
      {head + "{\"ok\":5,\"ok\":5,\"failed\":1,\"next_index\":6,\"bytes\":0,\"checksum\":\"\"}\n", "twice"},
      {text + second, "line 4: got less than the line before it"},
  };
  for (const auto& [content, expected] : cases) {
    write_file(path_, content);
    expect_contains(read_error(), expected);
    expect_contains(read_error(), path_.string());
  }
}

TEST_F(JournalTest, only_a_regular_file_of_bounded_size_is_read) {
  std::filesystem::create_directory(path_);
  expect_contains(read_error(), "got a directory");
  std::filesystem::remove(path_);
  write_file(path_, "");
  std::filesystem::resize_file(path_, kMaxJournalBytes + 1);
  expect_contains(read_error(), "expected at most");
  std::filesystem::remove(path_);
  std::filesystem::create_symlink(dir_ / "nowhere", path_);
  expect_contains(read_error(), "cannot open");
}

TEST(Fingerprint, a_difference_is_named_with_both_values) {
  const Fingerprint other{{"model", "a \"model\""}, {"precision", "bf16"}};
  expect_contains(error_of([&] { require_equal(kRun, other, "o.journal"); }),
                  "o.journal: made by another run: 'precision': got 'bf16', expected 'fp32'");
  const Fingerprint fewer{{"model", "a \"model\""}};
  expect_contains(error_of([&] { require_equal(kRun, fewer, "o"); }), "'precision': got nothing, expected 'fp32'");
  expect_contains(error_of([&] { require_equal(fewer, kRun, "o"); }), "'precision': got 'fp32', expected nothing");
  EXPECT_NO_THROW(require_equal({{"a", "1"}, {"b", "2"}}, {{"b", "2"}, {"a", "1"}}, "o")) << "in any order";
}

}  // namespace
}  // namespace tessera::io
