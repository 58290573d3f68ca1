#include "io/json.h"

#include <gtest/gtest.h>

#include "tessera/core/check.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

std::string parse_error(std::string_view text) {
  return error_of([&] { parse_json_object(text, "f.json"); });
}

TEST(Json, KeepsWhatItParses) {
  const auto object = parse_json_object(R"( {"a": [1, -2, 1.5, true, null, "x\u00e9"], "b": {"c": {}}, "": []} )", "f");
  EXPECT_EQ(object.dump(), "{\"\":[],\"a\":[1,-2,1.5,true,null,\"x\u00e9\"],\"b\":{\"c\":{}}}");
}

// After the classes of nst/JSONTestSuite: what must be accepted (y_) and refused (n_), as members of one object.
TEST(Json, AcceptsEveryFormOfAValue) {
  const std::vector<std::string> values = {"\"\"",
                                           "\"\\u0060\\u012a\\u12AB\"",
                                           "\"\\uD801\\udc37\"",
                                           "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
                                           "\"\\u0000\"",
                                           "\"\\u0022\"",
                                           "\"a/*b*/c\"",
                                           "\"\x7F\"",
                                           "\"\u2028\"",
                                           "\"\U0010FFFF\"",
                                           "\"\u0821\"",
                                           "[[]   ]",
                                           "[\"\"]",
                                           "[]",
                                           "[null, 1, \"1\", {}]",
                                           "123e65",
                                           "0e+1",
                                           "0e1",
                                           "20e1",
                                           "-0",
                                           "-123",
                                           "-1",
                                           "-0.0",
                                           "1E22",
                                           "1E-2",
                                           "1E+2",
                                           "123e45",
                                           "123.456e78",
                                           "1e-2",
                                           "1e+2",
                                           "123",
                                           "123.456789",
                                           "true",
                                           "false",
                                           "null",
                                           "1e-400",
                                           "18446744073709551616",
                                           "{\"a\":{\"a\":{}}}"};
  for (const std::string& value : values) EXPECT_EQ(parse_error(str_cat("{\"k\":", value, "}")), "no error") << value;
}

void expect_malformed(const std::vector<std::string>& values) {
  for (const std::string& value : values) {
    const std::string message = parse_error(str_cat("{\"k\":", value, "}"));
    expect_contains(message, "f.json: ");
    expect_contains(message, "byte ");
    expect_contains(message, ", expected ");
  }
}

TEST(Json, RefusesMalformedNumbers) {
  expect_malformed({"+1",    "+Inf", "-01",  "-1.0.",    "-2.",       "-NaN",    ".-1",     ".2e-3", "0.1.2",
                    "0.3e+", "0.3e", "0.e1", "0E+",      "0E",        "1.0e+",   "1 000.0", "1eE2",  "2.e+3",
                    "9.e+",  "Inf",  "NaN",  "Infinity", "-Infinity", "0x42",    "1+2",     "- 1",   "-012",
                    "012",   ".123", "1.",   "--2.",     "1e1000",    "-1e1000", "[-]"});
}

TEST(Json, RefusesMalformedStrings) {
  expect_malformed({"'x'", "\"\\x00\"", "\"\\a\"", "\"\\u00A\"", "\"\\uD800\"", "\"\\uD800\\u\"", "\"\\uD800\\uD800\"",
                    "\"\\uDC00\"", "\"a\nb\"", "\"a\tb\"", std::string("\"a\0b\"", 5), "\"x", "\"\\", "\"\xFF\"",
                    "\"\xC0\xAF\"", "\"\xED\xA0\x80\"", "\"\xE0\xFF\"", "\"\xF4\xBF\xBF\xBF\""});
}

