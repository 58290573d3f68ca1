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

/// Says on standard error that a checkpoint lies where one is to be written.
void warn_of_replaced_checkpoint(const std::string& directory);

}  // namespace tessera::cli
