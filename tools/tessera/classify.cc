// tessera classify: records in, labels out.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "file_format.h"
#include "file_roles.h"
#include "integer_option.h"
#include "interrupt.h"
#include "io/record_stream.h"
#include "io/records.h"
#include "io/results.h"
#include "long_run.h"
#include "model_options.h"
#include "output.h"
#include "progress.h"
#include "result_writer.h"
#include "run_report.h"
#include "side_file.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "text_list.h"

namespace tessera::cli {

namespace {

using classifier::ClassifierConfig;
using io::InputFormat;
using io::OutputFormat;

constexpr const char* kFooter =
    "Examples:\n"
    "  tessera classify --model models/movie-reviews --text \"Not bad at all.\" --text \"Dull.\"\n"
    "  tessera classify --model models/movie-reviews --input reviews.csv --field review --output labels.jsonl\n"
    "  cut -f2 reviews.tsv | tessera classify --model models/movie-reviews --input - --expert-weights\n"
    "  tessera classify --model full-size --input inputs.bin --format ids --output logits.bin\n"
    "  tessera classify --model full-size --input inputs.bin --format ids --output logits.bin --resume\n"
    "  mpirun -np 4 tessera classify --model full-size --input all.txt --output labels.csv --shard auto\n"
    "  tessera classify --model full-size --input all.txt --output labels.csv --shard 2/4\n"
    "Formats in: text (a line is a record), csv and jsonl (--field names the column or member), ids (int32 [N,\n"
    "sequence length]), embeddings (fp32 [N, channels, positions]). Formats out: text (label, tab, probability), csv,\n"
    "jsonl, bin (fp32 logits [N, classes]). Without --format and --output-format the file's extension decides, else\n"
    "text; extensions of formats that are not read or written are refused. Blank lines of csv and jsonl are no\n"
    "records.\n"
    "A record that fails is reported in its place and the others are labelled; the exit code is then 1. Ctrl-C "
    "finishes\n"
    "what is in flight and leaves OUTPUT.partial (exit code 130); a finished run renames it to OUTPUT. Where input "
    "and\n"
    "output are files, OUTPUT.journal counts what is on disk: after Ctrl-C, a crash or a failure (exit code 4) the "
    "same\n"
    "command with --resume continues, and the output is that of a run that was never broken off. What a run with\n"
    "--resume finished is left alone by the next. A device that fails while others finish the work is exit code 3.\n"
    "With --shard the output is OUTPUT.I-of-N with a manifest, and 'tessera merge OUTPUT' puts the parts together\n"
    "(docs/how-to/long-runs.md).";

// Results of so many batches wait in memory for each device.
constexpr int64_t kMaxVerifyRate = 4096;

struct Options {
  ModelOptions model;
  std::vector<std::string> texts;
  std::string input;
  std::string format;
  std::string field;
  std::string output = "-";
  std::string output_format;
  std::string statistics;
  bool expert_weights = false;
  bool show_text = false;
  bool quiet = false;
  bool resume = false;
  std::string shard;
  int64_t verify_rate = 0;
};

io::ResultFormat result_format(const Options& options, const ClassifierConfig& config) {
  io::ResultFormat format;
  format.format = output_format(options.output, options.output_format);
  format.show_text = options.show_text;
  format.num_classes = static_cast<int>(config.num_classes);
  format.num_expert_weights = options.expert_weights ? static_cast<int>(config.num_experts) : 0;
  if (options.expert_weights && format.format == OutputFormat::bin) {
    throw Error("--expert-weights", "--output-format bin, which holds logits only", "text, csv or jsonl");
  }
  if (options.show_text && format.format != OutputFormat::text) {
    throw Error("--show-text", "another output format", "text");
  }
  return format;
}

void check_options(const Options& options) {
  if (options.texts.empty() == options.input.empty()) {
    throw Error("classify", options.texts.empty() ? "neither --text nor --input" : "both --text and --input",
                "one of them");
  }
  for (const auto& [name, value] : {std::pair("--format", &options.format), std::pair("--field", &options.field)}) {
    if (options.input.empty() && !value->empty()) throw Error(name, "no --input", "--input FILE with it");
  }
  if (!options.model.isolation.is_on && options.model.isolation.num_processes != 1) {
    throw Error("--processes", "no --isolate", "--isolate with it");
  }
  if (options.field.empty()) return;
  const InputFormat format = input_format(options.input, options.format);
  if (format != InputFormat::csv && format != InputFormat::jsonl) {
    throw Error("--field", "an input of format " + std::string(io::input_format_name(format)) + ", which has no fields",
                "--format csv or --format jsonl with it");
  }
}

/// What is written may not be what is read.
void check_roles(const Options& options, const LongRun& long_run) {
  FileRoles roles;
  roles.reads_model("--model", options.model.model);
  roles.reads("--input", options.input);
  roles.writes_long_run("--output", long_run.output_path());
  roles.writes("--statistics", options.statistics);
}

std::unique_ptr<io::RecordReader> open_reader(const Options& options, InputFormat format,
                                              const ClassifierConfig& config, const std::atomic<bool>& stop) {
  if (!options.texts.empty()) return std::make_unique<TextListReader>(options.texts);
  io::RecordSource source;
  source.format = format;
  source.path = options.input;
  source.field = options.field;
  source.sequence_length = config.sequence_length;
  source.embedding_size = config.embedding_size;
  source.stop = &stop;
  return io::open_records(source);
}

/// Only what a checkpoint counts can be continued.
const char* how_to_go_on(const LongRun& long_run) {
  return long_run.can_resume() ? "; the same command with --resume continues there" : "";
}

/// The run itself: an Error from here on means that the work is incomplete.
classifier::RunStatistics run(classifier::Engine& engine, io::RecordReader& reader, ResultWriter& writer,
                              const std::stop_token& stop, const Output& output, const LongRun& long_run) {
  try {
    return engine.run(reader, writer, stop);
  } catch (const classifier::NoThreads&) {
    throw;  // nothing was run
  } catch (const io::NotText&) {
    throw;  // nor was anything read
  } catch (const Error& error) {
    writer.checkpoint();
    const std::string partial = output.partial_name();
    throw Incomplete(error.what() + (partial.empty() ? "" : "; what was labelled before is in " + partial) +
                     how_to_go_on(long_run));
  } catch (const Incomplete& error) {
    throw Incomplete(std::string(error.what()) + how_to_go_on(long_run));
  }
}

RunIdentity identity_of(const Options& options, InputFormat format, const io::ResultFormat& results,
                        const classifier::Engine& engine) {
  return {.model = options.model.model,
          .input_format = format,
          .input_field = options.field,
          .results = results,
          .back_ends = engine.description(),
          .arithmetic = describe_arithmetic(back_end_of(options.model))};
}

int report_finished(const io::PartManifest& manifest, const std::string& path) {
  std::fprintf(stderr, "tessera: %s is complete already: %lld records\n", escaped(path).c_str(),
               static_cast<long long>(manifest.num_records()));
  return manifest.num_failed > 0 ? kSomeFailed : kAllOk;
}

int report(const Options& options, const classifier::RunStatistics& statistics, const classifier::Engine& engine,
           const RunStart& start, const io::RecordReader& reader) {
  print_failures(statistics);
  const int64_t num_resumed = start.done.num_records();
  if (!options.quiet) {
    print_back_ends(engine.description());
    if (start.is_resumed) {
      std::fprintf(stderr, "tessera: %lld records were finished before, %lld of them failed; in this run:\n",
                   static_cast<long long>(num_resumed), static_cast<long long>(start.done.num_failed));
    }
    print_statistics(statistics);
    if (reader.num_blank_lines() > 0) {
      std::fprintf(stderr, "tessera: %lld blank lines are no records\n",
                   static_cast<long long>(reader.num_blank_lines()));
    }
  }
  return exit_code_of(statistics, start.done.num_failed);
}

std::string statistics_of(const Options& options, const classifier::RunStatistics& statistics, const RunStart& start,
                          const io::RecordReader& reader) {
  return statistics_text(statistics, options.model.num_threads,
                         {{"records_resumed", static_cast<double>(start.done.num_records())},
                          {"records_resumed_failed", static_cast<double>(start.done.num_failed)},
                          {"blank_lines", static_cast<double>(reader.num_blank_lines())}});
}

int run_and_report(const Options& options, LongRun& long_run, classifier::Engine& engine, io::RecordReader& reader,
                   const ClassifierConfig& config, const io::ResultFormat& results, RunStart start) {
  SideFile statistics_file("--statistics", options.statistics);
  // Last, so that nothing else that is wrong leaves an empty file behind.
  Output output = long_run.open_output(start);
  RunStart begin{.done = start.done, .checksum = nullptr, .is_resumed = start.is_resumed};
  classifier::RunStatistics statistics;
  io::Checkpoint done;
  int signal = 0;
  {
    const InterruptGuard interrupt;
    // Labels on the same terminal would stand in the middle of the bar.
    Progress progress(!options.quiet && !(options.output == "-" && isatty(STDOUT_FILENO) == 1), reader);
    ResultWriter writer(config, results, output, progress, std::move(start), long_run.journal());
    statistics = run(engine, reader, writer, interrupt.token(), output, long_run);
    signal = interrupt.signal();
    done = writer.done();
    if (statistics.interrupted) {
      writer.checkpoint();
    } else {
      long_run.commit(output, done, results);
    }
  }
  const int exit_code = report(options, statistics, engine, begin, reader);
  if (statistics.interrupted && !output.partial_name().empty()) {
    std::fprintf(stderr, "tessera: interrupted; the first %lld results are in %s%s\n",
                 static_cast<long long>(done.num_records()), output.partial_name().c_str(), how_to_go_on(long_run));
  }
  try {
    statistics_file.write(statistics_of(options, statistics, begin, reader));
  } catch (const SideFileFailed& error) {
    if (!statistics.interrupted) throw;
    std::fprintf(stderr, "tessera: %s\n", error.what());  // the results are not whole either
  }
  return statistics.interrupted ? 128 + signal : exit_code;
}

int classify(const Options& options) {
  check_options(options);
  LongRun long_run({.input = options.input,
                    .output = options.output,
                    .shard = options.shard,
                    .resume = options.resume,
                    .quiet = options.quiet});
  check_roles(options, long_run);
  const InputFormat format = options.texts.empty() ? input_format(options.input, options.format) : InputFormat::text;
  const auto model = load_model(options.model);
  const bool is_text = format != InputFormat::ids && format != InputFormat::embeddings;
  if (is_text && model->vocabulary.empty()) {
    throw Error(escaped(options.model.model) + "/vocab.txt", "no such file",
                "the words of the model, which text needs");
  }
  const io::ResultFormat results = result_format(options, model->config);
  std::atomic<bool> stop_reader{false};
  auto reader = open_reader(options, format, model->config, stop_reader);
  auto classifiers = make_classifiers(
      model, options.model,
      format == InputFormat::embeddings ? classifier::InputKind::embeddings : classifier::InputKind::ids,
      options.quiet);
  classifier::EngineOptions engine_options;
  engine_options.batch_size = options.model.batch_size;
  engine_options.num_encode_threads = options.model.num_threads;
  engine_options.router_weights = options.expert_weights;
  engine_options.stop_reader = &stop_reader;
  engine_options.verify_rate = options.verify_rate;
  engine_options.device_of = devices_of_lanes(options.model, classifiers.size());
  classifier::Engine engine(model, std::move(classifiers), engine_options);

  RunStart start = long_run.begin(identity_of(options, format, results, engine));
  if (const auto& finished = long_run.finished()) return report_finished(*finished, long_run.output_path());
  reader = long_run.select(std::move(reader), format, start.done, stop_reader);
  return run_and_report(options, long_run, engine, *reader, model->config, results, std::move(start));
}

}  // namespace

Command add_classify(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_options(app, options->model);
  add_isolation_options(app, options->model.isolation);
  add_integer(
      app, "--verify-rate", options->verify_rate,
      "Compute one batch in N of each device again, on another device where there is one, and hold results back "
      "until then; a device whose results differ is not used again; 0 = none",
      int64_t{0}, kMaxVerifyRate);
  app.add_option("--text", options->texts, "A sentence; can be given several times")->allow_extra_args(false);
  app.add_option("--input", options->input, "A file, or - for standard input")->type_name("FILE");
  app.add_option("--format", options->format, "text, csv, jsonl, ids or embeddings")->type_name("NAME");
  app.add_option("--field", options->field, "Column of a csv or member of a jsonl input; else text, else sentence")
      ->type_name("NAME");
  app.add_option("--output", options->output, "A file, or - for standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_option("--output-format", options->output_format, "text, csv, jsonl or bin")->type_name("NAME");
  app.add_flag("--expert-weights", options->expert_weights, "Add how much each expert counted");
  app.add_flag("--show-text", options->show_text, "Text output: add the sentence");
  app.add_flag("--resume", options->resume, "Go on where an earlier run with these options broke off");
  app.add_option("--shard", options->shard, "Label the I-th of N parts only, I from 0; auto: as mpirun or srun say")
      ->type_name("I/N");
  app.add_option("--statistics", options->statistics, "Write counts, rate and memory as JSON to this file")
      ->type_name("FILE");
  app.add_flag("--quiet", options->quiet, "No progress, no statistics; failed records are still listed");
  app.footer(kFooter);
  return [options] { return classify(*options); };
}

}  // namespace tessera::cli