TEST(Json, RefusesMalformedStructure) {
  expect_malformed({"1 true",
                    "[1,,2]",
                    "[1,]",
                    "[,1]",
                    "[1",
                    "[\"x\"",
                    "[1:2]",
                    "[a]",
                    "[*]",
                    "tru",
                    "nul",
                    "True",
                    "{]",
                    "{\"a\" \"b\"}",
                    "{\"a\":\"b\",}",
                    "{a:1}",
                    "{'a':1}",
                    "{1:1}",
                    "{\"a\"}",
                    "{\"a\":}",
                    "{:1}",
                    "{\"a\":1,,\"b\":2}",
                    "1/**/",
                    "//1\n1",
                    "\u2060",
                    "1\f",
                    std::string(1, '\0'),
                    "\xEF\xBB\xBF 1"});
}

TEST(Json, RefusesWhatIsNotOneObject) {
  EXPECT_EQ(parse_error(""), "f.json: got nothing, expected one JSON object");
  EXPECT_EQ(parse_error(" \n"), "f.json: got nothing, expected one JSON object");
  EXPECT_EQ(parse_error("[]"), "f.json: got '[]', expected one JSON object");
  EXPECT_EQ(parse_error("null"), "f.json: got 'null', expected one JSON object");
  EXPECT_EQ(parse_error("\xEF\xBB\xBF{}"), "f.json: got a byte order mark, expected one JSON object");
  EXPECT_EQ(parse_error("{} {}"), "f.json: line 1, byte 3: got '{', expected end of input");
  EXPECT_EQ(parse_error("{}x"), "f.json: line 1, byte 2: got 'x' (invalid literal), expected valid JSON");
  EXPECT_EQ(parse_error(std::string_view("{}\0", 3)), "f.json: byte 2: got a NUL byte, expected one JSON object");
}

TEST(Json, MessagesNameLineByteGotAndExpected) {
  EXPECT_EQ(parse_error("{\n  \"a\": 1,\n}"), "f.json: line 3, byte 12: got '}', expected string literal");
  EXPECT_EQ(parse_error("{\"a\": 1"), "f.json: line 1, byte 7: got end of input, expected '}'");
  EXPECT_EQ(parse_error("{\"a\": 1e999}"), "f.json: line 1, byte 10: got '1e999', expected a finite number");
  expect_contains(parse_error("{\"\x1b[31m"), "\\x1b");
  EXPECT_LT(parse_error(str_cat("{\"", std::string(1 << 20, 'a'))).size(), 300u);
}

TEST(Json, DuplicateKeysAreRefusedAtEveryLevel) {
  EXPECT_EQ(parse_error("{\"a\":1,\"b\":2,\"a\":1}"), "f.json: got the key 'a' twice in one object, expected it once");
  EXPECT_EQ(parse_error("{\"a\":[{\"x\\n\":{},\"x\\n\":[]}]}"),
            "f.json: got the key 'x\\x0a' twice in one object, expected it once");
  EXPECT_EQ(parse_error("{\"a\":{},\"\\u0061\":{}}"), "f.json: got the key 'a' twice in one object, expected it once");
  EXPECT_EQ(parse_error("{\"a\":{\"a\":{\"a\":1}},\"b\":{\"a\":1}}"), "no error");
}

