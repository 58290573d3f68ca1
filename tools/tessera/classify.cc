// tessera classify: records in, labels out.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "decompress.h"
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
#include "record_options.h"
#include "result_writer.h"
#include "run_report.h"
#include "shipped_model.h"
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

constexpr const char* kClassifyFooter =
    "Examples:\n"
    "  tessera classify --text \"Not bad at all.\" --text \"Dull.\"\n"
    "  tessera classify -i reviews.csv --field review --keep id,stars -o labels.csv\n"
    "  tessera classify -i reviews.tsv.gz --keep all --probabilities --min-probability 0.7 -o labels.jsonl\n"
    "  tessera classify -i export.csv --delimiter ';' --encoding cp1252 --field Text -o labels.tsv\n"
    "  cut -f2 reviews.tsv | tessera classify -i - --token-counts\n"
    "  tessera classify --model full-size --input inputs.bin --format ids --output logits.bin --resume\n"
    "  mpirun -np 4 tessera classify --input all.txt --output labels.csv --shard auto\n"
    "Formats in: text (a line is a record), csv, tsv and jsonl (--field names the column or member), ids (int32 [N,\n"
    "sequence length]), embeddings (fp32 [N, channels, positions]). Text may be compressed (gzip, zstd, xz) and in "
    "any\n"
    "encoding; reviews.csv.gz is a csv. Formats out: text (label, tab, probability), csv, tsv, jsonl, bin (fp32 "
    "logits\n"
    "[N, classes]). Without --format and --output-format the file's extension decides, else text; extensions of "
    "formats\n"
    "that are not read or written are refused. Blank lines of csv, tsv and jsonl are no records.\n"
    "A text without words has the label 'empty', and no probability. A record that fails is reported in its place and "
    "the\n"
    "others are labelled. A kept column that is called as one of the results' becomes input_NAME.\n"
    "Ctrl-C finishes what is in flight and leaves OUTPUT.partial; a finished run renames it to OUTPUT. Where input "
    "and\n"
    "output are files, OUTPUT.journal counts what is on disk: after Ctrl-C, a crash or a failure the same command "
    "with\n"
    "--resume continues, and the output is that of a run that was never broken off. What a run with --resume finished "
    "is\n"
    "left alone by the next. With --shard the output is OUTPUT.I-of-N with a manifest, and 'tessera merge OUTPUT' "
    "puts\n"
    "the parts together (docs/how-to/long-runs.md).";

// Results of so many batches wait in memory for each device.
constexpr int64_t kMaxVerifyRate = 4096;

struct ClassifyOptions {
  ModelOptions model;
  std::vector<std::string> texts;
  std::string input;
  std::string format;
  std::string output = "-";
  std::string output_format;
  std::string statistics;
  RecordOptions records;
  bool quiet = false;
  bool resume = false;
  std::string shard;
  int64_t verify_rate = 0;
};

void check_options(const ClassifyOptions& options) {
  if (options.texts.empty() == options.input.empty()) {
    throw Error("classify", options.texts.empty() ? "neither --text nor --input" : "both --text and --input",
                "one of them");
  }
  if (!options.model.isolation.is_on && options.model.isolation.num_processes != 1) {
    throw Error("--processes", "no --isolate", "--isolate with it");
  }
  if (options.input.empty() && !options.format.empty()) throw Error("--format", "no --input", "--input FILE with it");
  const InputFormat format = options.input.empty() ? InputFormat::text : input_format(options.input, options.format);
  check_input_options(options.records, format, !options.input.empty());
  const bool is_compressed = is_compressed_extension(lower_extension(options.input));
  if (is_compressed && (format == InputFormat::ids || format == InputFormat::embeddings)) {
    throw Error("--input " + escaped(options.input), "a compressed file of numbers", "one that is not");
  }
}

/// What is written may not be what is read.
void check_roles(const ClassifyOptions& options, const LongRun& long_run) {
  FileRoles roles;
  roles.reads_model("--model", options.model.model);
  roles.reads("--input", options.input);
  roles.writes_long_run("--output", long_run.output_path());
  roles.writes("--statistics", options.statistics);
}

