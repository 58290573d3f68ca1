#include "io/vocabulary.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

std::string load_error(const std::string& text, int32_t unknown_id = 0, int32_t pad_id = 1) {
  const TempDir dir;
  write_file(dir / "vocab.txt", text);
  const std::string message = error_of([&] { Vocabulary::load(dir / "vocab.txt", unknown_id, pad_id); });
  const std::string prefix = (dir / "vocab.txt").string();
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

TEST(Vocabulary, LineNumbersAreIds) {
  const TempDir dir;
  write_file(dir / "vocab.txt", "<unk>\n<pad>\nthe\ncaf\u00e9\n'");
  const Vocabulary vocabulary = Vocabulary::load(dir / "vocab.txt", 0, 1);
  EXPECT_EQ(vocabulary.size(), 5);
  EXPECT_EQ(vocabulary.unknown_id(), 0);
  EXPECT_EQ(vocabulary.pad_id(), 1);
  EXPECT_EQ(vocabulary.id("the"), 2);
  EXPECT_EQ(vocabulary.id("caf\u00e9"), 3);
  EXPECT_EQ(vocabulary.id("'"), 4);
  EXPECT_EQ(vocabulary.word(3), "caf\u00e9");
  EXPECT_EQ(vocabulary.id("The"), 0);
  EXPECT_EQ(vocabulary.id(""), 0);
}

TEST(Vocabulary, SpecialEntriesAreNotReachedByName) {
  const Vocabulary vocabulary({"a", "<pad>", "<unk>"}, 2, 1, "v");
  EXPECT_EQ(vocabulary.id("<pad>"), 2);
  EXPECT_EQ(vocabulary.id("<unk>"), 2);
  EXPECT_EQ(vocabulary.word(1), "<pad>");
  EXPECT_EQ(vocabulary.id("a"), 0);
}

// Words of every length that the table tells apart in its own way, neighbours that differ in one byte, and words that
// are not there, against a search through the list.
TEST(Vocabulary, LookUpIsASearch) {
  std::mt19937 random(3);
  std::set<std::string> distinct = {"<unk>", "<pad>"};
  std::vector<std::string> absent;
  for (int i = 0; i < 4'000; ++i) {
    std::string word;
    for (size_t size = 1 + random() % 40; size > 0; --size) word += static_cast<char>('a' + random() % 3);
    std::string neighbour = word;
    neighbour[random() % neighbour.size()] = 'z';
    distinct.insert(word);
    (i % 2 == 0 ? absent.push_back(neighbour) : static_cast<void>(distinct.insert(neighbour)));
    absent.push_back(word + word.back());
    if (word.size() > 1) absent.push_back(word.substr(1));
  }
  std::vector<std::string> words(distinct.begin(), distinct.end());
  std::shuffle(words.begin(), words.end(), random);
  const auto place = [&](const std::string& word) {
    return static_cast<int32_t>(std::find(words.begin(), words.end(), word) - words.begin());
  };
  const int32_t unknown_id = place("<unk>");
  const Vocabulary vocabulary(words, unknown_id, place("<pad>"), "v");
  for (size_t i = 0; i < words.size(); ++i) {
    const bool is_special = words[i] == "<unk>" || words[i] == "<pad>";
    ASSERT_EQ(vocabulary.id(words[i]), is_special ? unknown_id : static_cast<int32_t>(i)) << words[i];
  }
  size_t num_absent = 0;
  for (const std::string& word : absent) {
    const bool is_there = distinct.contains(word);
    ASSERT_EQ(vocabulary.id(word), is_there ? place(word) : unknown_id) << word;
    num_absent += is_there ? 0 : 1;
  }
  EXPECT_GT(num_absent, 3'000u);
}

// Words of one letter differ in nothing but their size.
TEST(Vocabulary, SizesTellWordsApart) {
  for (char letter = '!'; letter <= '~'; ++letter) {
    std::vector<std::string> words = {"<unk>", "<pad>"};
    for (size_t size = 1; size <= 23; size += 2) words.emplace_back(size, letter);
    const Vocabulary vocabulary(words, 0, 1, "v");
    for (size_t size = 1; size <= 24; ++size) {
      ASSERT_EQ(vocabulary.id(std::string(size, letter)), size % 2 == 0 ? 0 : static_cast<int32_t>(size / 2) + 2)
          << letter << " " << size;
    }
  }
}

TEST(Vocabulary, LongSpecialEntriesAndDuplicatesOfLongWords) {
  const std::string unknown(20, 'u'), pad(300, 'p'), word(17, 'w');
  const Vocabulary vocabulary({pad, word, unknown}, 2, 0, "v");
  EXPECT_EQ(vocabulary.id(pad), 2);
  EXPECT_EQ(vocabulary.id(unknown), 2);
  EXPECT_EQ(vocabulary.id(word), 1);
  EXPECT_EQ(vocabulary.id(word + "w"), 2);
  EXPECT_EQ(load_error(word + "\n" + pad + "\n" + word + "\n"),
            ":3: got '" + word + "' again, expected every word once; it is in line 1");
}

TEST(Vocabulary, OneWord) {
  const Vocabulary vocabulary({"a"}, 0, 0, "v");
  for (const char* word : {"a", "b", "", "a much longer word than that"}) EXPECT_EQ(vocabulary.id(word), 0);
}

TEST(Vocabulary, ALastLineBreakIsNoWord) {
  EXPECT_EQ(load_error("<unk>\n<pad>\n"), "no error");
  EXPECT_EQ(load_error("<unk>\n<pad>"), "no error");
  expect_contains(load_error("<unk>\n<pad>\n\n"), ":3: got an empty line, expected one word a line");
}

TEST(Vocabulary, ErrorsNameFileAndLine) {
  EXPECT_EQ(load_error(""), ": got 0 words, expected 1 to 16777216, one a line");
  EXPECT_EQ(load_error("a\nb\na\n"), ":3: got 'a' again, expected every word once; it is in line 1");
  EXPECT_EQ(load_error("a\nb c\n"), ":2: got white space in 'b c', expected one word a line");
  EXPECT_EQ(load_error("a\nb\r\n"), ":2: got white space in 'b\\x0d', expected one word a line");
  EXPECT_EQ(load_error("a\nb\u00a0c\n"), ":2: got white space in 'b\u00a0c', expected one word a line");
  EXPECT_EQ(load_error("a\nb\xff\n"), ":2: got invalid UTF-8 in 'b\\xff', expected one word a line");
  EXPECT_EQ(load_error("\xEF\xBB\xBF"
                       "a\nb\n"),
            ":1: got a byte order mark, expected one word a line");
  EXPECT_EQ(load_error("a\n\nb\n"), ":2: got an empty line, expected one word a line");
}

TEST(Vocabulary, SpecialIdsMustExist) {
  EXPECT_EQ(load_error("a\nb\n", 2, 1), ": got unknown_id 2, expected an id below the 2 words of the vocabulary");
  EXPECT_EQ(load_error("a\nb\n", 0, -1), ": got pad_id -1, expected an id below the 2 words of the vocabulary");
}

TEST(Vocabulary, FileErrors) {
  const TempDir dir;
  expect_contains(error_of([&] { Vocabulary::load(dir / "missing", 0, 1); }), "missing: cannot open");
  expect_contains(error_of([&] { Vocabulary::load(dir.path(), 0, 1); }), "got a directory, expected a regular file");
  write_file(dir / "large", "");
  std::filesystem::resize_file(dir / "large", kMaxVocabularyBytes + 1);  // a hole: takes no disk
  expect_contains(error_of([&] { Vocabulary::load(dir / "large", 0, 1); }),
                  "got 268435457 bytes, expected at most 268435456");
}

}  // namespace
}  // namespace tessera::io
