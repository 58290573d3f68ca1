#include <gtest/gtest.h>

#include "io/records.h"
#include "tessera/core/check.h"
#include "unit/io/record_test_util.h"

namespace tessera::io {
namespace {

using std::string_view_literals::operator""sv;

std::string csv_error(std::string_view bytes, const std::string& field = "") {
  const testing::TempDir dir;
  testing::write_file(dir / "input", bytes);
  const std::string path = (dir / "input").string();
  return replaced(error_of([&] { open_records({.format = InputFormat::csv, .path = path, .field = field}); }), path,
                  "PATH");
}

TEST(CsvRecords, TheNamedColumn) {
  EXPECT_EQ(read_csv("id,text\n1,a\n2,b c\n"), (Records{"a", "b c"}));
  EXPECT_EQ(read_csv("sentence,id\r\na,1\r\nb,2"), (Records{"a", "b"}));
  EXPECT_EQ(read_csv("sentence,text\nno,yes\n"), Records{"yes"});
  EXPECT_EQ(read_csv("id,review\n1,a\n", "review"), Records{"a"});
  EXPECT_EQ(read_csv("\"te\"\"xt\",\"a\nb\"\nx,y\n", "a\nb"), Records{"y"});
  EXPECT_EQ(read_csv("\xEF\xBB\xBFtext,id\na,1\n"), Records{"a"});
  EXPECT_EQ(read_csv("text\n"), Records{});
  EXPECT_EQ(read_csv("text"), Records{});
}

TEST(CsvRecords, QuotedFields) {
  EXPECT_EQ(read_csv("id,text\n1,\"a,b\"\n2,\"say \"\"hi\"\"\"\n3,\"two\r\nlines\n\"\n4,\"\"\n5,\"\"\"\"\n6,\"x\r\"\n"),
            (Records{"a,b", "say \"hi\"", "two\r\nlines\n", "", "\"", "x\r"}));
  EXPECT_EQ(read_csv("text,id\n\"a\"\r\n"), Records{"!PATH:2: got 1 fields, expected 2"});
  EXPECT_EQ(read_csv("text\n\"a\"\r\n\"b\"\n\"c\""), (Records{"a", "b", "c"}));
  EXPECT_EQ(read_csv("text\n 5\" disk\n"), Records{" 5\" disk"});  // a quote inside is a character
}

TEST(CsvRecords, CarriageReturnsThatEndNoLineAreText) {
  EXPECT_EQ(read_csv("text,id\na\rb,1\na\r,1\na\r\r\n"), (Records{"a\rb", "a\r", "!PATH:4: got 1 fields, expected 2"}));
  EXPECT_EQ(read_csv("text\na\r\r\nb\r"), (Records{"a", "b"}));  // as many as stand before a line feed are its own
  EXPECT_EQ(read_csv("text,id\r\r\na\r\r,1\r\r\n"), Records{"a\r\r"});
}

TEST(CsvRecords, BlankLinesAreNoRowsAndEmptyFieldsAre) {
  EXPECT_EQ(read_csv("text\n\na\n\n"), Records{"a"});
  EXPECT_EQ(read_csv("text\n\"\"\na\n \"\n"), (Records{"", "a", " \""}));
  EXPECT_EQ(read_csv("text,id\n,1\n,\n\nb,2\n1\n"), (Records{"", "", "b", "!PATH:6: got 1 fields, expected 2"}));
  EXPECT_EQ(read_csv("\n \t\r\ntext\r\n\r\na\r\n   "), Records{"a"});
  EXPECT_EQ(read_csv("text\n\"\n\"\n"), Records{"\n"});  // a line end in quotes ends no line
}

TEST(CsvRecords, RowsOfAnotherWidthFailAlone) {
  EXPECT_EQ(read_csv("id,text,x\n1,a,2\n1,a\n1,a,2,3\n1,b,2\n"),
            (Records{"a", "!PATH:3: got 2 fields, expected 3", "!PATH:4: got 4 fields, expected 3", "b"}));
  EXPECT_EQ(read_csv("id,text\n1\n"), Records{"!PATH:2: got 1 fields, expected 2"});
}

TEST(CsvRecords, LinesAreCountedThroughQuotedLineBreaks) {
  EXPECT_EQ(read_csv("id,text\n1,\"a\nb\nc\"\n2\n\"3\n\",\xFF\n4,d\n"),
            (Records{"a\nb\nc", "!PATH:5: got 1 fields, expected 2",
                     "!PATH:6: got '\\xff' at byte 0, expected well-formed UTF-8", "d"}));
}

TEST(CsvRecords, TextAfterAClosingQuoteFailsTheRecord) {
  EXPECT_EQ(read_csv("text,id\n\"a\"b,1\n\"a\" ,1\n\"a\"\rb,1\nc,2\n"),
            (Records{"!PATH:2: got 'b' after a closing quote, expected a comma or the end of the line",
                     "!PATH:3: got ' ' after a closing quote, expected a comma or the end of the line",
                     "!PATH:4: got '\\x0d' after a closing quote, expected a comma or the end of the line", "c"}));
}

TEST(CsvRecords, AnUnterminatedQuoteFailsItsRecordAndEndsTheInput) {
  EXPECT_EQ(read_csv("id,text\n1,a\n2,\"b\n3,c\n4,d\n"),
            (Records{"a", "!PATH:3: the quote opened in line 3 is never closed"}));
  EXPECT_EQ(read_csv("text\n\""), Records{"!PATH:2: the quote opened in line 2 is never closed"});
}

TEST(CsvRecords, BadTextFailsOnlyWhereItIsUsed) {
  EXPECT_EQ(read_csv("text,x\na\0b,1\nc,\xFF\n"sv), (Records{"!PATH:2: got a NUL byte at byte 1, expected text", "c"}));
}

TEST(CsvRecords, LongFieldsAreLimited) {
  const std::string longest(kMaxTextRecordBytes, 'x');
  const Records records = read_csv("text,y\n" + longest + ",1\n" + longest + "x,1\n\"" + longest + "\n\",1\n1," +
                                   longest + "xxx\nnext,1\n");
  ASSERT_EQ(records.size(), 5u);
  EXPECT_TRUE(records[0] == longest);
  EXPECT_EQ(records[1], "!PATH:3: the field is longer than 16777216 bytes");
  EXPECT_EQ(records[2], "!PATH:4: the field is longer than 16777216 bytes");
  EXPECT_EQ(records[3], "1");  // what is not asked for may be long
  EXPECT_EQ(records[4], "next");
}

TEST(CsvRecords, HeadersThatDoNotFit) {
  EXPECT_EQ(csv_error("a,b\n1,2\n"),
            "PATH: got columns 'a', 'b', expected a header with a column 'text' or 'sentence'");
  EXPECT_EQ(csv_error("a,text\n", "b\x1b"), "PATH: got columns 'a', 'text', expected a header with a column 'b\\x1b'");
  EXPECT_EQ(csv_error(""), "PATH: got nothing, expected a header with a column 'text' or 'sentence'");
  EXPECT_EQ(csv_error("\n1\n"), "PATH: got columns '1', expected a header with a column 'text' or 'sentence'");
  EXPECT_EQ(csv_error("text,a,text\n"), "PATH:1: got two columns 'text', expected one");
  EXPECT_EQ(csv_error("\"text\n"), "PATH:1: the quote opened in line 1 is never closed");
  EXPECT_EQ(csv_error("\"text\"x\n"), "PATH:1: got 'x' after a closing quote, expected a comma or the end of the line");
  EXPECT_EQ(csv_error("\xFF\n"), "PATH: got columns '\\xff', expected a header with a column 'text' or 'sentence'");
  EXPECT_EQ(csv_error(std::string(kMaxTextRecordBytes + 1, 'x')), "PATH:1: the field is longer than 16777216 bytes");
  std::string wide = "c";
  for (int i = 0; i < 1'000; ++i) wide += ",column";
  EXPECT_LT(csv_error(wide, "x").size(), 400u);
}

TEST(CsvRecords, ThroughAPipeInSmallPieces) {
  std::string csv = "id,text\r\n";
  Records expected;
  for (int i = 0; i < 2'000; ++i) {
    expected.push_back(str_cat("row \"", i, "\",\n"));
    csv += str_cat(i, ",\"row \"\"", i, "\"\",\n\"\r\n");
  }
  for (const size_t chunk : {1, 2, 3, 4'096}) {
    EXPECT_TRUE(read_through_pipe({.format = InputFormat::csv, .path = "-"}, csv, chunk) == expected) << chunk;
  }
}

}  // namespace
}  // namespace tessera::io
