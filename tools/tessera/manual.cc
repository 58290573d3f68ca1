#include "manual.h"

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "command_line.h"
#include "exit_codes.h"
#include "output.h"
#include "tessera/core/error.h"

namespace tessera::cli {

namespace {

/// Every command in the order of the help, each before those that it groups.
std::vector<const CLI::App*> all_commands(const CLI::App& app) {
  std::vector<const CLI::App*> commands{&app};
  for (const CLI::App* sub_command : sub_commands(app)) {
    for (const CLI::App* command : all_commands(*sub_command)) commands.push_back(command);
  }
  return commands;
}

/// "-i", "--input"; empty for a positional argument.
std::vector<std::string> names_of(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

bool takes_value(const CLI::Option& option) {
  return option.get_items_expected_max() > 0 && !option.get_type_name().empty();
}
bool takes_path(const CLI::Option& option) {
  return option.get_type_name() == "FILE" || option.get_type_name() == "DIR";
}

std::string joined(const std::vector<std::string>& words, std::string_view separator) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += separator;
    text += word;
  }
  return text;
}

// --- roff ---

std::string roff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) {
      out += std::string("\\&") + c;
    } else {
      out += c;
    }
  }
  return out;
}

void append_option(const CLI::Option& option, std::string& out) {
  std::string heading = joined(names_of(option), ", ");
  if (heading.empty()) heading = option.get_name();
  if (takes_value(option)) heading += " " + option.get_type_name();
  out += ".TP\n.B " + roff(heading) + "\n" + roff(option.get_description()) + "\n";
}

void append_command(const CLI::App& command, std::string& out) {
  out += ".SS " + roff(full_name(command)) + "\n" + roff(command.get_description()) + ".\n";
  for (const CLI::Option* option : command.get_options()) append_option(*option, out);
  if (!command.get_footer().empty()) out += ".PP\n.nf\n" + roff(command.get_footer()) + "\n.fi\n";
}

// --- completion: for each command its words, options and what wants a path ---

struct Words {
  std::vector<std::string> path;  // of the command, without the program's name
  std::vector<std::string> commands;
  std::vector<std::string> options;
  std::vector<std::string> with_path;   // options whose value is a file or directory
  std::vector<std::string> with_value;  // all that take one
};

Words words_of(const CLI::App& command) {
  Words words;
  for (const CLI::App* one = &command; one->get_parent() != nullptr; one = one->get_parent()) {
    words.path.insert(words.path.begin(), one->get_name());
  }
  for (const CLI::App* sub_command : sub_commands(command)) words.commands.push_back(sub_command->get_name());
  if (words.path.empty()) words.commands.emplace_back("help");
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : names_of(*option)) {
      words.options.push_back(name);
      if (takes_path(*option)) words.with_path.push_back(name);
      if (takes_value(*option)) words.with_value.push_back(name);
    }
  }
  return words;
}

/// A shell's case pattern: a|b, or one that nothing matches.
std::string pattern(const std::vector<std::string>& names) { return names.empty() ? "''" : joined(names, "|"); }

std::string bash_script(const CLI::App& app) {
  std::string cases;
  for (const CLI::App* command : all_commands(app)) {
    const Words words = words_of(*command);
    cases += "    '" + joined(words.path, " ") + "')\n      commands='" + joined(words.commands, " ") +
             "'\n      options='" + joined(words.options, " ") + "'\n      case \"$previous\" in\n        " +
             pattern(words.with_path) + ") wants=path ;;\n        " + pattern(words.with_value) +
             ") wants=value ;;\n      esac ;;\n";
  }
  return "# bash completion of tessera, made by `tessera completion bash`\n"
         "_tessera() {\n"
         "  local current=\"${COMP_WORDS[COMP_CWORD]}\" previous=\"${COMP_WORDS[COMP_CWORD-1]}\"\n"
         "  local command='' commands='' options='' wants='' word\n"
         "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
         "    case \"$word\" in help) continue ;; -*) break ;; esac\n"
         "    command=\"${command:+$command }$word\"\n"
         "  done\n"
         "  case \"$command\" in\n" +
         cases +
         "  esac\n"
         "  COMPREPLY=()\n"
         "  if [ \"$wants\" = path ] || { [ -z \"$wants\" ] && [ \"${current#-}\" = \"$current\" ] && [ -z "
         "\"$commands\" ]; "
         "}; then\n"
         "    mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n"
         "  elif [ -z \"$wants\" ]; then\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$commands $options\" -- \"$current\")\n"
         "  fi\n"
         "}\n"
         "complete -o filenames -F _tessera tessera\n";
}