std::unique_ptr<io::RecordReader> open_reader(const ClassifyOptions& options, InputFormat format,
                                              const ClassifierConfig& config, const std::atomic<bool>& stop) {
  if (!options.texts.empty()) return std::make_unique<TextListReader>(options.texts);
  io::RecordSource source;
  source.format = format;
  source.path = options.input;
  source.sequence_length = config.sequence_length;
  source.embedding_size = config.embedding_size;
  source.stop = &stop;
  apply_input_options(options.records, source);
  try {
    return io::open_records(source);
  } catch (const io::NotText&) {
    throw;
  } catch (const Error& error) {
    const std::string problem = std::string(error.what()).substr(error.where().size() + 2);
    if (source.has_header && problem.find("expected a header with a column") != std::string::npos) {
      // One column that holds what tables outside of English-speaking countries separate theirs with.
      const bool is_semicolon = problem.find("columns '") != std::string::npos &&
                                problem.find("', '") == std::string::npos &&
                                problem.find(';') < problem.find("', expected");
      throw Error(error.where(), problem + (is_semicolon ? "; --delimiter ';' if that is what separates columns" : "") +
                                     "; --field names another, --no-header if the first row is a record");
    }
    throw;
  }
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

RunIdentity identity_of(const ClassifyOptions& options, InputFormat format, const io::ResultFormat& results,
                        const classifier::Engine& engine) {
  return {.model = options.model.model,
          .input_format = format,
          .records = describe(options.records),
          .results = results,
          .back_ends = engine.description(),
          .arithmetic = describe_arithmetic(back_end_of(options.model))};
}

int report_finished(const io::PartManifest& manifest, const std::string& path) {
  std::fprintf(stderr, "tessera: %s is complete already: %lld records\n", escaped(path).c_str(),
               static_cast<long long>(manifest.num_records()));
  return manifest.num_failed > 0 ? kSomeFailed : kAllOk;
}

/// Bytes that are no UTF-8 are mostly those of an older encoding.
void print_encoding_hint(const ClassifyOptions& options, const classifier::RunStatistics& statistics) {
  if (!options.records.encoding.empty()) return;
  for (const classifier::FailedRecord& failed : statistics.failed) {
    if (failed.error.find("expected well-formed UTF-8") == std::string::npos) continue;
    std::fprintf(stderr, "tessera: is it text in another encoding? --encoding cp1252 reads most of Western Europe's\n");
    return;
  }
}

int report(const ClassifyOptions& options, const classifier::RunStatistics& statistics,
           const std::vector<LabelCount>& labels, const classifier::Engine& engine, const RunStart& start,
           const io::RecordReader& reader) {
  print_failures(statistics);
  print_encoding_hint(options, statistics);
  const int64_t num_resumed = start.done.num_records();
  if (!options.quiet) {
    if (options.model.verbose) print_back_ends(engine.description());
    if (start.is_resumed) {
      std::fprintf(stderr, "tessera: %lld records were finished before, %lld of them failed; in this run:\n",
                   static_cast<long long>(num_resumed), static_cast<long long>(start.done.num_failed));
    }
    print_statistics(statistics);
    if (reader.num_blank_lines() > 0) {
      std::fprintf(stderr, "tessera: %lld blank lines are no records\n",
                   static_cast<long long>(reader.num_blank_lines()));
    }
    print_labels(labels);
  }
  return exit_code_of(statistics, start.done.num_failed);
}

std::string statistics_of(const ClassifyOptions& options, const classifier::RunStatistics& statistics,
                          const std::vector<LabelCount>& labels, const RunStart& start,
                          const io::RecordReader& reader) {
  return statistics_text(statistics, options.model.num_threads,
                         {{"records_resumed", static_cast<double>(start.done.num_records())},
                          {"records_resumed_failed", static_cast<double>(start.done.num_failed)},
                          {"blank_lines", static_cast<double>(reader.num_blank_lines())}},
                         labels);
}

int run_and_report(const ClassifyOptions& options, LongRun& long_run, classifier::Engine& engine,
                   io::RecordReader& reader, const ClassifierConfig& config, const io::ResultFormat& results,
                   RunStart start) {
  SideFile statistics_file("--statistics", options.statistics);
  // Last, so that nothing else that is wrong leaves an empty file behind.
  Output output = long_run.open_output(start);
  RunStart begin{.done = start.done, .checksum = nullptr, .is_resumed = start.is_resumed};
  classifier::RunStatistics statistics;
  io::Checkpoint done;
  std::vector<LabelCount> labels;
  int signal = 0;
  {
    const InterruptGuard interrupt;
    // Labels on the same terminal would stand in the middle of the bar.
    Progress progress(!options.quiet && !(options.output == "-" && isatty(STDOUT_FILENO) == 1), reader);
    ResultWriter writer(config, results, output, progress, std::move(start), long_run.journal(),
                        options.records.min_probability.value_or(0));
    statistics = run(engine, reader, writer, interrupt.token(), output, long_run);
    signal = interrupt.signal();
    done = writer.done();
    labels = writer.label_counts();
    if (statistics.interrupted) {
      writer.checkpoint();
    } else {
      long_run.commit(output, done, results);
    }
  }
  const int exit_code = report(options, statistics, labels, engine, begin, reader);
  if (statistics.interrupted && !output.partial_name().empty()) {
    std::fprintf(stderr, "tessera: interrupted; the first %lld results are in %s%s\n",
                 static_cast<long long>(done.num_records()), output.partial_name().c_str(), how_to_go_on(long_run));
  }
  try {
    statistics_file.write(statistics_of(options, statistics, labels, begin, reader));
  } catch (const SideFileFailed& error) {
    if (!statistics.interrupted) throw;
    std::fprintf(stderr, "tessera: %s\n", error.what());  // the results are not whole either
  }
  return statistics.interrupted ? 128 + signal : exit_code;
}

bool is_class(const ClassifierConfig& config, const std::string& name) {
  return std::find(config.class_names.begin(), config.class_names.end(), name) != config.class_names.end();
}

int classify(ClassifyOptions options) {
  options.model.model = model_or_shipped(options.model.model);
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
  if (options.records.min_probability && is_class(model->config, kUnsure)) {
    throw Error("--min-probability", "a model with a class 'unsure'", "one without");
  }
  const OutputFormat output = output_format(options.output, options.output_format);
  // What the format cannot tell is found before the input is opened; only that says the names of all its columns.
  static_cast<void>(make_result_format(options.records, output, format, model->config, {}));
  std::atomic<bool> stop_reader{false};
  auto reader = open_reader(options, format, model->config, stop_reader);
  const io::ResultFormat results =
      make_result_format(options.records, output, format, model->config, reader->kept_names());
  auto classifiers = make_classifiers(
      model, options.model,
      format == InputFormat::embeddings ? classifier::InputKind::embeddings : classifier::InputKind::ids,
      options.quiet);
  classifier::EngineOptions engine_options;
  engine_options.batch_size = options.model.batch_size;
  engine_options.num_encode_threads = options.model.num_threads;
  engine_options.router_weights = options.records.expert_weights;
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
  auto options = std::make_shared<ClassifyOptions>();
  add_model_options(app, options->model, false);
  add_isolation_options(app, options->model.isolation);
  add_integer(
      app, "--verify-rate", options->verify_rate,
      "Compute one batch in N of each device again, on another device where there is one, and hold results back "
      "until then; a device whose results differ is not used again; 0 = none",
      int64_t{0}, kMaxVerifyRate);
  app.add_option("--text", options->texts, "A sentence; can be given several times")->allow_extra_args(false);
  app.add_option("-i,--input", options->input, "A file, or - for standard input")->type_name("FILE");
  app.add_option("--format", options->format, "text, csv, tsv, jsonl, ids or embeddings")->type_name("NAME");
  add_input_options(app, options->records);
  app.add_option("-o,--output", options->output, "A file, or - for standard output")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_option("--output-format", options->output_format, "text, csv, tsv, jsonl or bin")->type_name("NAME");
  add_result_options(app, options->records);
  app.add_flag("--resume", options->resume, "Go on where an earlier run with these options broke off");
  app.add_option("--shard", options->shard, "Label the I-th of N parts only, I from 0; auto: as mpirun or srun say")
      ->type_name("I/N");
  app.add_option("--statistics", options->statistics, "Write counts, rate and memory as JSON to this file")
      ->type_name("FILE");
  app.add_flag("-q,--quiet", options->quiet, "No progress, no statistics; failed records are still listed");
  app.footer(kClassifyFooter);
  return [options] { return classify(*options); };
}

}  // namespace tessera::cli
