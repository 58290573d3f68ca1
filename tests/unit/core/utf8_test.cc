#include "tessera/core/utf8.h"

#include <gtest/gtest.h>

#include <iterator>
#include <optional>
#include <random>
#include <string>

namespace tessera {
namespace {

// UTF-8 by its definition instead of by byte ranges: take the payload bits, then ask whether the number needed them.
std::optional<char32_t> decode_by_definition(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  size_t length = 1;
  char32_t value = byte(0);
  if (byte(0) >= 0x80) {
    size_t leading_ones = 0;
    while (leading_ones < 8 && (byte(0) >> (7 - leading_ones) & 1) != 0) ++leading_ones;
    if (leading_ones < 2 || leading_ones > 4) return std::nullopt;
    length = leading_ones;
    value = byte(0) & (0x7Fu >> leading_ones);
  }
  if (bytes.size() != length) return std::nullopt;
  for (size_t i = 1; i < length; ++i) {
    if (byte(i) >> 6 != 2) return std::nullopt;
    value = value * 64 + (byte(i) & 63);
  }
  const char32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < smallest[length] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return std::nullopt;
  return value;
}

TEST(Utf8, EveryCodePointSurvivesTheRoundTrip) {
  std::string text;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    text.clear();
    utf8_append(text, c);
    ASSERT_EQ(utf8_sequence_length(text), text.size()) << static_cast<uint32_t>(c);
    ASSERT_EQ(utf8_decode(text), c);
    ASSERT_EQ(decode_by_definition(text), c);
    ASSERT_EQ(utf8_first_invalid(text), std::string::npos);
  }
}

TEST(Utf8, EverySequenceOfUpToThreeBytesIsJudgedByTheDefinition) {
  std::string text;
  for (uint32_t bits = 0; bits < 1u << 24; bits += bits < 1u << 16 ? 1 : 13) {  // 13: every byte value in every place
    for (size_t size = 1; size <= 3; ++size) {
      text.clear();
      for (size_t i = 0; i < size; ++i) text.push_back(static_cast<char>(bits >> (16 - 8 * i)));
      size_t expected = 0;
      for (size_t length = 1; length <= size; ++length) {
        if (decode_by_definition(std::string_view(text).substr(0, length))) expected = length;
      }
      ASSERT_EQ(utf8_sequence_length(text), expected) << bits << " cut to " << size;
    }
  }
}

TEST(Utf8, FourByteSequencesEndAtTheLastCodePoint) {
  EXPECT_EQ(utf8_sequence_length("\xF0\x90\x80\x80"), 4u);
  EXPECT_EQ(utf8_sequence_length("\xF0\x8F\xBF\xBF"), 0u);  // overlong
  EXPECT_EQ(utf8_sequence_length("\xF4\x8F\xBF\xBF"), 4u);
  EXPECT_EQ(utf8_sequence_length("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(utf8_sequence_length("\xF0\x9F\x98"), 0u);      // cut
  EXPECT_EQ(utf8_sequence_length("\xF8\x88\x80\x80\x80"), 0u);
  EXPECT_EQ(utf8_sequence_length(""), 0u);
}

TEST(Utf8, FirstInvalidIsTheFirstByteOfTheBadSequence) {
  EXPECT_EQ(utf8_first_invalid(""), std::string::npos);
  EXPECT_EQ(utf8_first_invalid("plain"), std::string::npos);
  EXPECT_EQ(utf8_first_invalid("caf\xC3\xA9\xFFx"), 5u);
  EXPECT_EQ(utf8_first_invalid("ab\xC3"), 2u);
  EXPECT_EQ(utf8_first_invalid(std::string_view("a\0b", 3)), std::string::npos);
}

/// The definition: sequence after sequence from the front.
size_t first_invalid_by_definition(std::string_view text) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t length = utf8_sequence_length(text.substr(begin));
    if (length == 0) return begin;
    begin += length;
  }
  return std::string_view::npos;
}

TEST(Utf8, FirstInvalidOfEveryLengthWithOneOddByteAnywhere) {
  for (size_t size = 0; size <= 80; ++size) {
    std::string text(size, 'x');
    ASSERT_EQ(utf8_first_invalid(text), std::string::npos);
    for (size_t i = 0; i < size; ++i) {
      for (const char odd : {'\x80', '\xFF', '\xC3', '\0', '\x7F'}) {
        text[i] = odd;
        ASSERT_EQ(utf8_first_invalid(text), static_cast<unsigned char>(odd) < 0x80 ? std::string::npos : i) << size;
      }
      text[i] = 'x';
    }
  }
}

TEST(Utf8, FirstInvalidOfRandomTextIsTheDefinitions) {
  const std::string_view pieces[] = {"a",
                                     "plain ascii of forty bytes, or thereabouts",
                                     "\xC3\xA9",
                                     "\xE2\x82\xAC",
                                     "\xF0\x9F\x98\x80",
                                     "\xC3",
                                     "\xE2\x82",
                                     "\xED\xA0\x80",
                                     "\xFF",
                                     "\x80"};
  std::mt19937 random(5);
  size_t num_invalid = 0;
  for (int i = 0; i < 20'000; ++i) {
    const size_t num_kinds = i % 2 == 0 ? 5 : std::size(pieces);  // every other text is well-formed
    std::string text;
    for (size_t piece = random() % 12; piece > 0; --piece) text += pieces[random() % num_kinds];
    const size_t expected = first_invalid_by_definition(text);
    ASSERT_EQ(utf8_first_invalid(text), expected);
    num_invalid += expected == std::string::npos ? 0 : 1;
  }
  EXPECT_GT(num_invalid, 5'000u);
}

}  // namespace
}  // namespace tessera
