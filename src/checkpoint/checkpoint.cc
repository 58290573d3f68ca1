#include "tessera/checkpoint/checkpoint.h"

#include "checkpoint/parts.h"
#include "io/file.h"
#include "tessera/core/error.h"

namespace tessera::checkpoint {
namespace {

namespace fs = std::filesystem;

// Lists of modules that are not quantised make some large.
constexpr uint64_t kMaxModelConfigBytes = 16u << 20;

Model read_config(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw Error(escaped(folder.native()), fs::exists(folder, error) ? "a file" : "nothing",
                "a folder with config.json and safetensors files");
  }
  const fs::path path = folder / "config.json";
  return read_model(io::read_text_file(path, kMaxModelConfigBytes), escaped(path.native()));
}

}  // namespace

CheckpointParts::CheckpointParts(const fs::path& path) : model(read_config(path)), folder(path) {}

Checkpoint::Checkpoint(const fs::path& folder) : parts_(std::make_shared<const CheckpointParts>(folder)) {}

const ModelFacts& Checkpoint::model() const { return parts_->model.facts; }
size_t Checkpoint::num_files() const { return parts_->folder.num_files(); }
size_t Checkpoint::num_tensors() const { return parts_->folder.tensors().size(); }
uint64_t Checkpoint::num_bytes() const { return parts_->folder.num_bytes(); }

}  // namespace tessera::checkpoint
