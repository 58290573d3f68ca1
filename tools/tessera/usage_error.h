// What CLI11 says of a wrong call, in the words that every other error has: where, what was got, what was expected.
#pragma once

#include <CLI/CLI.hpp>

#include "tessera/core/error.h"

namespace tessera::cli {

Error usage_error(const CLI::ParseError& error);

}  // namespace tessera::cli
