#include "usage_error.h"

#include <string>
#include <string_view>

namespace tessera::cli {

namespace {

/// What stands between `begin` and `end`, both looked for from the left; to the end of the text where `end` is "".
std::string between(std::string_view text, std::string_view begin, std::string_view end) {
  const size_t from = text.find(begin);
  if (from == std::string_view::npos) return "";
  text.remove_prefix(from + begin.size());
  return std::string(end.empty() ? text : text.substr(0, text.find(end)));
}

}  // namespace

Error usage_error(const CLI::ParseError& error) {
  const std::string message = error.what();
  const std::string name = message.substr(0, message.find(':'));  // of "--option: what is wrong"
  if (message.ends_with(" is required")) return {message.substr(0, message.find(' ')), "nothing", "a value"};
  if (const std::string kind = between(message, " required ", " missing"); message.ends_with(" missing")) {
    return {name, "no value", kind.empty() ? "one" : kind};
  }
  if (const std::string count = between(message, "required but received ", ""); !count.empty()) {
    return {name, "it " + count + " times", "it once"};
  }
  if (const std::string option = between(message, "Could not convert: ", " = "); !option.empty()) {
    return {option, "'" + escaped(between(message, " = ", "")) + "'", "a number"};
  }
  if (const std::string value = between(message, ": Value ", " not in range"); !value.empty()) {
    const std::string low = between(message, " not in range ", " to ");
    const auto trimmed = [](std::string number) {
      if (number.find('.') == std::string::npos) return number;
      number.erase(number.find_last_not_of('0') + 1);
      if (number.ends_with('.')) number.pop_back();
      return number;
    };
    const std::string high = between(message, " to ", "");
    constexpr size_t kLongestLimit = 20;  // what is longer is the largest number there is: no limit
    if (high.size() > kLongestLimit) return {name, "'" + escaped(value) + "'", "a number above 0"};
    return {name, "'" + escaped(value) + "'", "a number from " + trimmed(low) + " to " + trimmed(high)};
  }
  return {name, message.substr(std::min(message.size(), name.size() + 2))};
}

}  // namespace tessera::cli
