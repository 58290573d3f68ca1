#include "float_file.h"

#include <bit>
#include <span>

#include "io/file.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::cli {

static_assert(std::endian::native == std::endian::little, "values are read as they are in the file");

std::vector<float> read_float_file(const std::filesystem::path& path, int64_t row_size) {
  const io::InputFile file(path);
  const uint64_t row_bytes = static_cast<uint64_t>(row_size) * sizeof(float);
  if (file.size() % row_bytes != 0) {
    throw Error(file.name(), str_cat(file.size(), " bytes"), str_cat("a multiple of ", row_bytes));
  }
  std::vector<float> values(file.size() / sizeof(float));
  file.read_at(0, std::as_writable_bytes(std::span(values)));
  return values;
}

}  // namespace tessera::cli
