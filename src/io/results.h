// Results of classification, written in input order in one of five formats.
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
  text,   ///< label, tab, probability, a tab and a number for each further column; a failed record: "error", tab, the
          ///< message, then as many tabs
  csv,    ///< a header with result_columns; a failed record has an index and what is kept of it, and nothing else
  tsv,    ///< the same with tabs for commas
  jsonl,  ///< {"index":0,"label":"positive","probability":0.93[,"probabilities":{"negative":0.07,...}]
          ///< [,"expert_weights":[...]][,"tokens":5,"unknown":0,"truncated":false][, what is kept]}; a failed record
          ///< {"index":1,"error":"..."[, what is kept]}
  bin,    ///< fp32 little endian logits [N, num_classes]; a failed record is NaN
};

/// One record's result. Views must live only during `append`.
struct Result {
  int64_t index = 0;
  std::string_view error = {};  ///< non-empty: the record failed and nothing below is set
  std::string_view label = {};
  /// False: there was nothing to label (a text without words), and neither number is written, but for bin's logits.
  bool has_numbers = true;
  float probability = 0;                       ///< of the best class, in [0, 1]
  std::span<const float> logits = {};          ///< [num_classes]
  std::span<const float> probabilities = {};   ///< [num_classes] when asked for, else empty
  std::span<const float> expert_weights = {};  ///< [num_experts] when asked for, else empty
  int64_t num_tokens = 0;                      ///< words of the text, before truncation
  int64_t num_unknown = 0;                     ///< of those that count
  bool is_truncated = false;
  std::string_view kept = {};  ///< fields of the input, as kept_fields.h packs them
  std::string_view text = {};  ///< the input text where there is one, else empty
};

struct ResultFormat {
  OutputFormat format = OutputFormat::text;
  bool show_text = false;      ///< text format only: append a tab and the record's text, control bytes escaped
  int num_expert_weights = 0;  ///< columns for the router weights, 0 = none
  int num_classes = 2;         ///< for a failed record in bin
  std::vector<std::string> class_names = {};  ///< columns for every class's probability; empty = none
  bool token_counts = false;                  ///< columns tokens, unknown, truncated
  bool keeps_fields = false;                  ///< whether Result::kept is written
  std::vector<std::string> kept_names = {};   ///< of its fields; empty where each record names its own (jsonl only)
};

/// The columns of csv and tsv: index, label, probability, probability_<class>, expert_<i>, tokens, unknown, truncated,
/// and the kept ones. A kept field that is called as a column or member before it is written as input_<name>.
std::vector<std::string> result_columns(const ResultFormat& format);

/// Bytes before the first result (the CSV header, else nothing).
std::string result_header(const ResultFormat& format);

/// Appends one result's bytes to `out`.
void append_result(const ResultFormat& format, const Result& result, std::string& out);

std::string_view output_format_name(OutputFormat format);
/// The other way; Error naming "output_format" for anything else.
OutputFormat parse_output_format(std::string_view name);

}  // namespace tessera::io
