// Compressed input as what was compressed: gzip, zstd and xz, each by its library, in bounded memory.
#pragma once

#include <memory>
#include <string_view>

#include "io/byte_input.h"

namespace tessera::cli {

/// ".gz", ".zst" or ".xz", by which files say that they are compressed.
bool is_compressed_extension(std::string_view extension);

/// `source` itself, or what it holds where its first bytes are those of a compressed format; several streams one behind
/// the other are one. Reading throws Error for data that is damaged or ends too early, once everything before it was
/// handed out.
std::unique_ptr<io::ByteInput> decompress(std::unique_ptr<io::ByteInput> source);

}  // namespace tessera::cli
