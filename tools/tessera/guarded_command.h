// Runs a command and turns what it throws into an exit code and a line on standard error.
#pragma once

#include <functional>
#include <string>

namespace tessera::cli {

/// Prints "tessera: error: MESSAGE"; returns the code.
int fail(int exit_code, const std::string& message);

int run_guarded(const std::function<int()>& command);

}  // namespace tessera::cli
