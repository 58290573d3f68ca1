// Options that were given where they mean nothing: none is dropped without a word.
//
//   refuse_given(app, {"--sample"}, "--against answers", "--against oracle with it");
#pragma once

#include <CLI/CLI.hpp>
#include <initializer_list>
#include <string>

#include "tessera/core/error.h"

namespace tessera::cli {

/// Throws Error naming the first of `options` that stands on the command line; `got` is what it stands beside.
inline void refuse_given(const CLI::App& app, std::initializer_list<const char*> options, const std::string& got,
                         const std::string& expected) {
  for (const char* const option : options) {
    if (app.count(option) > 0) throw Error(option, got, expected);
  }
}

}  // namespace tessera::cli
