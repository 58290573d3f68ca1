#include "shipped_model.h"

#include <filesystem>
#include <system_error>

#include "tessera/core/error.h"

namespace tessera::cli {

std::string model_or_shipped(const std::string& given) {
  if (!given.empty()) return given;
  namespace fs = std::filesystem;
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  if (failed) throw Error("--model", "none, and no /proc to find the shipped one by", "a directory");
  // Installed beside bin, in a Python package's folder, and in a build tree.
  for (const char* const place : {"../share/tessera/models", "../models", "../../share/tessera/models"}) {
    const fs::path model = (program.parent_path() / place / "movie-reviews").lexically_normal();
    if (fs::is_regular_file(model / "model.safetensors", failed)) return model.string();
  }
  throw Error("--model", "none, and none was installed with the command", "a directory");
}

}  // namespace tessera::cli
