#include "io/records.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"
#include "unit/io/record_test_util.h"

namespace tessera::io {
namespace {

using std::string_view_literals::operator""sv;

TEST(TextRecords, ALineIsARecordWhateverEndsIt) {
  EXPECT_EQ(read_text(""), Records{});
  EXPECT_EQ(read_text("\n"), Records{""});
  EXPECT_EQ(read_text("a"), Records{"a"});
  EXPECT_EQ(read_text("a\n"), Records{"a"});
  EXPECT_EQ(read_text("a\n\n b \nc"), (Records{"a", "", " b ", "c"}));
  EXPECT_EQ(read_text("a\r\nb\r\n\r\nc\rd"), (Records{"a", "b", "", "c\rd"}));
  EXPECT_EQ(read_text("a\r\r\n"), Records{"a"});
  EXPECT_EQ(read_text("\xEF\xBB\xBF"
                      "a\n\xEF\xBB\xBF"
                      "b"),
            (Records{"a",
                     "\xEF\xBB\xBF"
                     "b"}));
  EXPECT_EQ(read_text("\xEF\xBB\xBF"), Records{});
  EXPECT_EQ(read_text("\xEF\xBB\xBF\n"), Records{""});
  EXPECT_EQ(read_text("\xEF\xBB"), Records{"!PATH:1: got '\\xef' at byte 0, expected well-formed UTF-8"});
}

TEST(TextRecords, BadLinesFailAloneAndAreNamed) {
  EXPECT_EQ(read_text("good\nb\xE9"sv
                      "d\n\xF0\x9F\x98\x80\na\0b\nlast"sv),
            (Records{"good", "!PATH:2: got '\\xe9' at byte 1, expected well-formed UTF-8", "\U0001F600",
                     "!PATH:4: got a NUL byte at byte 1, expected text", "last"}));
}

TEST(TextRecords, LongLinesAreLimitedAndTheNextOneIsRead) {
  const std::string longest(kMaxTextRecordBytes, 'x');
  for (const char* line_end : {"\n", "\r\n"}) {
    const Records records = read_text(longest + line_end + longest + "x" + line_end + "next");
    ASSERT_EQ(records.size(), 3u);
    EXPECT_TRUE(records[0] == longest);
    EXPECT_EQ(records[1], "!PATH:2: the line is longer than 16777216 bytes");
    EXPECT_EQ(records[2], "next");
  }
  const Records tail = read_text(longest + longest + longest);
  ASSERT_EQ(tail.size(), 1u);
  EXPECT_EQ(tail[0], "!PATH:1: the line is longer than 16777216 bytes");
}

TEST(TextRecords, LinesAcrossTheBuffersEndStayWhole) {
  std::string text;
  Records expected;
  for (size_t i = 0; text.size() < 3'000'000; ++i) {  // many times the reader's buffer, lines of every length
    expected.push_back(str_cat("line ", i, std::string(i * 7919 % 5'003, static_cast<char>('a' + i % 26))));
    text += expected.back() + (i % 5 == 0 ? "\r\n" : "\n");
  }
  EXPECT_TRUE(read_text(text) == expected);
  EXPECT_TRUE(read_through_pipe({.format = InputFormat::text, .path = "-"}, text, 1'021) == expected);
}

TEST(TextRecords, BatchesEndWhereAskedOrWhenTheyAreLarge) {
  const TempDir dir;
  write_file(dir / "in", "a\nb\nc\nd\ne\n");
  auto reader = open_records({.format = InputFormat::text, .path = (dir / "in").string()});
  RecordBatch batch;
  ASSERT_TRUE(reader->next(2, batch));
  EXPECT_EQ(batch.first_index, 0);
  EXPECT_EQ(texts_of(batch), (Records{"a", "b"}));
  ASSERT_TRUE(reader->next(2, batch));
  EXPECT_EQ(batch.first_index, 2);
  RecordBatch moved = std::move(batch);
  ASSERT_TRUE(reader->next(5, batch));
  EXPECT_EQ(batch.first_index, 4);
  EXPECT_EQ(batch.num_records, 1);
  EXPECT_EQ(texts_of(batch), Records{"e"});
  EXPECT_EQ(batch.errors, Records{""});
  EXPECT_FALSE(reader->next(5, batch));
  EXPECT_EQ(batch.num_records, 0);
  EXPECT_FALSE(reader->next(5, batch));
  EXPECT_THROW(reader->next(0, batch), ProgrammerError);

  std::string large;
  for (int i = 0; i < 40; ++i) large += std::string(1 << 20, 'x') + "\n";
  write_file(dir / "in", large);
  reader = open_records({.format = InputFormat::text, .path = (dir / "in").string()});
  int64_t num_records = 0;
  while (reader->next(1'000, batch)) {
    EXPECT_LE(batch.num_records, 16);
    EXPECT_EQ(batch.first_index, num_records);
    num_records += batch.num_records;
  }
  EXPECT_EQ(num_records, 40);
}

TEST(TextRecords, CountsForAProgressBar) {
  const TempDir dir;
  write_file(dir / "in", "ab\ncd\n");
  const auto reader = open_records({.format = InputFormat::text, .path = (dir / "in").string()});
  EXPECT_EQ(reader->num_records_hint(), -1);
  EXPECT_EQ(reader->num_bytes_hint(), 6);
  EXPECT_EQ(reader->bytes_read(), 6);  // the first bytes of a file are looked at when it is opened
  RecordBatch batch;
  while (reader->next(10, batch)) continue;
  EXPECT_EQ(reader->bytes_read(), 6);
}

TEST(Records, InputsThatCannotBeOpened) {
  const TempDir dir;
  const auto open_error = [](const std::string& path) {
    return error_of([&] { open_records({.format = InputFormat::text, .path = path}); });
  };
  expect_contains(open_error((dir / "missing").string()), "missing: cannot open: No such file or directory");
  expect_contains(open_error(dir.path().string()), "got a directory, expected a file, a pipe or - for standard input");
  EXPECT_EQ(open_error("/dev/null"), "no error");
}

TEST(Records, FormatNames) {
  EXPECT_EQ(parse_input_format("text"), InputFormat::text);
  EXPECT_EQ(parse_input_format("csv"), InputFormat::csv);
  EXPECT_EQ(parse_input_format("jsonl"), InputFormat::jsonl);
  EXPECT_EQ(parse_input_format("ids"), InputFormat::ids);
  EXPECT_EQ(parse_input_format("embeddings"), InputFormat::embeddings);
  EXPECT_EQ(error_of([] { parse_input_format("x\x1b"); }),
            "format: got 'x\\x1b', expected text, csv, tsv, jsonl, ids or embeddings");
  EXPECT_NE(error_of([] { parse_input_format("CSV"); }), "no error");
}

TEST(Records, APipeGivenByNameWorks) {
  const TempDir dir;
  const std::string path = (dir / "pipe").string();
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  std::thread writer([&] { write_file(path, "a\nb\n"); });
  EXPECT_EQ(read_all({.format = InputFormat::text, .path = path}), (Records{"a", "b"}));
  writer.join();
}

TEST(Records, AByteOrderMarkInPieces) {
  for (const auto& [bytes, expected] : {std::pair<std::string, std::string>{"\xEF\xBB\xBFz\n", "z"},
                                        {"\xEF\xBB\n",
                                         "!standard input:1: got '\\xef' at byte 0, expected "
                                         "well-formed UTF-8"}}) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const StandardInput redirected(ends[0]);
    std::thread writer([descriptor = ends[1], text = bytes] {
      for (const char byte : text) {
        EXPECT_EQ(::write(descriptor, &byte, 1), 1);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // so that the reader takes it before the next one
      }
      close(descriptor);
    });
    EXPECT_EQ(read_all({.format = InputFormat::text, .path = "-"}), Records{expected});
    writer.join();
  }
}

TEST(Records, StopEndsAWaitAndDropsTheUnfinishedLine) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const StandardInput redirected(ends[0]);
  ASSERT_EQ(::write(ends[1], "whole\nhal", 9), 9);
  std::atomic<bool> stop{false};
  const auto reader = open_records({.format = InputFormat::text, .path = "-", .stop = &stop});
  EXPECT_EQ(reader->num_bytes_hint(), -1);
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stop = true;
  });
  const auto begin = std::chrono::steady_clock::now();
  RecordBatch batch;
  ASSERT_TRUE(reader->next(10, batch));  // waits for more than the pipe holds, until it is stopped
  EXPECT_EQ(texts_of(batch), Records{"whole"});
  EXPECT_FALSE(reader->next(10, batch));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  stopper.join();
  close(ends[1]);
}

// A pseudo-terminal whose other side has gone gives what it holds, then EIO.
TEST(Records, AReadErrorComesAfterTheRecordsBeforeIt) {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(master, 0);
  ASSERT_EQ(grantpt(master) + unlockpt(master), 0);
  const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
  ASSERT_GE(slave, 0);
  ASSERT_EQ(::write(slave, "a\nb\nhal", 7), 7);
  close(slave);
  const StandardInput redirected(master);
  const auto reader = open_records({.format = InputFormat::text, .path = "-"});
  RecordBatch batch;
  ASSERT_TRUE(reader->next(10, batch));
  EXPECT_EQ(texts_of(batch), (Records{"a", "b"}));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(error_of([&] { reader->next(10, batch); }), "standard input: cannot read: Input/output error");
    EXPECT_EQ(batch.num_records, 0);
  }
}

// A terminal is the same kind of wait; a regular file is never cut short by the flag.
TEST(Records, StopDoesNotCutAFile) {
  const TempDir dir;
  write_file(dir / "in", "a\nb");
  const std::atomic<bool> stop{true};
  EXPECT_EQ(read_all({.format = InputFormat::text, .path = (dir / "in").string(), .stop = &stop}), (Records{"a", "b"}));
}

TEST(JsonLines, OneMemberOfEachObject) {
  EXPECT_EQ(read_jsonl("{\"text\":\"a\"}\n{\"id\":1,\"text\":\"b\\n\\u00e9\",\"x\":{\"text\":[\"no\"]}}\r\n"),
            (Records{"a", "b\n\u00e9"}));
  EXPECT_EQ(read_jsonl("{\"sentence\":\"a\"}\n{\"sentence\":\"b\",\"text\":\"c\"}"), (Records{"a", "c"}));
  EXPECT_EQ(read_jsonl("{\"review\":\"a\",\"text\":\"b\"}", "review"), Records{"a"});
  EXPECT_EQ(read_jsonl("{\"text\":\"\"}"), Records{""});
}

TEST(JsonLines, BadLinesFailAlone) {
  const Records records = read_jsonl(
      "{\"text\":\"a\"}\n\nnot json\n{\"text\":1}\n{\"id\":1,\"b\":2}\n[\"text\"]\n{\"text\":\"a\",\"text\":\"b\"}\n"
      "{\"text\":\"a\\u0000b\"}\n{\"text\":\"\xFF\"}\n{\"text\":\"a\"\n{\"text\":null}\n{}\n{\"text\":\"z\"} x\n"
      "{\"text\":[\"a\"]}\n{\"text\":\"last\"}");
  EXPECT_EQ(
      records,
      (Records{
          "a", "!PATH:3: got 'not json', expected one JSON object",
          "!PATH:4: got a member 'text' that is no string, expected a string",
          "!PATH:5: got members 'id', 'b', expected a member 'text' or 'sentence'",
          "!PATH:6: got '[\"text\"]', expected one JSON object",
          "!PATH:7: got the member 'text' twice, expected it once", "!PATH:8: got a NUL byte at byte 1, expected text",
          "!PATH:9: line 1, byte 9: got '\\xff' (invalid string: ill-formed UTF-8 byte), expected valid JSON (in the "
          "member 'text')",
          "!PATH:10: line 1, byte 11: got end of input, expected '}'",
          "!PATH:11: got a member 'text' that is no string, expected a string",
          "!PATH:12: got no members, expected a member 'text' or 'sentence'",
          "!PATH:13: line 1, byte 13: got 'x' (invalid literal), expected valid JSON",
          "!PATH:14: got a member 'text' that is no string, expected a string", "last"}));
}

TEST(JsonLines, ManyMembersAreListedShort) {
  std::string line = "{";
  for (int i = 0; i < 100; ++i) line += str_cat(i == 0 ? "" : ",", "\"member", i, "\":", i);
  const Records records = read_jsonl(line + "}", "x");
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(
      records[0],
      "!PATH:1: got members 'member0', 'member1', 'member2', 'member3', 'member4', 'member5', 'member6', 'member7', "
      "..., expected a member 'x'");
}

TEST(JsonLines, DeepValuesAreRefused) {
  const Records records = read_jsonl("{\"a\":" + std::string(40, '[') + std::string(40, ']') + ",\"text\":\"a\"}\n");
  EXPECT_EQ(records,
            Records{"!PATH:1: got objects and arrays nested deeper than 32, expected at most 32 (in the member "
                    "'a')"});
}

TEST(JsonLines, AnErrorNamesTheMemberThatIsNotWantedEither) {
  EXPECT_EQ(read_jsonl("{\"text\":\"a\",\"score\":NaN}\n{\"score\":1e400,\"text\":\"b\"}\n"),
            (Records{"!PATH:1: line 1, byte 20: got 'N' (invalid literal), expected valid JSON (in the member 'score')",
                     "!PATH:2: line 1, byte 13: got '1e400', expected a finite number (in the member 'score')"}));
}

TEST(JsonLines, BlankLinesAreNoRecords) {
  const TempDir dir;
  write_file(dir / "in", "\n{\"text\":\"a\"}\n \t\r\n\n{\"text\":\"b\"}\n\nx\n  ");
  const RecordSource source = {.format = InputFormat::jsonl, .path = (dir / "in").string()};
  EXPECT_EQ(read_all(source), (Records{"a", "b", "!PATH:7: got 'x', expected one JSON object"}));
  const auto reader = open_records(source);
  EXPECT_EQ(reader->skip(2), 2);
  RecordBatch batch;
  ASSERT_TRUE(reader->next(1, batch));
  EXPECT_EQ(batch.first_index, 2);
  EXPECT_FALSE(reader->next(1, batch));
  EXPECT_EQ(reader->num_blank_lines(), 5);
}

TEST(TextRecords, AFileThatShrinksIsAnError) {
  const TempDir dir;
  const std::string path = (dir / "in").string();
  std::string text;
  while (text.size() < (size_t{1} << 20)) text += "0123456789\n";
  write_file(path, text);
  const auto reader = open_records({.format = InputFormat::text, .path = path});
  std::filesystem::resize_file(path, 600'000);
  RecordBatch batch;
  int64_t num_records = 0;
  const auto read = [&] {
    while (reader->next(1000, batch)) num_records += batch.num_records;
  };
  const std::string message =
      str_cat(path, ": got 600000 bytes, expected the ", text.size(), " bytes that it had when it was opened");
  EXPECT_EQ(error_of(read), message);
  EXPECT_EQ(num_records, 600'000 / 11) << "what was whole before is handed out, the line that was cut is not";
  EXPECT_EQ(error_of(read), message);
}

std::string error_through_pipe(std::string_view bytes, size_t chunk) {
  return with_piped_input(bytes, chunk, [] { return error_of([] { read_all({.path = "-"}); }); });
}

TEST(TextRecords, OtherFormatsAreRefusedByTheirFirstBytes) {
  for (const std::string_view bytes : {"\x1F\x8B\x08\n"sv,
                                       "\xFF\xFE"sv
                                       "a\0"sv,
                                       "PAR1\x15\n"sv, "PK\x03\x04"sv}) {
    expect_contains(error_of([&] { read_text(bytes); }), "expected text in UTF-8");
    for (const size_t chunk : {size_t{1}, size_t{3}, size_t{100}}) {
      expect_contains(error_through_pipe(bytes, chunk), "expected text in UTF-8");
    }
  }
  EXPECT_EQ(read_through_pipe({.path = "-"}, "PAR1 text\nB", 1), (Records{"PAR1 text", "B"}));
  expect_contains(error_of([] { read_text("a\rb\r"); }), "carriage return alone");
  expect_contains(error_through_pipe("a\rb\r", 1), "carriage return alone");
}

TEST(TextRecords, WhatHasComeThroughAPipeIsHandedOut) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const StandardInput redirected(ends[0]);
  const auto reader = open_records({.format = InputFormat::text, .path = "-"});
  RecordBatch batch;
  for (const std::string_view text : {"a\n"sv, "b\nc\nhalf"sv}) {
    ASSERT_EQ(::write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
    ASSERT_TRUE(reader->next(256, batch));  // returns although the pipe stays open
  }
  EXPECT_EQ(texts_of(batch), (Records{"b", "c"}));
  close(ends[1]);
  ASSERT_TRUE(reader->next(256, batch));
  EXPECT_EQ(texts_of(batch), Records{"half"});
  EXPECT_FALSE(reader->next(256, batch));
}

}  // namespace
}  // namespace tessera::io
