// The readers' and the tokenizer's fast paths against slow definitions, on random and malformed bytes.
#include <gtest/gtest.h>

#include <random>

#include "io/ascii_words.h"
#include "io/tokenizer.h"
#include "tessera/core/utf8.h"
#include "unit/io/record_test_util.h"

namespace tessera::io {
namespace {

const Vocabulary& vocabulary() {
  static const Vocabulary words({"<unk>", "<pad>", "a",   "can",   "cannot", "not", "gon", "gonna", "na",   "got",
                                 "gotta", "ta",    "lem", "lemme", "me",     "n",   "t",   "isn",   "'",    ".",
                                 ",",     "(",     ")",   "!",     "?",      "lrb", "is",  "`",     "<br",  "-",
                                 "can't", "--",    "br",  "wanna", "wan",    "x",   "gim", "gimme", "brrr", "//"},
                                0, 1, "test");
  return words;
}

/// What tells the rules apart, and what breaks them.
constexpr std::string_view kPieces[] = {
    "a",      "can",    "not",   "gon",   "wan",      "na",     "got", "ta", "gim",    "lem",    "me",     "n't",
    " ",      " ",      " ",     " ",     " ",        " ",      "  ",  "\t", "\n",     "\r",     "\x1f",   "\x0b",
    "-",      "--",     "-lrb-", "-RRB-", "-lrb",     "'",      "\"",  ".",  ",",      "(",      ")",      "!",
    "?",      ";",      ":",     "CAN",   "N'T",      "is",     "x",   "1",  "Z",      "\x7f",   "@",      "[",
    "{",      "\x01",   "%",     "''",    "`",        "<br />", "<",   "/>", "\u2019", "\u00e9", "\u201c", "\u00a0",
    "\u0130", "\u2026", "\xFF",  "\xC3",  "\xE2\x80", "Gon",    "Not"};
constexpr size_t kNumAscii = 51, kNumWellFormed = 62;
static_assert(kPieces[kNumAscii] == "''" && kPieces[kNumWellFormed] == "\xFF");

std::string random_text(std::mt19937& random, size_t num_pieces, size_t num_kinds) {
  std::string text;
  for (; num_pieces > 0; --num_pieces) text += kPieces[random() % num_kinds];
  return text;
}

struct Expected {
  std::vector<int32_t> ids;
  int64_t num_words = 0;
  int64_t num_unknown = 0;
};

/// Words first, then a look-up for each.
Expected encode_by_definition(const Tokenizer& tokenizer, const std::string& text, size_t sequence_length) {
  const std::vector<std::string> words = tokenizer.tokenize(text);
  Expected expected{.ids = std::vector<int32_t>(sequence_length, vocabulary().pad_id()),
                    .num_words = static_cast<int64_t>(words.size()),
                    .num_unknown = 0};
  for (size_t i = 0; i < std::min(words.size(), sequence_length); ++i) {
    expected.ids[i] = vocabulary().id(words[i]);
    expected.num_unknown += expected.ids[i] == vocabulary().unknown_id() ? 1 : 0;
  }
  return expected;
}

void expect_same_encoding(const Tokenizer& tokenizer, const std::string& text, size_t sequence_length) {
  std::vector<int32_t> ids(sequence_length + 2, -7);
  const std::span<int32_t> inner = std::span(ids).subspan(1, sequence_length);
  if (utf8_first_invalid(text) != std::string::npos) {
    EXPECT_THROW(tokenizer.encode(text, vocabulary(), inner), Error);
    EXPECT_EQ(ids, std::vector<int32_t>(sequence_length + 2, -7)) << "an error changes nothing";
    return;
  }
  const Expected expected = encode_by_definition(tokenizer, text, sequence_length);
  const Tokenizer::Encoding encoding = tokenizer.encode(text, vocabulary(), inner);
  ASSERT_EQ(std::vector<int32_t>(inner.begin(), inner.end()), expected.ids) << text;
  ASSERT_EQ(encoding.num_words, expected.num_words) << text;
  ASSERT_EQ(encoding.num_unknown, expected.num_unknown) << text;
  ASSERT_TRUE(ids.front() == -7 && ids.back() == -7);
}

TEST(FastPaths, EncodingIsTokenizingLookedUp) {
  std::mt19937 random(11);
  for (const TextNormalization normalization : {TextNormalization::reviews, TextNormalization::none}) {
    const Tokenizer tokenizer(normalization);
    for (int i = 0; i < 60'000; ++i) {
      const size_t num_kinds = i % 4 != 0 ? kNumAscii : i % 8 == 0 ? std::size(kPieces) : kNumWellFormed;
      ASSERT_NO_FATAL_FAILURE(
          expect_same_encoding(tokenizer, random_text(random, random() % 14, num_kinds), random() % 12));
    }
  }
}

TEST(FastPaths, EncodingOfTextsAroundTheLengthOfTheCopy) {
  std::mt19937 random(12);
  for (const TextNormalization normalization : {TextNormalization::reviews, TextNormalization::none}) {
    const Tokenizer tokenizer(normalization);
    for (size_t size = kMaxAsciiTextBytes - 12; size <= kMaxAsciiTextBytes + 3; ++size) {
      for (int i = 0; i < 50; ++i) {
        std::string text = random_text(random, 600, kNumAscii);
        text.resize(size - random() % 8, 'x');
        text += random_text(random, 2, kNumAscii);
        text.resize(size, ' ');
        ASSERT_NO_FATAL_FAILURE(expect_same_encoding(tokenizer, text, 512));
      }
    }
  }
}

TEST(FastPaths, RandomBytes) {
  std::mt19937 random(13);
  const Tokenizer tokenizer(TextNormalization::reviews);
  for (int i = 0; i < 20'000; ++i) {
    std::string text(random() % 40, '\0');
    for (char& byte : text) byte = static_cast<char>(random() % (i % 2 == 0 ? 128 : 256));
    ASSERT_NO_FATAL_FAILURE(expect_same_encoding(tokenizer, text, 16));
  }
}

/// So that the tests above are about the fast path at all.
TEST(FastPaths, PlainSentencesTakeIt) {
  const auto ignore = [](std::string_view) {};
  for (const char* text :
       {"", " ", "It's NOT bad, is n't it? (\"No.\")", "we can not -lrb- gon na -rrb- go; so: there"}) {
    EXPECT_TRUE(split_ascii_words(text, TextNormalization::reviews, ignore)) << text;
    EXPECT_TRUE(split_ascii_words(text, TextNormalization::none, ignore)) << text;
  }
  for (const char* text : {"caf\u00e9", "a `quote'", "a ''quote''", "<br />"}) {
    EXPECT_FALSE(split_ascii_words(text, TextNormalization::reviews, ignore)) << text;
  }
}

/// Lines one byte at a time.
Records lines_by_definition(std::string_view bytes) {
  Records lines;
  std::string line;
  const auto finish = [&] {
    while (line.ends_with('\r')) line.pop_back();
    lines.push_back(line);
    line.clear();
  };
  for (const char byte : bytes) {
    byte == '\n' ? finish() : line.push_back(byte);
  }
  // Without a newline a "\r" at the end is text.
  if (!line.empty()) lines.push_back(line);
  return lines;
}

TEST(FastPaths, LinesOfRandomText) {
  constexpr std::string_view kBytes[] = {"\n", "\r\n", "\r", "x", "\u00e9", "some words of a sentence "};
  std::mt19937 random(14);
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (size_t piece = random() % 3'000; piece > 0; --piece) text += kBytes[random() % std::size(kBytes)];
    ASSERT_TRUE(read_text(text) == lines_by_definition(text)) << i;
  }
}

TEST(FastPaths, LinesThatEndAroundTheBuffersEnd) {
  constexpr size_t kBufferBytes = 256 << 10;
  for (size_t size = kBufferBytes - 4; size <= kBufferBytes + 4; ++size) {
    for (const char* end : {"\n", "\r\n", ""}) {
      const std::string text = std::string(size, 'x') + end + (*end == '\0' ? "" : "next\r\n\nlast\r");
      ASSERT_TRUE(read_text(text) == lines_by_definition(text)) << size;
      ASSERT_TRUE(read_text("\xEF\xBB\xBF" + text) == lines_by_definition(text)) << size;
    }
  }
}

TEST(FastPaths, BadBytesAreNamedWhereverTheyAre) {
  std::mt19937 random(15);
  for (int i = 0; i < 300; ++i) {
    std::string line(1 + random() % 100, 'x');
    const size_t position = random() % line.size();
    const bool is_nul = i % 2 == 0;
    line[position] = is_nul ? '\0' : '\xFF';
    EXPECT_EQ(read_text("a\n" + line + "\nb\n"),
              (Records{"a",
                       is_nul ? str_cat("!PATH:2: got a NUL byte at byte ", position, ", expected text")
                              : str_cat("!PATH:2: got '\\xff' at byte ", position, ", expected well-formed UTF-8"),
                       "b"}));
  }
}

}  // namespace
}  // namespace tessera::io
