// Text of a file or a user, as messages show it.
#pragma once

#include <string>
#include <string_view>

#include "tessera/core/error.h"

namespace tessera::io {

/// 'text', escaped and cut (error.h), in single quotes.
inline std::string quote(std::string_view text, size_t max_bytes = 200) {
  std::string out(1, '\'');
  out += escaped(text, max_bytes);
  out += '\'';
  return out;
}

}  // namespace tessera::io
