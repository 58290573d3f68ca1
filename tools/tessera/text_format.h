// Text for terminals of 100 columns.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>
#include <string_view>

namespace tessera::cli {

inline constexpr size_t kTerminalColumns = 100;

/// As std::printf, into a string of at most 255 bytes.
[[gnu::format(printf, 1, 2)]] inline std::string format_text(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return text;
}

/// A line "label     text", broken at spaces into lines of at most 100 columns, the text indented by `indent`.
inline std::string labelled(std::string_view label, std::string_view text, size_t indent = 10) {
  std::string lines(label);
  lines.resize(indent, ' ');
  size_t column = indent;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (column > indent && column + 1 + end > kTerminalColumns) {
      lines += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      lines += ' ';
      ++column;
    }
    lines += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines + "\n";
}

}  // namespace tessera::cli
