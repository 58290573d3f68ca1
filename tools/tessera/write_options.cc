#include "write_options.h"

#include <cstdio>
#include <filesystem>
#include <vector>

#include "tessera/core/error.h"

namespace tessera::cli {

void warn_of_replaced_checkpoint(const std::string& directory) {
  std::error_code ignored;
  if (!std::filesystem::exists(std::filesystem::path(directory) / "model.safetensors", ignored)) return;
  std::fprintf(stderr, "tessera: warning: replaces the checkpoint that lies in %s\n", escaped(directory).c_str());
}

DType parse_dtype(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f16") return DType::f16;
  if (name == "bf16") return DType::bf16;
  throw Error("--dtype", "'" + escaped(name) + "'", "f32, f16 or bf16");
}

classifier::ClassifierConfig read_config(const std::string& preset, const std::string& config_path) {
  if (preset.empty() == config_path.empty()) {
    throw Error("sizes of the model", preset.empty() ? "neither --preset nor --config" : "both --preset and --config",
                "one of them");
  }
  if (!preset.empty()) return classifier::preset_config(preset);
  std::vector<std::string> warnings;
  classifier::ClassifierConfig config = classifier::load_config(config_path, warnings);
  for (const std::string& warning : warnings) std::fprintf(stderr, "tessera: warning: %s\n", warning.c_str());
  return config;
}

}  // namespace tessera::cli
