// tessera verify: are these logits the right ones?
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "comparison.h"
#include "exit_codes.h"
#include "file_roles.h"
#include "float_file.h"
#include "given_options.h"
#include "integer_option.h"
#include "interrupt.h"
#include "model_options.h"
#include "output.h"
#include "progress.h"
#include "record_sample.h"
#include "run_report.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "verify_input.h"
#include "verify_report.h"

namespace tessera::cli {

namespace {

using classifier::Model;

constexpr const char* kVerifyFooter =
    "Examples:\n"
    "  tessera verify --outputs outputs.bin --answers answers.bin --precision fp16\n"
    "  tessera verify --model full-size --ids inputs.bin --answers answers.bin\n"
    "  tessera verify --model full-size --ids inputs.bin --against oracle --sample 8 --precision bf16\n"
    "  tessera verify --model full-size --report --ids inputs.bin --json report.json\n"
    "Files of logits are fp32 [N, classes]. Two rules are applied to every logit o and its answer a:\n"
    "  ours      |o - a| <= t max(1, |a|), t = 1e-3 for fp32, 2e-2 for fp16, 0.15 for bf16\n"
    "  school's  min(|o - a|, |o - a| / |a|) <= t, t = 1e-3 for fp32, 5e-2 for 16-bit\n"
    "A value that is not finite breaks both. The exit code is 0 when --rule holds everywhere, else 1.\n"
    "--report applies ours; its error is the largest |o - a| / max(1, |a|) of the sample, its speed that of the whole\n"
    "input. Rows that skip experts are shown and not judged.";

struct VerifyOptions {
  ModelOptions model;
  std::string outputs;
  std::string answers;
  VerifyInput input;
  std::string json;
  bool report = false;
  bool all_forms = false;
  std::string against = "answers";
  std::string rule = "ours";
  int64_t num_classes = 2;
  int64_t sample_size = 16;
  bool quiet = false;
};

/// The logits of every record; those of a failed one are NaN. An interrupted run ends the command.
std::vector<float> run_model(const std::shared_ptr<const Model>& model, const ModelOptions& model_options,
                             const VerifyOptions& options, io::RecordReader& reader, bool is_silent) {
  auto classifiers = make_classifiers(model, model_options, input_kind(options.input), is_silent);
  classifier::EngineOptions engine_options;
  engine_options.batch_size = model_options.batch_size;
  engine_options.num_encode_threads = model_options.num_threads;
  classifier::Engine engine(model, std::move(classifiers), engine_options);
  const InterruptGuard interrupt;
  Progress progress(!options.quiet, reader);
  LogitsSink sink(progress);
  const classifier::RunStatistics statistics = engine.run(reader, sink, interrupt.token());
  if (statistics.interrupted) throw Interrupted(interrupt.signal());
  print_failures(statistics);
  if (!options.quiet) {
    if (model_options.verbose) print_back_ends(engine.description());
    print_statistics(statistics);
  }
  return sink.take();
}

/// The precision whose bounds apply: that of the run, or, where files are compared, the one that is named.
std::string judged_precision(const VerifyOptions& options) {
  if (options.outputs.empty()) {
    return precision_name(select_back_end(options.model, find_devices()).coarsest_precision());
  }
  return options.model.precision == "default" ? "fp32" : options.model.precision;
}

struct Logits {
  std::vector<float> outputs;    ///< [num_records, num_classes]
  std::vector<float> answers;    ///< the same
  std::vector<int64_t> indices;  ///< [num_records], in the input
  int64_t num_classes = 0;
};

Logits outputs_and_answers(const VerifyOptions& options) {
  Logits logits;
  logits.num_classes = options.num_classes;
  if (options.outputs.empty()) {
    const auto model = load_model(options.model);
    logits.num_classes = model->config.num_classes;
    logits.answers = read_float_file(options.answers, logits.num_classes);
    logits.outputs = run_model(model, options.model, options, *open_input(options.input, model->config), options.quiet);
  } else {
    logits.answers = read_float_file(options.answers, logits.num_classes);
    logits.outputs = read_float_file(options.outputs, logits.num_classes);
  }
  if (logits.outputs.size() != logits.answers.size()) {
    const size_t num_classes = static_cast<size_t>(logits.num_classes);
    throw Error(escaped(options.answers), str_cat(logits.answers.size() / num_classes, " records"),
                str_cat(logits.outputs.size() / num_classes, ", as many as there are outputs"));
  }
  logits.indices.resize(logits.answers.size() / static_cast<size_t>(logits.num_classes));
  std::iota(logits.indices.begin(), logits.indices.end(), int64_t{0});
  return logits;
}

Logits outputs_and_oracle(const VerifyOptions& options) {
  const auto model = load_model(options.model);
  RecordSample sample = take_sample(*open_input(options.input, model->config), options.sample_size, model->config);
  Logits logits;
  logits.num_classes = model->config.num_classes;
  logits.outputs = run_model(model, options.model, options, *sample.reader(), options.quiet);
  logits.answers = run_model(model, oracle_options(options.model), options, *sample.reader(), true);
  logits.indices = sample.indices;
  return logits;
}

std::string row_text(const std::vector<float>& values, int64_t row, int64_t num_classes) {
  std::string text = "[";
  char number[32];
  for (int64_t i = 0; i < num_classes; ++i) {
    std::snprintf(number, sizeof(number), "%s%.6g", i == 0 ? "" : ", ",
                  static_cast<double>(values[static_cast<size_t>(row * num_classes + i)]));
    text += number;
  }
  return text + "]";
}

std::string report(const Logits& logits, const Comparison& result, const Tolerance& tolerance) {
  std::string text = str_cat("compared      ", result.num_records, " records of ", result.num_classes, " logits\n");
  text += str_cat("our rule      ", result.num_over_ours, " values over ", tolerance.ours, " max(1, |a|)\n");
  text += str_cat("school's rule ", result.num_over_school, " values over ", tolerance.school, "\n");
  text += str_cat("not finite    ", result.num_not_finite, " values\n");
  text += str_cat("same label    ", result.num_same_label, " of ", result.num_records, "\n");
  text += str_cat("difference    at most ", result.max_difference, ", ", result.mean_difference, " on average\n");
  for (const WorstRecord& worst : result.worst) {
    text += str_cat("  record ", logits.indices[static_cast<size_t>(worst.record)], ": got ",
                    row_text(logits.outputs, worst.record, result.num_classes), ", expected ",
                    row_text(logits.answers, worst.record, result.num_classes), "\n");
  }
  return text;
}

void check_report_options(const VerifyOptions& options) {
  if (!options.report) {
    if (!options.json.empty()) throw Error("--json", "no --report", "--report with it");
    if (options.all_forms) throw Error("--all-forms", "no --report", "--report with it");
    return;
  }
  if (options.model.model.empty() || options.input.num_named() > 1 || !options.outputs.empty() ||
      !options.answers.empty() || options.against != "answers") {
    throw Error("verify --report", "another combination of options",
                "--model DIR, and at most one of --ids, --embeddings and --text");
  }
  if (options.all_forms && options.model.form != "auto") {
    throw Error("--all-forms", "--form " + escaped(options.model.form) + " too", "one of them");
  }
}

void check_options(const VerifyOptions& options) {
  const bool against_oracle = options.against == "oracle";
  if (!against_oracle && options.against != "answers") {
    throw Error("--against", "'" + escaped(options.against) + "'", "answers or oracle");
  }
  if (options.rule != "ours" && options.rule != "school" && options.rule != "both") {
    throw Error("--rule", "'" + escaped(options.rule) + "'", "ours, school or both");
  }
  if (against_oracle != options.answers.empty()) {
    throw Error("verify",
                against_oracle ? "both --against oracle and --answers" : "neither --answers nor --against oracle",
                "one of them");
  }
  const int num_inputs = options.input.num_named();
  if (options.outputs.empty() ? num_inputs != 1 || options.model.model.empty()
                              : num_inputs != 0 || !options.model.model.empty() || against_oracle) {
    throw Error("verify", "another combination of options",
                "--outputs FILE, or --model DIR with one of --ids, --embeddings and --text");
  }
}

/// What has no effect on this kind of verification.
void refuse_unused(const VerifyOptions& options, const CLI::App& app) {
  if (options.report) {
    refuse_given(app, {"--rule"}, "--report, which gives no verdict", "no --report with it");
    refuse_given(app, {"--classes"}, "--report, whose model says how many", "--outputs FILE with it");
  } else if (options.outputs.empty()) {
    refuse_given(app, {"--classes"}, "--model, which says how many", "--outputs FILE with it");
    if (options.against == "answers")
      refuse_given(app, {"--sample"}, "--answers, all of which are compared", "--against oracle or --report with it");
  } else {
    refuse_given(app, {"--sample"}, "--outputs, all of which are compared", "--against oracle or --report with it");
    refuse_given(app, {"--device", "--threads", "--batch-size", "--layer-precision", "--form", "--expert-threshold"},
                 "--outputs, for which no model runs", "--model DIR with it");
  }
}

int verify(const VerifyOptions& options, const CLI::App& app) {
  check_report_options(options);
  FileRoles roles;
  roles.reads_model("--model", options.model.model);
  roles.reads("--outputs", options.outputs);
  roles.reads("--answers", options.answers);
  roles.reads("--ids", options.input.ids);
  roles.reads("--embeddings", options.input.embeddings);
  roles.reads("--text", options.input.text);
  roles.writes("--json", options.json);
  if (!options.report) check_options(options);
  refuse_unused(options, app);
  if (options.report) {
    return print_verify_report({.model = options.model,
                                .input = options.input,
                                .sample_size = options.sample_size,
                                .all_forms = options.all_forms,
                                .json = options.json,
                                .quiet = options.quiet});
  }
  const Tolerance tolerance = tolerance_of(judged_precision(options));
  const Logits logits = options.against == "oracle" ? outputs_and_oracle(options) : outputs_and_answers(options);
  // Agreement of nothing with nothing proves nothing.
  if (logits.indices.empty()) throw Error("verify", "no records", "at least one to compare");
  const Comparison result = compare_logits(logits.outputs, logits.answers, logits.num_classes, tolerance);
  const bool holds = (options.rule == "school" || result.num_over_ours == 0) &&
                     (options.rule == "ours" || result.num_over_school == 0);
  Output output("-");
  output.write(report(logits, result, tolerance));
  output.write(holds ? "verified\n" : "NOT verified\n");
  output.commit();
  return holds ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_verify(CLI::App& app) {
  auto options = std::make_shared<VerifyOptions>();
  add_model_options(app, options->model, false);
  app.add_option("--outputs", options->outputs, "Logits to judge, fp32 [N, classes]")->type_name("FILE");
  app.add_option("--answers", options->answers, "The right logits, fp32 [N, classes]")->type_name("FILE");
  app.add_option("--ids", options->input.ids, "Token ids to run the model on, int32 [N, sequence length]")
      ->type_name("FILE");
  app.add_option("--embeddings", options->input.embeddings, "Embeddings to run it on, fp32 [N, channels, positions]")
      ->type_name("FILE");
  app.add_option("--text", options->input.text, "A text file to run it on, a sentence a line")->type_name("FILE");
  app.add_option("--against", options->against, "answers, or oracle: the same model in fp64")
      ->type_name("NAME")
      ->capture_default_str();
  add_integer(app, "--sample", options->sample_size, "Records to compare with the oracle, spread over the input",
              int64_t{1}, int64_t{1} << 20);
  add_integer(app, "--classes", options->num_classes, "Logits a record, with --outputs", int64_t{1}, int64_t{1} << 20);
  app.add_option("--rule", options->rule, "Which rule decides: ours, school or both")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_flag(
      "--report", options->report,
      "Error against the oracle and speed of every precision, or of --precision; without a file on made-up input");
  app.add_flag("--all-forms", options->all_forms, "Report each form of the convolutions that a GPU has");
  app.add_option("--json", options->json, "Write the report as JSON to this file too")->type_name("FILE");
  app.add_flag("-q,--quiet", options->quiet, "Only the report");
  app.footer(kVerifyFooter);
  return [options, &app] { return verify(*options, app); };
}

}  // namespace tessera::cli
