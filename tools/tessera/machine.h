// What the kernel says about this machine.
#pragma once

#include <fstream>
#include <string>
#include <string_view>

namespace tessera::cli {

/// The value of the first line "name : value" in a file of /proc, or empty.
inline std::string proc_value(const char* path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    const size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
    return line.find(':') == std::string::npos || begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

}  // namespace tessera::cli
