// tessera: labels sentences with a mixture-of-experts classifier, looks after its models, and measures the layer
// itself.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "command_line.h"
#include "commands.h"
#include "exit_codes.h"
#include "guarded_command.h"
#include "manual.h"
#include "side_file.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "usage_error.h"
#include "worker_process.h"

namespace {

using namespace tessera::cli;

constexpr const char* kDescription =
    "Labels sentences with a mixture-of-experts text classifier, and measures and explains mixture-of-experts layers.\n"
    "Results go to standard output or a file, everything else to standard error.";

constexpr const char* kMainFooter =
    "Examples:\n"
    "  tessera classify --text \"Tender, funny and beautifully acted.\"\n"
    "  tessera classify -i reviews.csv --keep all -o labels.jsonl\n"
    "  tessera synth --preset apws25 --seed 1 --output full-size\n"
    "  tessera doctor\n"
    "  tessera bench moe --preset qwen3-30b --tokens 4096\n"
    "Exit codes: 0 all ok; 1 some records failed or differ; 2 usage, files or configuration;\n"
    "3 a device failed, the others finished the work; 4 incomplete, --resume continues where the run has a journal;\n"
    "5 a file beside the results, which are whole, could not be written;\n"
    "130 interrupted (143 by SIGTERM); 141 standard output was closed.\n"
    "`tessera COMMAND --help`, or `tessera help COMMAND`, says more.";

constexpr const char* kBenchFooter =
    "Examples:\n"
    "  tessera bench moe --preset qwen3-30b --tokens 4096\n"
    "  tessera bench classify --preset small --device cpu --seconds 0.2";

constexpr const char* kExplainFooter =
    "Examples:\n"
    "  tessera explain moe --preset qwen3-30b --tokens 4096\n"
    "  tessera explain bits --a 1.5,-1.5,0.0001 --b 1.5,1.5,1";

const std::string kUsageCode = "2 an option, a file or a model is wrong, nothing was run";

/// Descriptors that the parent closed would go to the next files that are opened: messages would land in the output.
void open_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    // The lowest that is free, and those below it are open: it is this one. Standard input cannot be read and standard
    // output not written, as if they were closed; messages go nowhere.
    static_cast<void>(open("/dev/null", descriptor == STDOUT_FILENO ? O_RDONLY : O_WRONLY));
  }
}

/// An unset variable of a shell leaves "": no option means that, but for a sentence.
void refuse_empty_values(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    if (command.get_name() == "classify" && option->get_name() == "--text") continue;
    for (const std::string& value : option->results()) {
      if (value.empty()) throw tessera::Error(option->get_name(), "'' (an empty text)", "a value");
    }
  }
}

using Commands = std::vector<std::pair<CLI::App*, Command>>;

