#include "io/results.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>

#include "io/kept_fields.h"
#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"

namespace tessera::io {

namespace {

constexpr int kSignificantDigits = 6;

/// Six significant digits, the same in every locale. Not-a-number and infinities, which no format of numbers here has
/// in common, are `not_finite`.
void append_number(float value, std::string_view not_finite, std::string& out) {
  if (!std::isfinite(value)) {
    out += not_finite;
    return;
  }
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, std::chars_format::general,
                                 kSignificantDigits);
  out.append(digits.data(), end.ptr);
}

void append_integer(int64_t value, std::string& out) {
  std::array<char, 24> digits;
  out.append(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr);
}

void append_hex(char byte, std::string_view prefix, std::string& out) {
  static constexpr std::string_view kHex = "0123456789abcdef";
  const auto value = static_cast<unsigned char>(byte);
  out += prefix;
  out += {kHex[value >> 4], kHex[value & 15]};
}

bool is_control(char32_t c) { return c < 0x20 || (c >= 0x7F && c < 0xA0); }

/// For a terminal or a column: control bytes and bytes that are no UTF-8 become \xHH.
void append_printable(std::string_view text, std::string& out) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t length = utf8_sequence_length(text.substr(begin));
    const std::string_view piece = text.substr(begin, length > 0 ? length : 1);
    if (length > 0 && !is_control(utf8_decode(piece))) {
      out += piece;
    } else {
      for (const char byte : piece) append_hex(byte, "\\x", out);
    }
    begin += piece.size();
  }
}

void append_json_string(std::string_view text, std::string& out) {
  out += '"';
  for (size_t begin = 0; begin < text.size();) {
    const size_t length = utf8_sequence_length(text.substr(begin));
    const char first = text[begin];
    if (length == 0) {
      out += "\xEF\xBF\xBD";  // U+FFFD: JSON has no way to write a byte that is no UTF-8
    } else if (first == '"' || first == '\\') {
      out += {'\\', first};
    } else if (first == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(first) < 0x20) {
      append_hex(first, "\\u00", out);
    } else {
      out += text.substr(begin, length);
    }
    begin += length > 0 ? length : 1;
  }
  out += '"';
}

/// RFC 4180: a field with separators or quotes is quoted, its quotes doubled.
void append_csv_field(std::string_view text, char delimiter, std::string& out) {
  if (text.find_first_of("\"\r\n") == std::string_view::npos && text.find(delimiter) == std::string_view::npos) {
    out += text;
    return;
  }
  out += '"';
  for (const char c : text) out.append(c == '"' ? 2 : 1, c);
  out += '"';
}

char delimiter_of(OutputFormat format) { return format == OutputFormat::csv ? ',' : '\t'; }

/// The numbers behind label and probability, `delimiter` before each; a record without them has the delimiters.
void append_numbers(const ResultFormat& format, const Result& result, char delimiter, std::string& out) {
  const bool is_ok = result.error.empty();
  const bool has_numbers = is_ok && result.has_numbers;
  for (size_t i = 0; i < format.class_names.size(); ++i) {
    out += delimiter;
    if (has_numbers) append_number(result.probabilities[i], "nan", out);
  }
  for (size_t expert = 0; expert < static_cast<size_t>(format.num_expert_weights); ++expert) {
    out += delimiter;
    if (has_numbers) append_number(result.expert_weights[expert], "nan", out);
  }
  if (!format.token_counts) return;
  for (const int64_t count : {result.num_tokens, result.num_unknown}) {
    out += delimiter;
    if (is_ok) append_integer(count, out);
  }
  out += delimiter;
  if (is_ok) out += result.is_truncated ? "true" : "false";
}

void append_text(const ResultFormat& format, const Result& result, std::string& out) {
  append_printable(result.error.empty() ? result.label : "error", out);
  out += '\t';
  if (!result.error.empty()) {
    append_printable(result.error, out);
  } else if (result.has_numbers) {
    append_number(result.probability, "nan", out);
  }
  append_numbers(format, result, '\t', out);
  if (format.show_text) {
    out += '\t';
    append_printable(result.text, out);
  }
  out += '\n';
}

void append_csv(const ResultFormat& format, const Result& result, std::string& out) {
  const char delimiter = delimiter_of(format.format);
  append_integer(result.index, out);
  out += delimiter;
  if (result.error.empty()) append_csv_field(result.label, delimiter, out);
  out += delimiter;
  if (result.error.empty() && result.has_numbers) append_number(result.probability, "nan", out);
  append_numbers(format, result, delimiter, out);
  size_t num_kept = 0;
  KeptFields fields(result.kept);
  for (KeptField field; format.keeps_fields && fields.next(field); ++num_kept) {
    out += delimiter;
    const bool is_null = field.kind == KeptField::json && field.value == "null";
    if (!is_null) append_csv_field(field.value, delimiter, out);
  }
  TESSERA_CHECK(!format.keeps_fields || num_kept == format.kept_names.size(), num_kept, format.kept_names.size());
  out += '\n';
}

