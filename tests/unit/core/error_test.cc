#include "tessera/core/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <locale>
#include <string>

#include "tessera/core/check.h"
#include "tessera/core/utf8.h"

namespace tessera {
namespace {

TEST(Error, SaysWhereGotExpected) {
  EXPECT_STREQ(Error("a.bin: tensor 'x'", "shape [3]", "shape [4]").what(),
               "a.bin: tensor 'x': got shape [3], expected shape [4]");
  EXPECT_STREQ(Error("a.bin", "cannot open").what(), "a.bin: cannot open");
}

TEST(Error, ErrnoMessagesAreEnglish) {
  EXPECT_EQ(errno_message(ENOENT), "No such file or directory");
  EXPECT_EQ(errno_message(987654), "error 987654");
}

TEST(Escaped, LeavesTextAndHidesWhatATerminalObeys) {
  EXPECT_EQ(escaped("models/caf\u00e9 \U0001F600.txt"), "models/caf\u00e9 \U0001F600.txt");
  EXPECT_EQ(escaped("a\x1b[31mb\n\t\x7f"), "a\\x1b[31mb\\x0a\\x09\\x7f");
  EXPECT_EQ(escaped("it's \\"), "it\\x27s \\x5c");
  EXPECT_EQ(escaped("\u009b31m"), "\\xc2\\x9b31m");  // CSI as one control character
  EXPECT_EQ(escaped("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(escaped(std::string_view("a\0b", 3)), "a\\x00b");
}

TEST(Escaped, CutsAtTheLimitAndNeverInsideASequence) {
  EXPECT_EQ(escaped(std::string(200, 'a')), std::string(200, 'a'));
  EXPECT_EQ(escaped(std::string(201, 'a')), std::string(200, 'a') + "...");
  for (size_t limit = 0; limit < 12; ++limit) {
    const std::string cut = escaped("\u20ac\u20ac\xff\u20ac", limit);
    EXPECT_LE(cut.size(), limit + 3);
    EXPECT_EQ(utf8_first_invalid(cut), std::string::npos) << limit;
  }
}

TEST(Escaped, EveryByteGivesPrintableText) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text = escaped(std::string(1, static_cast<char>(byte)));
    for (const char c : text) EXPECT_TRUE(c >= 0x20 && c < 0x7F) << byte;
  }
}

TEST(Check, NamesConditionPlaceAndValues) {
  const int num_tiles = -3;
  try {
    TESSERA_CHECK(num_tiles >= 0, num_tiles, "why");
    FAIL() << "the check passed";
  } catch (const ProgrammerError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("num_tiles >= 0"), std::string::npos) << message;
    EXPECT_NE(message.find("error_test.cc:"), std::string::npos) << message;
    EXPECT_NE(message.find("-3, why"), std::string::npos) << message;
  }
  EXPECT_NO_THROW(TESSERA_CHECK(num_tiles < 0, num_tiles));
}

// A program that uses the library may group digits; files and messages must not.
TEST(StrCat, NumbersAreAlikeInEveryLocale) {
  struct Grouping : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouping));
  const std::string text = str_cat(1'234'567, " ", 0.5, " ", "x");
  std::locale::global(before);
  EXPECT_EQ(text, "1234567 0.5 x");
}

}  // namespace
}  // namespace tessera
