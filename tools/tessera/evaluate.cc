// tessera evaluate: accuracy on sentences whose labels are known.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "commands.h"
#include "exit_codes.h"
#include "file_format.h"
#include "file_roles.h"
#include "integer_option.h"
#include "interrupt.h"
#include "io/record_stream.h"
#include "model_options.h"
#include "output.h"
#include "progress.h"
#include "run_report.h"
#include "shipped_model.h"
#include "side_file.h"
#include "tessera/classifier/engine.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/utf8.h"
#include "text_list.h"

namespace tessera::cli {

namespace {

using classifier::ClassifierConfig;

constexpr const char* kEvaluateFooter =
    "Examples:\n"
    "  tessera evaluate --input reviews.tsv --label-column 1 --text-column 2 --show 10\n"
    "  tessera evaluate --model model --input dev.tsv\n"
    "The input is UTF-8 text with a row a line and tabs between columns, counted from 1, without a header. A label is "
    "the\n"
    "name of a class or its index. Rows that cannot be read are listed and not counted; the exit code is then 1. "
    "Blank\n"
    "lines are no rows.";

constexpr size_t kShownTextBytes = 110;

struct EvaluateOptions {
  ModelOptions model;
  std::string input;
  std::string statistics;
  int64_t text_column = 1;
  int64_t label_column = 2;
  int64_t num_shown = 0;
  bool quiet = false;
};

/// The rows of a file: [num_rows] each.
struct Rows {
  std::vector<std::string> texts;
  std::vector<std::string> errors;  ///< empty = fine
  std::vector<int64_t> labels;      ///< class index, -1 where there is an error
};

/// Column `number` (from 1) of a row.
std::optional<std::string_view> column(std::string_view row, int64_t number) {
  for (int64_t i = 1; i < number; ++i) {
    const size_t tab = row.find('\t');
    if (tab == std::string_view::npos) return std::nullopt;
    row.remove_prefix(tab + 1);
  }
  return row.substr(0, row.find('\t'));
}

/// The class whose name `matches` alone, or -1.
template <class Matches>
int64_t find_class(const ClassifierConfig& config, const Matches& matches) {
  int64_t found = -1;
  for (size_t i = 0; i < config.class_names.size(); ++i) {
    if (!matches(config.class_names[i])) continue;
    if (found >= 0) return -1;
    found = static_cast<int64_t>(i);
  }
  return found;
}

bool equal_but_for_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}

/// The class that `text` names or counts, or -1. Spaces around it, other capitals, and the ".0" that tables get where a
/// label is missing elsewhere are none of its meaning.
int64_t parse_label(const ClassifierConfig& config, std::string_view text) {
  if (const int64_t exact = find_class(config, [&](std::string_view name) { return name == text; }); exact >= 0) {
    return exact;
  }
  const size_t begin = std::min(text.find_first_not_of(" \t\r"), text.size());
  text = text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
  const int64_t named = find_class(config, [&](std::string_view name) { return equal_but_for_case(name, text); });
  if (named >= 0) return named;
  if (text.ends_with(".0")) text.remove_suffix(2);
  int64_t index = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  return is_number && index >= 0 && index < config.num_classes ? index : -1;
}

/// "'negative', 'positive', or an index from 0 to 1"
std::string expected_labels(const ClassifierConfig& config) {
  std::string names;
  for (const std::string& name : config.class_names) names += "'" + escaped(name) + "', ";
  return names + str_cat(names.empty() ? "" : "or ", "an index from 0 to ", config.num_classes - 1);
}

/// What is wrong with a row, or empty; fills in its text and label.
std::string parse_row(const EvaluateOptions& options, const ClassifierConfig& config, std::string_view row,
                      std::string& text, int64_t& label) {
  const auto text_column = column(row, options.text_column);
  const auto label_column = column(row, options.label_column);
  if (!text_column || !label_column) {
    const int64_t wanted = std::max(options.text_column, options.label_column);
    return str_cat("got ", std::count(row.begin(), row.end(), '\t') + 1, " columns, expected at least ", wanted);
  }
  const std::string problem = io::text_problem(*text_column);
  if (!problem.empty()) return problem;
  label = parse_label(config, *label_column);
  if (label < 0) {
    return str_cat("got label '", escaped(*label_column), "', expected ", expected_labels(config));
  }
  text = *text_column;
  return "";
}

Rows read_rows(const EvaluateOptions& options, const ClassifierConfig& config) {
  io::TextStream stream(options.input, nullptr);
  Rows rows;
  std::string_view line;
  for (int64_t number = 1;; ++number) {
    const io::TextStream::Line kind = stream.next_line(line);
    if (kind == io::TextStream::Line::end) return rows;
    if (kind == io::TextStream::Line::complete && io::is_blank(line)) continue;
    std::string text;
    int64_t label = -1;
    const std::string problem = kind == io::TextStream::Line::too_long
                                    ? str_cat("got a row longer than ", io::kMaxTextRecordBytes, " bytes")
                                    : parse_row(options, config, line, text, label);
    rows.errors.push_back(problem.empty() ? "" : str_cat(stream.bytes().name(), ":", number, ": ", problem));
    rows.texts.push_back(std::move(text));
    rows.labels.push_back(label);
  }
}

/// A sentence on one line of a terminal: control characters become spaces, what is long is cut.
std::string one_line(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const size_t length = std::max<size_t>(1, utf8_sequence_length(text));
    const char32_t code_point = utf8_decode(text.substr(0, length));
    if (line.size() + length > kShownTextBytes) return line + "...";
    const bool is_control = code_point < 0x20 || (code_point >= 0x7F && code_point < 0xA0);
    line += is_control ? " " : text.substr(0, length);
    text.remove_prefix(length);
  }
  return line;
}

