// Text and tables as HTML.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera::cli {

/// For the text of XML and HTML.
inline std::string markup_escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    if (c == '&') {
      safe += "&amp;";
    } else if (c == '<') {
      safe += "&lt;";
    } else {
      safe += c;
    }
  }
  return safe;
}

inline std::string html_table(const std::vector<std::string>& columns,
                              const std::vector<std::vector<std::string>>& rows) {
  std::string html = "<table><thead><tr>";
  for (const std::string& column : columns) html += "<th>" + markup_escaped(column) + "</th>";
  html += "</tr></thead><tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    html += "<tr>";
    for (const std::string& cell : row) html += "<td>" + markup_escaped(cell) + "</td>";
    html += "</tr>\n";
  }
  return html + "</tbody></table>\n";
}

}  // namespace tessera::cli
