// UTF-8 as Unicode defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

/// Bytes (1..4) of the well-formed sequence at the start of `text`, or 0 if there is none.
size_t utf8_sequence_length(std::string_view text);

/// Position of the first byte that is not part of well-formed UTF-8, or npos.
size_t utf8_first_invalid(std::string_view text);

/// The code point of the well-formed sequence `sequence` (1..4 bytes, as measured by utf8_sequence_length).
char32_t utf8_decode(std::string_view sequence);

/// Appends `code_point` (not a surrogate, at most U+10FFFF) to `out`.
void utf8_append(std::string& out, char32_t code_point);

}  // namespace tessera
