// tessera classify: records in, labels out.
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "interrupt.h"
#include "io/records.h"
#include "io/results.h"
#include "model_options.h"
#include "output.h"
#include "progress.h"
#include "run_report.h"
#include "tessera/classifier/engine.h"
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
    "Formats in: text (a line is a record), csv and jsonl (--field names the column or member), ids (int32 [N,\n"
    "sequence length]), embeddings (fp32 [N, channels, positions]). Formats out: text (label, tab, probability), csv,\n"
    "jsonl, bin (fp32 logits [N, classes]). Without --format and --output-format the file's extension decides, else\n"
    "text.\n"
    "A record that fails is reported in its place and the others are labelled; the exit code is then 1. Ctrl-C "
    "finishes\n"
    "what is in flight and leaves OUTPUT.partial (exit code 130); a finished run renames it to OUTPUT.";

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
};

std::string extension_of(const std::string& path) { return std::filesystem::path(path).extension().string(); }

InputFormat input_format(const Options& options) {
  if (!options.format.empty()) return io::parse_input_format(options.format);
  const std::string extension = extension_of(options.input);
  if (extension == ".csv") return InputFormat::csv;
  if (extension == ".jsonl" || extension == ".ndjson") return InputFormat::jsonl;
  if (extension == ".bin") {
    throw Error("--input " + escaped(options.input), "a .bin file and no --format",
                "--format ids or --format embeddings");
  }
  return InputFormat::text;
}

OutputFormat output_format(const Options& options) {
  if (!options.output_format.empty()) return io::parse_output_format(options.output_format);
  const std::string extension = extension_of(options.output);
  if (extension == ".csv") return OutputFormat::csv;
  if (extension == ".jsonl" || extension == ".ndjson") return OutputFormat::jsonl;
  return extension == ".bin" ? OutputFormat::bin : OutputFormat::text;
}

io::ResultFormat result_format(const Options& options, const ClassifierConfig& config) {
  io::ResultFormat format;
  format.format = output_format(options);
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

/// Formats results into the output; a batch's results are handed over together.
class ResultWriter : public classifier::ResultSink {
 public:
  ResultWriter(const ClassifierConfig& config, const io::ResultFormat& format, Output& output, Progress& progress)
      : config_(config), format_(format), output_(output), progress_(progress) {
    output_.write(io::result_header(format_));
  }

  void write(const classifier::RecordResult& record) override {
    io::Result result;
    result.index = record.index;
    result.error = record.error;
    std::string label;
    if (record.label_idx >= 0) label = class_name(config_, record.label_idx);
    result.label = label;
    result.probability = record.probability;
    result.logits = record.logits;
    result.expert_weights = record.router_weights;
    result.text = record.text;
    io::append_result(format_, result, pending_);
  }

  void end_batch(int64_t num_written) override {
    output_.write(pending_);
    output_.flush();
    pending_.clear();
    progress_.update(num_written);
  }

 private:
  const ClassifierConfig& config_;
  const io::ResultFormat& format_;
  Output& output_;
  Progress& progress_;
  std::string pending_;
};

/// The run itself: an Error from here on means that the work is incomplete.
classifier::RunStatistics run(classifier::Engine& engine, io::RecordReader& reader, ResultWriter& writer,
                              const std::stop_token& stop, const Output& output) {
  try {
    return engine.run(reader, writer, stop);
  } catch (const Error& error) {
    const std::string partial = output.partial_name();
    throw Incomplete(error.what() + (partial.empty() ? "" : "; what was labelled before is in " + partial));
  }
}

int classify(const Options& options) {
  check_options(options);
  const InputFormat format = options.texts.empty() ? input_format(options) : InputFormat::text;
  const auto model = load_model(options.model);
  const bool is_text = format != InputFormat::ids && format != InputFormat::embeddings;
  if (is_text && model->vocabulary.empty()) {
    throw Error(escaped(options.model.model) + "/vocab.txt", "no such file",
                "the words of the model, which text needs");
  }
  const io::ResultFormat results = result_format(options, model->config);
  std::atomic<bool> stop_reader{false};
  const auto reader = open_reader(options, format, model->config, stop_reader);
  auto classifiers = make_classifiers(
      model, options.model,
      format == InputFormat::embeddings ? classifier::InputKind::embeddings : classifier::InputKind::ids,
      options.quiet);
  Output output(options.output);  // last, so that nothing else that is wrong leaves an empty file behind
  classifier::EngineOptions engine_options;
  engine_options.batch_size = options.model.batch_size;
  engine_options.num_encode_threads = options.model.num_threads;
  engine_options.router_weights = options.expert_weights;
  engine_options.stop_reader = &stop_reader;
  classifier::Engine engine(model, std::move(classifiers), engine_options);

  classifier::RunStatistics statistics;
  int signal = 0;
  {
    const InterruptGuard interrupt;
    Progress progress(!options.quiet, *reader);
    ResultWriter writer(model->config, results, output, progress);
    statistics = run(engine, *reader, writer, interrupt.token(), output);
    signal = interrupt.signal();
    if (statistics.interrupted) {
      output.flush();
    } else {
      output.commit();
    }
  }
  print_failures(statistics);
  if (!options.quiet) {
    std::fprintf(stderr, "tessera: %s\n", engine.description().c_str());
    print_statistics(statistics);
  }
  if (!options.statistics.empty()) write_statistics(options.statistics, statistics, options.model.num_threads);
  if (statistics.interrupted && !output.partial_name().empty()) {
    std::fprintf(stderr, "tessera: interrupted; the first %lld results are in %s\n",
                 static_cast<long long>(statistics.num_read), output.partial_name().c_str());
  }
  return statistics.interrupted ? 128 + signal : exit_code_of(statistics);
}

}  // namespace

Command add_classify(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_model_options(app, options->model);
  app.add_option("--text", options->texts, "A sentence; can be given several times")->allow_extra_args(false);
  app.add_option("--input", options->input, "A file, or - for standard input");
  app.add_option("--format", options->format, "text, csv, jsonl, ids or embeddings");
  app.add_option("--field", options->field, "Column of a csv or member of a jsonl input; else text, else sentence");
  app.add_option("--output", options->output, "A file, or - for standard output")->capture_default_str();
  app.add_option("--output-format", options->output_format, "text, csv, jsonl or bin");
  app.add_flag("--expert-weights", options->expert_weights, "Add how much each expert counted");
  app.add_flag("--show-text", options->show_text, "Text output: add the sentence");
  app.add_option("--statistics", options->statistics, "Write counts, rate and memory as JSON to this file");
  app.add_flag("--quiet", options->quiet, "No progress, no statistics; failed records are still listed");
  app.footer(kFooter);
  return [options] { return classify(*options); };
}

}  // namespace tessera::cli
