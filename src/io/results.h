// Results of classification, written in input order in one of four formats.
//
//   std::string out = result_header(format);
//   append_result(format, {.index = 0, .label = "positive", .probability = 0.93f, .logits = logits}, out);
//
// Every record is one line (bin: one row), whatever its text holds. Numbers have six significant digits and a point
// whatever the locale; a number that is not finite is null in JSON, else "nan".
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::io {

enum class OutputFormat : uint8_t {
  text,   ///< label, tab, probability, a tab and a weight per expert when asked for; a failed record: "error", tab, the
          ///< message, then as many tabs
  csv,    ///< header index,label,probability[,expert_0,...]; a failed record has an index and nothing else
  jsonl,  ///< {"index":0,"label":"positive","probability":0.93[,"expert_weights":[...]]}; a failed record
          ///< {"index":1,"error":"..."}
  bin,    ///< fp32 little endian logits [N, num_classes]; a failed record is NaN
};

/// One record's result. Views must live only during `append`.
struct Result {
  int64_t index = 0;
  std::string_view error = {};  ///< non-empty: the record failed and nothing below is set
  std::string_view label = {};
  float probability = 0;                       ///< of `label`, in [0, 1]
  std::span<const float> logits = {};          ///< [num_classes]
  std::span<const float> expert_weights = {};  ///< [num_experts] when asked for, else empty
  std::string_view text = {};                  ///< the input text where there is one, else empty
};

struct ResultFormat {
  OutputFormat format = OutputFormat::text;
  bool show_text = false;      ///< text format only: append a tab and the record's text, control bytes escaped
  int num_expert_weights = 0;  ///< columns for the router weights, 0 = none
  int num_classes = 2;         ///< for a failed record in bin
};

/// Bytes before the first result (the CSV header, else nothing).
std::string result_header(const ResultFormat& format);

/// Appends one result's bytes to `out`.
void append_result(const ResultFormat& format, const Result& result, std::string& out);

std::string_view output_format_name(OutputFormat format);
/// The other way; Error naming "output_format" for anything else.
OutputFormat parse_output_format(std::string_view name);

}  // namespace tessera::io
