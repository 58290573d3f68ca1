// Options that take a whole number.
//
//   add_integer(app, "--threads", options.num_threads, "0 = every processor", 0, kMaxThreads);
//
// A number is decimal whatever it begins with: "010" is ten, as array jobs write it. What is no number, or lies outside
// the range, is an Error naming the option, the text that was given and the range.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>
#include <string>

#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

template <class Integer>
Integer parse_integer(const std::string& name, const std::string& text, Integer low, Integer high) {
  Integer value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 10);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    throw Error(name, "'" + escaped(text) + "'", str_cat("an integer from ", low, " to ", high));
  }
  return value;
}

/// The help shows the range where there is an upper end. `show_default`: in the help, where the value before parsing is
/// one that may be given.
template <class Integer>
CLI::Option* add_integer(CLI::App& app, const std::string& name, Integer& value, const std::string& description,
                         Integer low, Integer high = std::numeric_limits<Integer>::max(), bool show_default = true) {
  const auto read = [&value, name, low, high](const CLI::results_t& given) {
    value = parse_integer(name, given.front(), low, high);
    return true;
  };
  const bool is_bounded = high != std::numeric_limits<Integer>::max();
  const std::string range = is_bounded ? str_cat("; ", low, " to ", high) : std::string();
  return app.add_option(name, read, description + range, show_default, [&value] { return std::to_string(value); })
      ->type_name("N");
}

}  // namespace tessera::cli
