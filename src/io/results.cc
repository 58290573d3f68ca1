#include "io/results.h"

#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>

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
void append_csv_field(std::string_view text, std::string& out) {
  if (text.find_first_of("\",\r\n") == std::string_view::npos) {
    out += text;
    return;
  }
  out += '"';
  for (const char c : text) out.append(c == '"' ? 2 : 1, c);
  out += '"';
}

void append_text(const ResultFormat& format, const Result& result, std::string& out) {
  append_printable(result.error.empty() ? result.label : "error", out);
  out += '\t';
  if (result.error.empty()) {
    append_number(result.probability, "nan", out);
  } else {
    append_printable(result.error, out);
  }
  for (int expert = 0; expert < format.num_expert_weights; ++expert) {
    out += '\t';
    if (result.error.empty()) append_number(result.expert_weights[static_cast<size_t>(expert)], "nan", out);
  }
  if (format.show_text) {
    out += '\t';
    append_printable(result.text, out);
  }
  out += '\n';
}

void append_csv(const ResultFormat& format, const Result& result, std::string& out) {
  append_integer(result.index, out);
  out += ',';
  if (result.error.empty()) append_csv_field(result.label, out);
  out += ',';
  if (result.error.empty()) append_number(result.probability, "nan", out);
  for (int expert = 0; expert < format.num_expert_weights; ++expert) {
    out += ',';
    if (result.error.empty()) append_number(result.expert_weights[static_cast<size_t>(expert)], "nan", out);
  }
  out += '\n';
}

void append_jsonl(const ResultFormat& format, const Result& result, std::string& out) {
  out += "{\"index\":";
  append_integer(result.index, out);
  if (!result.error.empty()) {
    out += ",\"error\":";
    append_json_string(result.error, out);
    out += "}\n";
    return;
  }
  out += ",\"label\":";
  append_json_string(result.label, out);
  out += ",\"probability\":";
  append_number(result.probability, "null", out);
  if (format.num_expert_weights > 0) {
    out += ",\"expert_weights\":";
    for (size_t i = 0; i < result.expert_weights.size(); ++i) {
      out += i == 0 ? '[' : ',';
      append_number(result.expert_weights[i], "null", out);
    }
    out += ']';
  }
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

std::string result_header(const ResultFormat& format) {
  if (format.format != OutputFormat::csv) return "";
  std::string header = "index,label,probability";
  for (int expert = 0; expert < format.num_expert_weights; ++expert) {
    header += ",expert_";
    append_integer(expert, header);
  }
  return header + "\n";
}

void append_result(const ResultFormat& format, const Result& result, std::string& out) {
  TESSERA_CHECK(!result.error.empty() || format.format == OutputFormat::bin ||
                    result.expert_weights.size() == static_cast<size_t>(format.num_expert_weights),
                result.expert_weights.size(), format.num_expert_weights);
  switch (format.format) {
    case OutputFormat::text: return append_text(format, result, out);
    case OutputFormat::csv: return append_csv(format, result, out);
    case OutputFormat::jsonl: return append_jsonl(format, result, out);
    case OutputFormat::bin: return append_bin(format, result, out);
  }
}

std::string_view output_format_name(OutputFormat format) {
  switch (format) {
    case OutputFormat::text: return "text";
    case OutputFormat::csv: return "csv";
    case OutputFormat::jsonl: return "jsonl";
    case OutputFormat::bin: break;
  }
  return "bin";
}

OutputFormat parse_output_format(std::string_view name) {
  for (const OutputFormat format : {OutputFormat::text, OutputFormat::csv, OutputFormat::jsonl, OutputFormat::bin}) {
    if (name == output_format_name(format)) return format;
  }
  throw Error("output_format", quote(name), "text, csv, jsonl or bin");
}

}  // namespace tessera::io