/// Counts what was right, and keeps what is to be shown.
class Score : public classifier::ResultSink {
 public:
  Score(const EvaluateOptions& options, const ClassifierConfig& config, const Rows& rows, Progress& progress)
      : config_(config), rows_(rows), progress_(progress), num_classes_(static_cast<size_t>(config.num_classes)) {
    confusion_.resize(num_classes_ * num_classes_);
    const int64_t num_rows = static_cast<int64_t>(rows.labels.size());
    // Spread evenly over the file.
    show_every_ = options.num_shown > 0 ? std::max<int64_t>(1, num_rows / options.num_shown) : 0;
    show_below_ = show_every_ * options.num_shown;
  }

  void write(const classifier::RecordResult& result) override {
    if (!result.error.empty()) return;
    const int64_t label = rows_.labels[static_cast<size_t>(result.index)];
    ++confusion_[static_cast<size_t>(label) * num_classes_ + static_cast<size_t>(result.label_idx)];
    if (show_every_ > 0 && result.index % show_every_ == 0 && result.index < show_below_) show(result, label);
  }
  void end_batch(int64_t num_written) override { progress_.update(num_written); }

  int64_t num_correct() const {
    int64_t sum = 0;
    for (size_t i = 0; i < num_classes_; ++i) sum += confusion_[i * num_classes_ + i];
    return sum;
  }
  const std::string& shown() const { return shown_; }

  /// Rows are true classes, columns predicted ones.
  std::string confusion_table() const {
    std::string table;
    for (size_t row = 0; row < num_classes_; ++row) {
      table += "  of " + name(row) + ":";
      for (size_t col = 0; col < num_classes_; ++col) {
        table += str_cat(col == 0 ? " " : ", ", confusion_[row * num_classes_ + col], " labelled ", name(col));
      }
      table += "\n";
    }
    return table;
  }

 private:
  std::string name(size_t class_idx) const { return class_name(config_, static_cast<int64_t>(class_idx)); }

  void show(const classifier::RecordResult& result, int64_t label) {
    char text[64];
    std::snprintf(text, sizeof(text), "%-5s %s %.3f  experts", label == result.label_idx ? "right" : "wrong",
                  class_name(config_, result.label_idx).c_str(), static_cast<double>(result.probability));
    shown_ += text;
    for (const float weight : result.router_weights) {
      std::snprintf(text, sizeof(text), " %.2f", static_cast<double>(weight));
      shown_ += text;
    }
    shown_ += "  " + one_line(result.text) + "\n";
  }