Commands add_commands(CLI::App& app) {
  Commands commands;
  const auto add_to = [&](CLI::App& parent, const char* name, const char* description,
                          Command (*add_command)(CLI::App&), const std::string& exit_codes) {
    CLI::App* command = parent.add_subcommand(name, description);
    commands.emplace_back(command, add_command(*command));
    command->footer(command->get_footer() + "\nExit codes: " + exit_codes + ".");
  };
  const auto add = [&](const char* name, const char* description, Command (*add_command)(CLI::App&),
                       const std::string& exit_codes) { add_to(app, name, description, add_command, exit_codes); };
  const auto add_group = [&](const char* name, const char* description, const char* footer) -> CLI::App& {
    CLI::App& group = *app.add_subcommand(name, description)->require_subcommand(1);
    group.footer(footer);
    return group;
  };
  add("classify", "Label text, token ids or embeddings", add_classify,
      "0 all labelled; 1 some records failed, the others are labelled; " + kUsageCode +
          ";\n3 a device failed, the others finished the work; 4 incomplete, --resume continues;\n5 --statistics could "
          "not be written; 130 interrupted (143 by SIGTERM); 141 standard output was closed");
  add("merge", "Put the parts of a sharded run together", add_merge,
      "0 merged; 1 merged, and some records had failed; " + kUsageCode + ";\n4 OUTPUT could not be written");
  add("evaluate", "Label sentences whose labels are known and print the accuracy", add_evaluate,
      "0 all rows counted; 1 some rows failed; " + kUsageCode +
          ";\n3 a device failed, the others finished the work; 4 incomplete; 5 --statistics could not be written;\n130 "
          "interrupted; 141 standard output was closed");
  add("verify", "Compare results with an answers file or with the fp64 oracle", add_verify,
      "0 the rule holds everywhere; 1 it does not, or records failed; " + kUsageCode +
          ";\n4 incomplete; 5 --json could not be written; 130 interrupted");
  add("convert", "Between the school's format and a checkpoint; token ids to embeddings", add_convert,
      "0 converted; " + kUsageCode + "; 4 an output could not be written");
  add("synth", "Write a synthetic model of any size, and inputs for it", add_synth,
      "0 written; " + kUsageCode + "; 4 an output could not be written");
  add("doctor", "Say what this machine offers and run a small model against the oracle", add_doctor,
      "0 healthy; 1 a precision of a device disagrees; " + kUsageCode);
  add("inspect", "Say what a checkpoint on disk holds and how its layers would run here", add_inspect,
      "0 some layer runs here; 1 none does; " + kUsageCode);
  CLI::App& bench = add_group("bench", "Measure a part of the library on this machine", kBenchFooter);
  const std::string measured = "0 measured, and the results are right; 1 they are wrong; " + kUsageCode +
                               ";\n4 a device failed; 5 --json could not be written; 130 interrupted";
  add_to(bench, "classify", "The classifier against what this machine's copies, memory and products allow",
         add_bench_classify, measured);
  add_to(bench, "moe", "A mixture-of-experts layer against dense products of the same size", add_bench_moe, measured);
  CLI::App& explain = add_group("explain", "Say what a part of the library will do and what limits it", kExplainFooter);
  add_to(explain, "moe", "The plan of a mixture-of-experts layer on a GPU: tiles, waves, floors, predicted times",
         add_explain_moe, "0 explained; " + kUsageCode + "; 5 a file beside the report could not be written");
  add_to(explain, "bits", "What a GPU's tensor cores make of one dot product, step by step, bit for bit",
         add_explain_bits, "0 explained; " + kUsageCode);
  add("report", "Put what this machine is and does, and what a GPU would do, on one page", add_report,
      "0 written; 1 written, and a measured result is wrong; " + kUsageCode +
          ";\n4 a measurement broke off; 5 the page could not be written");
  add("completion", "Print the completion of a shell: bash, zsh or fish", add_completion, "0 printed; " + kUsageCode);
  add("manual", "Print the manual page, for man -l -", add_manual, "0 printed; " + kUsageCode);
  return commands;
}

int run_command(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == kWorkerCommand) return run_worker_process({argv + 2, argv + argc});
  CLI::App app(kDescription, "tessera");
  app.footer(kMainFooter);
  app.set_version_flag("--version", std::string("tessera " TESSERA_VERSION));
  app.require_subcommand(1);
  const Commands commands = add_commands(app);
  std::vector<std::string> arguments = arguments_of(argc, argv);
  const CLI::App& named = named_command(app, arguments);
  if (lacks_command(named, arguments)) {
    std::fputs(short_help(named).c_str(), stderr);
    return kUsage;
  }
  refuse_single_dashes(named, arguments);
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    app.parse(std::move(arguments));
  } catch (const CLI::Success& wanted) {  // --help, --version
    return app.exit(wanted);
  } catch (const CLI::ParseError& error) {
    refuse_unplaced(app);
    return fail(kUsage, std::string(usage_error(error).what()) + " (" + full_name(named) + " --help)");
  }
  for (const auto& [parsed, command] : commands) {
    if (!parsed->parsed()) continue;
    refuse_empty_values(*parsed);
    return command();
  }
  return kUsage;
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of write, which has an exit code of its own
  return run_guarded([&] { return run_command(argc, argv); });
}
