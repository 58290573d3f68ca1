// The model that comes with the command.
#pragma once

#include <string>

namespace tessera::cli {

/// `given`, or, where that is empty, the directory of the movie-reviews model that was installed, or built, with this
/// program. Throws Error naming --model where there is none.
std::string model_or_shipped(const std::string& given);

}  // namespace tessera::cli
