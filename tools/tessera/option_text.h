// Values of options, and what the library says of them in the command's words.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "tessera/core/error.h"

namespace tessera::cli {

/// The pieces of "a,b,c", views of `list`; an empty text has one empty piece.
std::vector<std::string_view> split_list(std::string_view list);

/// The library names its argument, "expert_threshold: got ..."; the same error names the option, "--expert-threshold:
/// got ...", if the first word of its `where` is one of `arguments`. Others come back as they are.
Error naming_option(const Error& error, std::initializer_list<std::string_view> arguments);

/// What `call` returns; its errors by naming_option.
template <class Call>
auto with_options_named(std::initializer_list<std::string_view> arguments, const Call& call) {
  try {
    return call();
  } catch (const Error& error) {
    throw naming_option(error, arguments);
  }
}

}  // namespace tessera::cli
