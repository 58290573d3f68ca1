// Text of any encoding and any line ends as UTF-8 with the line ends that the readers know.
#pragma once

#include <memory>
#include <string>

#include "io/byte_input.h"

namespace tessera::cli {

/// Throws Error naming --encoding for one that the system's iconv does not convert.
void check_encoding(const std::string& encoding);

/// UTF-8 of `source`, which is in `encoding` (a name of iconv), or, where that is empty, in what its byte order mark
/// says: UTF-16, UTF-32, else UTF-8. What is no character there becomes a byte that is no UTF-8, so that the record it
/// belongs to fails where it stands. Throws Error, when the bytes come, for a byte order mark of another encoding.
std::unique_ptr<io::ByteInput> transcode(std::unique_ptr<io::ByteInput> source, const std::string& encoding);

/// Where lines end in a carriage return alone they end in a line feed; other input is left as it is.
std::unique_ptr<io::ByteInput> unify_line_ends(std::unique_ptr<io::ByteInput> source);

}  // namespace tessera::cli
