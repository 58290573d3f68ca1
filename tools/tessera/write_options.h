// Options of the commands that write models.
#pragma once

#include <string>

#include "tessera/classifier/config.h"
#include "tessera/core/dtype.h"

namespace tessera::cli {

/// "f32", "f16" or "bf16"; Error naming --dtype for anything else.
DType parse_dtype(const std::string& name);

/// Exactly one of a preset's name and a config.json. Error otherwise.
classifier::ClassifierConfig read_config(const std::string& preset, const std::string& config_path);

}  // namespace tessera::cli