TEST(Json, DepthIsBounded) {
  const auto nested = [](size_t depth) {
    std::string text;
    for (size_t i = 1; i < depth; ++i) text += i % 2 == 1 ? "{\"a\":" : "[";
    text += "{}";
    for (size_t i = depth - 1; i >= 1; --i) text += i % 2 == 1 ? "}" : "]";
    return text;
  };
  EXPECT_EQ(parse_error(nested(32)), "no error");
  EXPECT_EQ(parse_error(nested(33)), "f.json: got objects and arrays nested deeper than 32, expected at most 32");
  EXPECT_EQ(parse_error(str_cat("{\"a\":", std::string(100'000, '['))),
            "f.json: got objects and arrays nested deeper than 32, expected at most 32");
}

class JsonReaderTest : public ::testing::Test {
 protected:
  std::string int_error(const std::string& value) const {
    const auto object = parse_json_object("{\"n\":" + value + "}", "c.json");
    return error_of([&] { JsonReader(object, "c.json").require_int("n", 1, 100); });
  }
};

TEST_F(JsonReaderTest, IntegersAreJsonIntegersInRange) {
  const auto object = parse_json_object(R"({"n": 7, "m": -3, "big": 9223372036854775807})", "c.json");
  const JsonReader reader(object, "c.json");
  EXPECT_EQ(reader.require_int("n", 7, 7), 7);
  EXPECT_EQ(reader.require_int("m", -3, 0), -3);
  EXPECT_EQ(reader.require_int("big", 0, INT64_MAX), INT64_MAX);
  for (const char* value : {"8.0", "1e1", "\"8\"", "true", "null", "[]", "{}", "0", "101", "-1", "9223372036854775808",
                            "18446744073709551615", "18446744073709551616", "1e300", "0.5"}) {
    const std::string message = int_error(value);
    expect_contains(message, "c.json: 'n': got ");
    expect_contains(message, ", expected an integer from 1 to 100");
  }
  expect_contains(error_of([] {
                    const auto zero = parse_json_object("{\"n\":-0}", "c.json");
                    JsonReader(zero, "c.json").require_int("n", 0, 100);
                  }),
                  "got -0.0, expected an integer");
  EXPECT_EQ(error_of([&] { reader.require_int("x", 1, 2); }),
            "c.json: 'x': got no such key, expected an integer from 1 to 2");
}

TEST_F(JsonReaderTest, ArraysOfIntegers) {
  const auto object = parse_json_object(R"({"w": [3, 5, 7], "e": [], "bad": [3, 5.0], "n": 3})", "c.json");
  const JsonReader reader(object, "c.json");
  EXPECT_EQ(reader.require_ints("w", 1, 9, 1, 3), (std::vector<int64_t>{3, 5, 7}));
  EXPECT_EQ(reader.require_ints("e", 1, 9, 0, 3), std::vector<int64_t>{});
  const auto ints_error = [&](const char* key, size_t min_count, size_t max_count) {
    return error_of([&] { reader.require_ints(key, 1, 6, min_count, max_count); });
  };
  EXPECT_EQ(ints_error("e", 1, 3), "c.json: 'e': got an array of 0, expected an array of 1 to 3 integers");
  EXPECT_EQ(ints_error("w", 1, 2), "c.json: 'w': got an array of 3, expected an array of 1 to 2 integers");
  EXPECT_EQ(ints_error("w", 1, 3), "c.json: 'w' item 2: got 7, expected an integer from 1 to 6");
  EXPECT_EQ(ints_error("bad", 1, 3), "c.json: 'bad' item 1: got 5.0, expected an integer from 1 to 6");
  EXPECT_EQ(ints_error("n", 1, 3), "c.json: 'n': got 3, expected an array of 1 to 3 integers");
  EXPECT_EQ(ints_error("x", 1, 3), "c.json: 'x': got no such key, expected an array of 1 to 3 integers");
}

TEST_F(JsonReaderTest, StringsAndUnknownKeys) {
  const auto object = parse_json_object(R"({"s": "x", "l": ["a", "b"], "bad": ["a", 1], "\u001b": 2})", "c.json");
  const JsonReader reader(object, "c.json");
  EXPECT_EQ(reader.require_string("s"), "x");
  EXPECT_EQ(reader.require_strings("l"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(error_of([&] { reader.require_string("l"); }), "c.json: 'l': got an array, expected a string");
  EXPECT_EQ(error_of([&] { reader.require_strings("s"); }), "c.json: 's': got 'x', expected an array of strings");
  EXPECT_EQ(error_of([&] { reader.require_strings("bad"); }), "c.json: 'bad' item 1: got 1, expected a string");
  EXPECT_EQ(reader.unknown_keys({"s", "bad"}), (std::vector<std::string>{"\\x1b", "l"}));
  EXPECT_TRUE(reader.unknown_keys({"s", "bad", "l", "\x1b"}).empty());
}

}  // namespace
}  // namespace tessera::io
