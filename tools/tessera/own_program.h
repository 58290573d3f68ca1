// This very program once more, as a process of its own: what a command says can be put into a report as it stands.
#pragma once

#include <string>
#include <vector>

namespace tessera::cli {

struct ProgramRun {
  int exit_code = 0;
  std::string output;  ///< standard output
};

/// Runs `tessera ARGUMENTS...` to its end; standard error is this process's. Throws Incomplete where it cannot be run.
ProgramRun run_own_program(const std::vector<std::string>& arguments);

}  // namespace tessera::cli
