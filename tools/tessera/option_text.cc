#include "option_text.h"

#include <algorithm>
#include <string>

namespace tessera::cli {

std::vector<std::string_view> split_list(std::string_view list) {
  std::vector<std::string_view> pieces;
  while (true) {
    const size_t comma = list.find(',');
    pieces.push_back(list.substr(0, comma));
    if (comma == std::string_view::npos) return pieces;
    list.remove_prefix(comma + 1);
  }
}

Error naming_option(const Error& error, std::initializer_list<std::string_view> arguments) {
  const std::string& where = error.where();
  const std::string problem = std::string(error.what()).substr(where.size() + 2);  // behind "<where>: "
  std::string name = where.substr(0, where.find(' '));
  const std::string rest = where.substr(name.size());
  if (std::find(arguments.begin(), arguments.end(), name) == arguments.end()) return Error(where, problem);
  std::replace(name.begin(), name.end(), '_', '-');
  return Error("--" + name + rest, problem);
}

}  // namespace tessera::cli
