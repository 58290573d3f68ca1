// The model that comes with the command.
#pragma once

#include <string>

namespace tessera::cli {

/// The directory of the movie-reviews model that was installed, or built, with this program; empty where there is none.
std::string shipped_model();

}  // namespace tessera::cli
