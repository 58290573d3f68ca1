// The manual page and the shells' completions, made of the same declarations as --help.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "commands.h"

namespace tessera::cli {

/// tessera.1, in roff.
std::string manual_page(const CLI::App& app);

/// A script for bash, zsh or fish; Error naming another shell.
std::string completion_script(const CLI::App& app, const std::string& shell);

/// `tessera completion SHELL` and `tessera manual`, which print them.
Command add_completion(CLI::App& app);
Command add_manual(CLI::App& app);

}  // namespace tessera::cli
