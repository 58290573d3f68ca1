#include "io/results.h"

#include <gtest/gtest.h>

#include <clocale>
#include <cmath>
#include <cstring>
#include <limits>
#include <locale>
#include <nlohmann/json.hpp>

#include "tessera/core/check.h"
#include "tessera/core/utf8.h"
#include "unit/io/io_test_util.h"

namespace tessera::io {
namespace {

constexpr float kLogits[] = {-1.5f, 2.25f};
constexpr float kWeights[] = {0.25f, 0.5f, 0.125f, 0.125f};

std::string written(const ResultFormat& format, const Result& result) {
  std::string out = "before|";
  append_result(format, result, out);
  EXPECT_TRUE(out.starts_with("before|"));
  return out.substr(7);
}

Result good() {
  return {.index = 3, .label = "positive", .probability = 0.93f, .logits = kLogits, .text = "a\tb\n\x1b[31mc\u00e9'\\"};
}

Result failed() { return {.index = 4, .error = "in.txt:5: got \"\x01\"\n", .text = ""}; }

TEST(Results, Text) {
  ResultFormat format = {.format = OutputFormat::text};
  EXPECT_EQ(result_header(format), "");
  EXPECT_EQ(written(format, good()), "positive\t0.93\n");
  EXPECT_EQ(written(format, failed()), "error\tin.txt:5: got \"\\x01\"\\x0a\n");
  format.show_text = true;
  EXPECT_EQ(written(format, good()), "positive\t0.93\ta\\x09b\\x0a\\x1b[31mc\u00e9'\\\n");
  EXPECT_EQ(written(format, failed()), "error\tin.txt:5: got \"\\x01\"\\x0a\t\n");
  format.num_expert_weights = 4;
  Result result = good();
  result.expert_weights = kWeights;
  result.text = "x\xFFy\u009bz";
  EXPECT_EQ(written(format, result), "positive\t0.93\t0.25\t0.5\t0.125\t0.125\tx\\xffy\\xc2\\x9bz\n");
  EXPECT_EQ(written(format, failed()), "error\tin.txt:5: got \"\\x01\"\\x0a\t\t\t\t\t\n");
}

TEST(Results, LongTextsAreNotCut) {
  const std::string text(100'000, 'x');
  Result result = good();
  result.text = text;
  EXPECT_EQ(written({.format = OutputFormat::text, .show_text = true}, result), "positive\t0.93\t" + text + "\n");
}

TEST(Results, Csv) {
  ResultFormat format = {.format = OutputFormat::csv};
  EXPECT_EQ(result_header(format), "index,label,probability\n");
  EXPECT_EQ(written(format, good()), "3,positive,0.93\n");
  EXPECT_EQ(written(format, failed()), "4,,\n");
  Result result = good();
  result.label = "very \"good\", yes\n";
  EXPECT_EQ(written(format, result), "3,\"very \"\"good\"\", yes\n\",0.93\n");
  format.num_expert_weights = 4;
  EXPECT_EQ(result_header(format), "index,label,probability,expert_0,expert_1,expert_2,expert_3\n");
  result = good();
  result.expert_weights = kWeights;
  EXPECT_EQ(written(format, result), "3,positive,0.93,0.25,0.5,0.125,0.125\n");
  EXPECT_EQ(written(format, failed()), "4,,,,,,\n");
}

TEST(Results, JsonLines) {
  ResultFormat format = {.format = OutputFormat::jsonl};
  EXPECT_EQ(result_header(format), "");
  EXPECT_EQ(written(format, good()), "{\"index\":3,\"label\":\"positive\",\"probability\":0.93}\n");
  EXPECT_EQ(written(format, failed()), "{\"index\":4,\"error\":\"in.txt:5: got \\\"\\u0001\\\"\\n\"}\n");
  format.num_expert_weights = 4;
  Result result = good();
  result.expert_weights = kWeights;
  EXPECT_EQ(written(format, result),
            "{\"index\":3,\"label\":\"positive\",\"probability\":0.93,\"expert_weights\":[0.25,0.5,0.125,0.125]}\n");
}

TEST(Results, EveryCodePointSurvivesJson) {
  for (char32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string label = "a";
    utf8_append(label, c);
    Result result = good();
    result.label = label;
    const std::string line = written({.format = OutputFormat::jsonl}, result);
    ASSERT_EQ(line.find('\n'), line.size() - 1) << static_cast<uint32_t>(c);
    ASSERT_EQ(nlohmann::json::parse(line)["label"], label) << static_cast<uint32_t>(c);
  }
  Result result = good();
  result.label = "a\xFF\xC3z";
  EXPECT_EQ(nlohmann::json::parse(written({.format = OutputFormat::jsonl}, result))["label"], "a\uFFFD\uFFFDz");
}

TEST(Results, NumbersHaveSixDigits) {
  const std::pair<float, const char*> kNumbers[] = {{0.0f, "0"},           {1.0f, "1"},
                                                    {0.5f, "0.5"},         {0.123456789f, "0.123457"},
                                                    {0.99999994f, "1"},    {0.000012345678f, "1.23457e-05"},
                                                    {1.0f / 3, "0.333333"}};
  for (const auto& [value, digits] : kNumbers) {
    Result result = good();
    result.probability = value;
    EXPECT_EQ(written({.format = OutputFormat::csv}, result), std::string("3,positive,") + digits + "\n");
    const std::string line = written({.format = OutputFormat::jsonl}, result);
    EXPECT_NEAR(nlohmann::json::parse(line)["probability"].get<double>(), static_cast<double>(value), 1e-6);
  }
}

TEST(Results, NotFiniteNumbersKeepTheFormatValid) {
  Result result = good();
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    result.probability = value;
    EXPECT_EQ(written({.format = OutputFormat::csv}, result), "3,positive,nan\n");
    EXPECT_TRUE(nlohmann::json::parse(written({.format = OutputFormat::jsonl}, result))["probability"].is_null());
  }
}

// A program that uses the library may have any locale, for C and for C++.
TEST(Results, LocalesChangeNothing) {
  struct Grouping : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouping));
  Result result = good();
  result.index = 1'234'567;
  const std::string csv = written({.format = OutputFormat::csv}, result);
  const std::string jsonl = written({.format = OutputFormat::jsonl}, result);
  const std::string header = result_header({.format = OutputFormat::csv, .num_expert_weights = 1'001});
  std::locale::global(before);
  EXPECT_EQ(csv, "1234567,positive,0.93\n");
  EXPECT_EQ(jsonl, "{\"index\":1234567,\"label\":\"positive\",\"probability\":0.93}\n");
  EXPECT_TRUE(header.ends_with(",expert_1000\n"));
}

TEST(Results, BinIsLogitsAndNaN) {
  const ResultFormat format = {.format = OutputFormat::bin, .num_classes = 2};
  EXPECT_EQ(result_header(format), "");
  std::string out = written(format, good()) + written(format, failed());
  ASSERT_EQ(out.size(), 4 * sizeof(float));
  float values[4];
  std::memcpy(values, out.data(), out.size());
  EXPECT_EQ(values[0], -1.5f);
  EXPECT_EQ(values[1], 2.25f);
  EXPECT_TRUE(std::isnan(values[2]) && std::isnan(values[3]));
}

TEST(Results, BrokenContractsAreReported) {
  std::string out;
  EXPECT_THROW(append_result({.format = OutputFormat::bin, .num_classes = 3}, good(), out), ProgrammerError);
  EXPECT_THROW(append_result({.format = OutputFormat::csv, .num_expert_weights = 4}, good(), out), ProgrammerError);
  EXPECT_EQ(out, "");
}

TEST(Results, FormatNames) {
  EXPECT_EQ(parse_output_format("text"), OutputFormat::text);
  EXPECT_EQ(parse_output_format("csv"), OutputFormat::csv);
  EXPECT_EQ(parse_output_format("jsonl"), OutputFormat::jsonl);
  EXPECT_EQ(parse_output_format("bin"), OutputFormat::bin);
  EXPECT_EQ(error_of([] { parse_output_format("xml"); }),
            "output_format: got 'xml', expected text, csv, tsv, jsonl or bin");
}

}  // namespace
}  // namespace tessera::io
