#include "command_line.h"

#include <algorithm>
#include <string_view>

#include "nearest_name.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

bool is_option(std::string_view argument) { return argument.size() > 1 && argument[0] == '-'; }

/// The error of one word; what is nearest to it stands on a line of its own.
Error unknown_word(const std::string& where, const std::string& word, const std::string& expected,
                   const std::string& nearest) {
  const std::string suggestion = nearest.empty() ? "" : "\ntessera: did you mean '" + nearest + "'?";
  return Error(where, "'" + escaped(word) + "'", expected + suggestion);
}

std::string listed_by(const CLI::App& command) { return "that " + full_name(command) + " --help lists"; }

Error unknown_command(const CLI::App& command, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::App* sub_command : sub_commands(command)) names.push_back(sub_command->get_name());
  return unknown_word("command", word, "one of those " + listed_by(command), nearest_name(word, names));
}

Error unknown_option(const CLI::App& command, const std::string& argument) {
  const std::string option = argument.substr(0, argument.find('='));
  std::vector<std::string> names;
  for (const CLI::Option* known : command.get_options()) {
    names.insert(names.end(), known->get_lnames().begin(), known->get_lnames().end());
  }
  const size_t dashes = std::min(option.find_first_not_of('-'), option.size());
  const std::string nearest = nearest_name(std::string_view(option).substr(dashes), names);
  return unknown_word("option", option, "one of those " + listed_by(command), nearest.empty() ? "" : "--" + nearest);
}

std::string first_example(const CLI::App& command) {
  const std::string footer = command.get_footer();
  const std::string heading = "Examples:\n";
  const size_t begin = footer.find(heading) + heading.size();
  return footer.substr(begin, footer.find('\n', begin) - begin);
}

}  // namespace

std::vector<const CLI::App*> sub_commands(const CLI::App& command) {
  return command.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> arguments_of(int argc, char** argv) {
  std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
  if (arguments.empty() || arguments[0] != "help") return arguments;
  arguments.erase(arguments.begin());
  arguments.emplace_back("--help");
  return arguments;
}

std::string full_name(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent == nullptr ? command.get_name() : full_name(*parent) + " " + command.get_name();
}

const CLI::App& named_command(const CLI::App& app, const std::vector<std::string>& arguments) {
  const CLI::App* command = &app;
  for (const std::string& word : arguments) {
    const std::vector<const CLI::App*> choice = sub_commands(*command);
    if (choice.empty() || is_option(word)) break;
    const auto found =
        std::find_if(choice.begin(), choice.end(), [&](const CLI::App* one) { return one->get_name() == word; });
    if (found == choice.end()) throw unknown_command(*command, word);
    command = *found;
  }
  return *command;
}

bool lacks_command(const CLI::App& named, const std::vector<std::string>& arguments) {
  return named.get_require_subcommand_min() > 0 && std::none_of(arguments.begin(), arguments.end(), is_option);
}

std::string short_help(const CLI::App& command) {
  const std::string name = full_name(command);
  std::string text = command.get_description() + "\nUsage: " + name + " COMMAND [OPTIONS]\n\nCommands:\n";
  for (const CLI::App* sub_command : sub_commands(command)) {
    std::string column = sub_command->get_name();
    column.resize(std::max<size_t>(column.size(), 10), ' ');
    text += "  " + column + "  " + sub_command->get_description() + "\n";
  }
  return text + "\nExample:\n" + first_example(command) + "\n`" + name +
         " COMMAND --help` says what a command takes, `" + name + " --help` has more.\n";
}

void refuse_single_dashes(const CLI::App& named, const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (argument.size() < 3 || argument[0] != '-' || argument[1] == '-') continue;
    const std::string name = argument.substr(1, argument.find('=') - 1);
    for (const CLI::Option* option : named.get_options()) {
      const std::vector<std::string>& names = option->get_lnames();
      if (std::find(names.begin(), names.end(), name) != names.end()) throw unknown_option(named, argument);
    }
  }
}

void refuse_unplaced(const CLI::App& app) {
  const CLI::App* command = &app;
  while (true) {
    const std::vector<std::string> unplaced = command->remaining();
    if (!unplaced.empty() && is_option(unplaced[0])) throw unknown_option(*command, unplaced[0]);
    if (!unplaced.empty())
      throw unknown_word("argument", unplaced[0], "only what " + full_name(*command) + " --help lists", "");
    const std::vector<const CLI::App*> parsed =
        command->get_subcommands([](const CLI::App* one) { return one->parsed(); });
    if (parsed.empty()) return;
    command = parsed[0];
  }
}

}  // namespace tessera::cli
