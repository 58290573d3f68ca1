// How the command is called: which sub-command the words name, and what is said where they are wrong.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace tessera::cli {

/// The arguments behind the program's name; "help bench moe" becomes "bench moe --help".
std::vector<std::string> arguments_of(int argc, char** argv);

/// Those directly under it, in the order in which they were added.
std::vector<const CLI::App*> sub_commands(const CLI::App& command);

/// "tessera bench moe".
std::string full_name(const CLI::App& command);

/// The command that the leading words of `arguments` name, `app` itself where there is none. Error for a word that is
/// no sub-command where one is due.
const CLI::App& named_command(const CLI::App& app, const std::vector<std::string>& arguments);

/// Whether `named` wants a sub-command and the arguments say nothing further, not even an option.
bool lacks_command(const CLI::App& named, const std::vector<std::string>& arguments);

/// For a command that does nothing without a sub-command: each of these on a line, and the first example of its footer.
std::string short_help(const CLI::App& command);

/// Error for a long option behind one dash: "-input" would be -i with the value "nput".
void refuse_single_dashes(const CLI::App& named, const std::vector<std::string>& arguments);

/// Error for the first argument that a parse of `app` could not place. A parse stops at the first thing it finds wrong,
/// such as an option that is missing because its name was mistyped: ask this first.
void refuse_unplaced(const CLI::App& app);

}  // namespace tessera::cli