/// zsh runs bash's completions: one list of words for both.
std::string zsh_script(const CLI::App& app) {
  return "#compdef tessera\n# zsh completion of tessera, made by `tessera completion zsh`\n"
         "autoload -U +X bashcompinit && bashcompinit\n" +
         bash_script(app);
}

std::string fish_quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'' || c == '\\') out += '\\';
    out += c;
  }
  return out + "'";
}

std::string fish_script(const CLI::App& app) {
  std::string out =
      "# fish completion of tessera, made by `tessera completion fish`\n"
      "function __tessera_is\n"
      "  set -l words (commandline -opc)[2..-1]\n"
      "  set -l names\n"
      "  for word in $words\n"
      "    string match -q -- '-*' $word; and break\n"
      "    test $word = help; or set -a names $word\n"
      "  end\n"
      "  test \"$names\" = \"$argv\"\n"
      "end\n"
      "complete -c tessera -f\n";
  for (const CLI::App* command : all_commands(app)) {
    const std::string condition = " -n " + fish_quoted("__tessera_is " + joined(words_of(*command).path, " "));
    for (const CLI::App* sub_command : sub_commands(*command)) {
      out += "complete -c tessera" + condition + " -a " + sub_command->get_name() + " -d " +
             fish_quoted(sub_command->get_description()) + "\n";
    }
    for (const CLI::Option* option : command->get_options()) {
      if (names_of(*option).empty()) continue;
      out += "complete -c tessera" + condition;
      for (const std::string& name : option->get_snames()) out += " -s " + name;
      for (const std::string& name : option->get_lnames()) out += " -l " + name;
      if (takes_value(*option)) out += takes_path(*option) ? " -r -F" : " -x";
      out += " -d " + fish_quoted(option->get_description()) + "\n";
    }
  }
  return out;
}

const CLI::App& root_of(const CLI::App& app) {
  const CLI::App* root = &app;
  while (root->get_parent() != nullptr) root = root->get_parent();
  return *root;
}

int print(const std::string& text) {
  Output output("-");
  output.write(text);
  output.commit();
  return kAllOk;
}

}  // namespace

std::string manual_page(const CLI::App& app) {
  std::string out = ".TH TESSERA 1 \"\" \"tessera " TESSERA_VERSION "\" \"User Commands\"\n.SH NAME\ntessera \\- " +
                    roff("label sentences, measure and explain mixture-of-experts layers") +
                    "\n.SH SYNOPSIS\n.B tessera\nCOMMAND [OPTIONS]\n.SH DESCRIPTION\n" + roff(app.get_description()) +
                    "\n.SH OPTIONS\n";
  for (const CLI::Option* option : app.get_options()) append_option(*option, out);
  out += ".SH COMMANDS\n";
  for (const CLI::App* command : all_commands(app)) {
    if (command != &app) append_command(*command, out);
  }
  return out + ".SH EXAMPLES AND EXIT CODES\n.nf\n" + roff(app.get_footer()) + "\n.fi\n";
}

std::string completion_script(const CLI::App& app, const std::string& shell) {
  if (shell == "bash") return bash_script(app);
  if (shell == "zsh") return zsh_script(app);
  if (shell == "fish") return fish_script(app);
  throw Error("shell", "'" + escaped(shell) + "'", "bash, zsh or fish");
}

Command add_completion(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  app.add_option("shell", *shell, "bash, zsh or fish")->type_name("NAME")->required();
  app.footer(
      "Examples:\n"
      "  tessera completion bash > ~/.local/share/bash-completion/completions/tessera\n"
      "  tessera completion zsh > ~/.zfunc/_tessera\n"
      "  tessera completion fish > ~/.config/fish/completions/tessera.fish\n"
      "An installed command has them already.");
  return [&app, shell] { return print(completion_script(root_of(app), *shell)); };
}

Command add_manual(CLI::App& app) {
  app.footer(
      "Examples:\n"
      "  tessera manual | man -l -\n"
      "An installed command has it already: man tessera.");
  return [&app] { return print(manual_page(root_of(app))); };
}

}  // namespace tessera::cli
