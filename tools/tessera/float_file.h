// Headerless files of little-endian fp32.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace tessera::cli {

/// All values of `path`; Error unless they are rows of `row_size`.
std::vector<float> read_float_file(const std::filesystem::path& path, int64_t row_size);

}  // namespace tessera::cli
