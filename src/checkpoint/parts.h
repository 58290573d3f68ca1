// What a Checkpoint has read: the model's facts and every tensor's header.
#pragma once

#include <filesystem>

#include "checkpoint/family.h"
#include "io/safetensors_folder.h"

namespace tessera::checkpoint {

struct CheckpointParts {
  explicit CheckpointParts(const std::filesystem::path& folder);

  Model model;
  io::SafetensorsFolder folder;
};

}  // namespace tessera::checkpoint