  const ClassifierConfig& config_;
  const Rows& rows_;
  Progress& progress_;
  size_t num_classes_;
  std::vector<int64_t> confusion_;  // [true class, predicted class]
  int64_t show_every_ = 0;
  int64_t show_below_ = 0;
  std::string shown_;
};

/// Files whose rows are no lines with tabs: each would be a failed row.
void refuse_other_formats(const std::string& path) {
  const std::string extension = lower_extension(path);
  for (const char* const other : {".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".bin"}) {
    if (extension == other) {
      throw Error("--input " + escaped(path), "a " + extension + " file",
                  "rows with tabs between their columns (.tsv)");
    }
  }
}

int evaluate(EvaluateOptions options) {
  options.model.model = model_or_shipped(options.model.model);
  refuse_other_formats(options.input);
  FileRoles roles;
  roles.reads_model("--model", options.model.model);
  roles.reads("--input", options.input);
  roles.writes("--statistics", options.statistics);
  SideFile statistics_file("--statistics", options.statistics);
  const auto model = load_model(options.model);
  Rows rows = read_rows(options, model->config);
  if (rows.texts.empty()) throw Error("--input " + escaped(options.input), "no rows", "at least one to evaluate");
  TextListReader reader(rows.texts, rows.errors);
  auto classifiers = make_classifiers(model, options.model, classifier::InputKind::ids, options.quiet);
  classifier::EngineOptions engine_options;
  engine_options.batch_size = options.model.batch_size;
  engine_options.num_encode_threads = options.model.num_threads;
  engine_options.router_weights = options.num_shown > 0;
  classifier::Engine engine(model, std::move(classifiers), engine_options);

  const InterruptGuard interrupt;
  classifier::RunStatistics statistics;
  Output output("-");
  int64_t num_correct = 0;
  {
    Progress progress(!options.quiet, reader);
    Score score(options, model->config, rows, progress);
    statistics = engine.run(reader, score, interrupt.token());
    num_correct = score.num_correct();
    output.write(score.shown() + (score.shown().empty() ? "" : "\n"));
    output.write(score.confusion_table());
  }
  const bool is_known = statistics.num_ok > 0;  // of no sentence there is no accuracy
  const double accuracy = is_known ? 100.0 * static_cast<double>(num_correct) / static_cast<double>(statistics.num_ok)
                                   : std::numeric_limits<double>::quiet_NaN();
  char text[160] = "accuracy unknown: no row was labelled\n";
  if (is_known) {
    std::snprintf(text, sizeof(text), "accuracy %.2f %% (%lld of %lld), %.0f sentences/s\n", accuracy,
                  static_cast<long long>(num_correct), static_cast<long long>(statistics.num_ok), statistics.rate());
  }
  output.write(text);
  output.commit();
  print_failures(statistics);
  if (!options.quiet) {
    if (options.model.verbose) print_back_ends(engine.description());
    print_statistics(statistics);
  }
  statistics_file.write(statistics_text(statistics, options.model.num_threads,
                                        {{"accuracy_percent", accuracy},
                                         {"correct", static_cast<double>(num_correct)},
                                         {"sentences", static_cast<double>(statistics.num_ok)}}));
  return statistics.interrupted ? 128 + interrupt.signal() : exit_code_of(statistics);
}

}  // namespace

Command add_evaluate(CLI::App& app) {
  auto options = std::make_shared<EvaluateOptions>();
  add_model_options(app, options->model, false);
  app.add_option("-i,--input", options->input, "Rows of sentence and label, or - for standard input")
      ->type_name("FILE")
      ->required();
  add_integer(app, "--text-column", options->text_column, "Column of the sentence, from 1", int64_t{1});
  add_integer(app, "--label-column", options->label_column, "Column of the label, from 1", int64_t{1});
  add_integer(app, "--show", options->num_shown, "Print so many sentences with label, probability and expert weights",
              int64_t{0});
  app.add_option("--statistics", options->statistics, "Write accuracy, counts and rate as JSON to this file")
      ->type_name("FILE");
  app.add_flag("-q,--quiet", options->quiet, "No progress, no statistics; failed rows are still listed");
  app.footer(kEvaluateFooter);
  return [options] { return evaluate(*options); };
}

}  // namespace tessera::cli