/// The members of a result that come before the kept ones; a kept one of the same name is called otherwise.
bool is_own_member(std::string_view name) {
  static constexpr std::string_view kNames[] = {"index",  "label",   "probability", "probabilities", "expert_weights",
                                                "tokens", "unknown", "truncated",   "error"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

void append_kept_members(const ResultFormat& format, const Result& result, std::string& out) {
  size_t i = 0;
  KeptFields fields(result.kept);
  for (KeptField field; fields.next(field); ++i) {
    if (field.kind == KeptField::absent) continue;
    const std::string_view name = format.kept_names.empty() ? field.name : std::string_view(format.kept_names[i]);
    out += ',';
    append_json_string(is_own_member(name) ? str_cat("input_", name) : std::string(name), out);
    out += ':';
    if (field.kind == KeptField::json) {
      out += field.value;
    } else {
      append_json_string(field.value, out);
    }
  }
}

void append_json_numbers(const ResultFormat& format, const Result& result, std::string& out) {
  if (result.has_numbers) {
    out += ",\"probability\":";
    append_number(result.probability, "null", out);
    for (size_t i = 0; i < format.class_names.size(); ++i) {
      out += i == 0 ? ",\"probabilities\":{" : ",";
      append_json_string(format.class_names[i], out);
      out += ':';
      append_number(result.probabilities[i], "null", out);
      if (i + 1 == format.class_names.size()) out += '}';
    }
    if (format.num_expert_weights > 0) {
      out += ",\"expert_weights\":";
      for (size_t i = 0; i < result.expert_weights.size(); ++i) {
        out += i == 0 ? '[' : ',';
        append_number(result.expert_weights[i], "null", out);
      }
      out += ']';
    }
  }
  if (!format.token_counts) return;
  out += ",\"tokens\":";
  append_integer(result.num_tokens, out);
  out += ",\"unknown\":";
  append_integer(result.num_unknown, out);
  out += result.is_truncated ? ",\"truncated\":true" : ",\"truncated\":false";
}

void append_jsonl(const ResultFormat& format, const Result& result, std::string& out) {
  out += "{\"index\":";
  append_integer(result.index, out);
  if (!result.error.empty()) {
    out += ",\"error\":";
    append_json_string(result.error, out);
  } else {
    out += ",\"label\":";
    append_json_string(result.label, out);
    append_json_numbers(format, result, out);
  }
  if (format.keeps_fields) append_kept_members(format, result, out);
  out += "}\n";
}

void append_bin(const ResultFormat& format, const Result& result, std::string& out) {
  static_assert(std::endian::native == std::endian::little, "logits are written as they are in memory");
  const auto num_classes = static_cast<size_t>(format.num_classes);
  const auto append_floats = [&](std::span<const float> values) {
    out.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  };
  if (result.error.empty()) {
    TESSERA_CHECK(result.logits.size() == num_classes, result.logits.size(), num_classes);
    append_floats(result.logits);
    return;
  }
  constexpr float kFailed = std::numeric_limits<float>::quiet_NaN();
  for (size_t i = 0; i < num_classes; ++i) append_floats({&kFailed, 1});
}

}  // namespace

std::vector<std::string> result_columns(const ResultFormat& format) {
  std::vector<std::string> columns = {"index", "label", "probability"};
  for (const std::string& name : format.class_names) columns.push_back("probability_" + name);
  for (int expert = 0; expert < format.num_expert_weights; ++expert) columns.push_back(str_cat("expert_", expert));
  if (format.token_counts) columns.insert(columns.end(), {"tokens", "unknown", "truncated"});
  for (const std::string& name : format.kept_names) {
    const bool is_taken = std::find(columns.begin(), columns.end(), name) != columns.end();
    columns.push_back(is_taken ? "input_" + name : name);
  }
  return columns;
}

std::string result_header(const ResultFormat& format) {
  if (format.format != OutputFormat::csv && format.format != OutputFormat::tsv) return "";
  const char delimiter = delimiter_of(format.format);
  std::string header;
  for (const std::string& column : result_columns(format)) {
    if (!header.empty()) header += delimiter;
    append_csv_field(column, delimiter, header);
  }
  return header + "\n";
}

void append_result(const ResultFormat& format, const Result& result, std::string& out) {
  TESSERA_CHECK(!result.error.empty() || !result.has_numbers || format.format == OutputFormat::bin ||
                    result.expert_weights.size() == static_cast<size_t>(format.num_expert_weights),
                result.expert_weights.size(), format.num_expert_weights);
  switch (format.format) {
    case OutputFormat::text: return append_text(format, result, out);
    case OutputFormat::csv:
    case OutputFormat::tsv: return append_csv(format, result, out);
    case OutputFormat::jsonl: return append_jsonl(format, result, out);
    case OutputFormat::bin: return append_bin(format, result, out);
  }
}

std::string_view output_format_name(OutputFormat format) {
  switch (format) {
    case OutputFormat::text: return "text";
    case OutputFormat::csv: return "csv";
    case OutputFormat::tsv: return "tsv";
    case OutputFormat::jsonl: return "jsonl";
    case OutputFormat::bin: break;
  }
  return "bin";
}

OutputFormat parse_output_format(std::string_view name) {
  for (const OutputFormat format :
       {OutputFormat::text, OutputFormat::csv, OutputFormat::tsv, OutputFormat::jsonl, OutputFormat::bin}) {
    if (name == output_format_name(format)) return format;
  }
  throw Error("output_format", quote(name), "text, csv, tsv, jsonl or bin");
}

}  // namespace tessera::io
