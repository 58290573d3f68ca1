// The sub-commands, one file each. `add_<name>` declares the options on `app` and returns what runs once they are
// parsed; its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace tessera::cli {

using Command = std::function<int()>;

Command add_classify(CLI::App& app);
Command add_merge(CLI::App& app);
Command add_evaluate(CLI::App& app);
Command add_verify(CLI::App& app);
Command add_convert(CLI::App& app);
Command add_synth(CLI::App& app);
Command add_doctor(CLI::App& app);
Command add_inspect(CLI::App& app);
Command add_bench_classify(CLI::App& app);
Command add_bench_moe(CLI::App& app);
Command add_explain_moe(CLI::App& app);
Command add_explain_bits(CLI::App& app);
Command add_report(CLI::App& app);

}  // namespace tessera::cli
