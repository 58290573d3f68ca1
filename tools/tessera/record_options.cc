#include "record_options.h"

#include <algorithm>
#include <memory>

#include "decompress.h"
#include "option_text.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "transcode.h"

namespace tessera::cli {

namespace {

using io::InputFormat;
using io::OutputFormat;

constexpr const char* kAll = "all";

bool is_text(InputFormat format) { return format != InputFormat::ids && format != InputFormat::embeddings; }
bool is_table(InputFormat format) { return format == InputFormat::csv || format == InputFormat::tsv; }

/// "tab", "\t" or one character.
char parse_delimiter(const std::string& text) {
  if (text.empty()) return '\0';
  if (text == "tab" || text == "\\t") return '\t';
  const bool is_usable = text.size() == 1 && text[0] > ' ' && text[0] <= '~' && text[0] != '"';
  if (is_usable || text == "\t" || text == " ") return text[0];
  throw Error("--delimiter", "'" + escaped(text) + "'", "one character, as ';', or tab");
}

double parse_probability(const std::string& name, const std::string& text) {
  double value = -1;
  try {
    size_t used = 0;
    value = std::stod(text, &used);
    if (used != text.size()) value = -1;
  } catch (const std::exception&) {
    value = -1;
  }
  if (!(value >= 0 && value <= 1)) throw Error(name, "'" + escaped(text) + "'", "a number from 0 to 1");
  return value;
}

std::vector<std::string> kept_columns(const RecordOptions& options) {
  std::vector<std::string> columns;
  if (options.keep.empty() || options.keep == kAll) return columns;
  for (const std::string_view name : split_list(options.keep)) {
    if (name.empty()) throw Error("--keep", "'" + escaped(options.keep) + "'", "names with commas between, or all");
    if (std::find(columns.begin(), columns.end(), name) != columns.end()) {
      throw Error("--keep", "'" + escaped(name) + "' twice", "it once");
    }
    columns.emplace_back(name);
  }
  return columns;
}

}  // namespace

void add_input_options(CLI::App& app, RecordOptions& options) {
  app.add_option("--field", options.field,
                 "Column of a csv or tsv, or member of a jsonl input; else text, else sentence")
      ->type_name("NAME");
  app.add_option("--keep", options.keep, "Columns or members of the input that go on to the results, or all of them")
      ->type_name("NAME[,...]|all");
  app.add_option("--delimiter", options.delimiter, "Between the columns of a csv input, as ';'; tab is one too")
      ->type_name("CHARACTER");
  app.add_option("--encoding", options.encoding,
                 "Of text input, by any name of iconv, as cp1252; else its byte order mark decides, else UTF-8")
      ->type_name("NAME");
  app.add_flag("--no-header", options.no_header,
               "The first row of a csv or tsv input is a record; columns are 1, 2, ...");
}

void add_result_options(CLI::App& app, RecordOptions& options) {
  app.add_flag("--probabilities", options.probabilities, "Add the probability of every class");
  app.add_flag("--token-counts", options.token_counts,
               "Add each text's words, how many of them the model does not know, and whether it was cut off");
  app.add_option(
         "--min-probability",
         [&options](const CLI::results_t& given) {
           options.min_probability = parse_probability("--min-probability", given.front());
           return true;
         },
         "A less probable label becomes 'unsure'; 0 to 1")
      ->type_name("NUMBER");
  app.add_flag("--expert-weights", options.expert_weights, "Add how much each expert counted");
  app.add_flag("--show-text", options.show_text, "Text output: add the sentence");
}

void check_input_options(const RecordOptions& options, InputFormat format, bool has_input) {
  const std::string other = "an input of format " + std::string(io::input_format_name(format));
  const auto require = [&](const char* name, bool is_given, bool fits, const char* problem, const char* expected) {
    if (!is_given) return;
    if (!has_input) throw Error(name, "no --input", "--input FILE with it");
    if (!fits) throw Error(name, other + problem, expected);
  };
  const bool has_fields = is_table(format) || format == InputFormat::jsonl;
  constexpr const char* kWithFields = "--format csv, tsv or jsonl with it";
  require("--field", !options.field.empty(), has_fields, ", which has no fields", kWithFields);
  require("--keep", !options.keep.empty(), has_fields, ", which has no fields", kWithFields);
  require("--delimiter", !options.delimiter.empty(), is_table(format), ", which has no delimiter",
          "--format csv with it");
  require("--no-header", options.no_header, is_table(format), ", which has no header", "--format csv or tsv with it");
  require("--encoding", !options.encoding.empty(), is_text(format), ", which is no text",
          "--format text, csv, tsv or jsonl with it");
  if (options.token_counts && !is_text(format)) throw Error("--token-counts", other + ", which has no words", "text");
  static_cast<void>(parse_delimiter(options.delimiter));
  static_cast<void>(kept_columns(options));
  check_encoding(options.encoding);
}

void apply_input_options(const RecordOptions& options, io::RecordSource& source) {
  source.field = options.field;
  source.delimiter = parse_delimiter(options.delimiter);
  source.has_header = !options.no_header;
  source.keep = kept_columns(options);
  source.keep_all = options.keep == kAll;
  if (!is_text(source.format)) return;
  source.filter = [encoding = options.encoding](std::unique_ptr<io::ByteInput> bytes) {
    return unify_line_ends(transcode(decompress(std::move(bytes)), encoding));
  };
}

io::ResultFormat make_result_format(const RecordOptions& options, OutputFormat output, InputFormat input,
                                    const classifier::ClassifierConfig& config, std::vector<std::string> kept_names) {
  io::ResultFormat format;
  format.format = output;
  format.show_text = options.show_text;
  format.num_classes = static_cast<int>(config.num_classes);
  format.num_expert_weights = options.expert_weights ? static_cast<int>(config.num_experts) : 0;
  format.token_counts = options.token_counts;
  format.keeps_fields = !options.keep.empty();
  format.kept_names = std::move(kept_names);
  for (int64_t i = 0; options.probabilities && i < config.num_classes; ++i) {
    const auto class_idx = static_cast<size_t>(i);
    format.class_names.push_back(class_idx < config.class_names.size() ? config.class_names[class_idx] : str_cat(i));
  }
  if (output == OutputFormat::bin) {
    const std::string got = "--output-format bin, which holds logits only";
    for (const auto& [name, is_given] :
         {std::pair("--expert-weights", options.expert_weights), std::pair("--probabilities", options.probabilities),
          std::pair("--token-counts", options.token_counts),
          std::pair("--min-probability", options.min_probability.has_value())}) {
      if (is_given) throw Error(name, got, "text, csv, tsv or jsonl");
    }
  }
  if (format.keeps_fields && (output == OutputFormat::bin || output == OutputFormat::text)) {
    throw Error("--keep", "--output-format " + std::string(io::output_format_name(output)), "csv, tsv or jsonl");
  }
  if (options.keep == kAll && input == InputFormat::jsonl && output != OutputFormat::jsonl) {
    throw Error("--keep all", "members of jsonl, which may differ from line to line, for the columns of a table",
                "--keep NAME,... or --output-format jsonl");
  }
  if (options.show_text && output != OutputFormat::text) throw Error("--show-text", "another output format", "text");
  return format;
}

std::vector<std::pair<std::string, std::string>> describe(const RecordOptions& options) {
  const auto yes_or_no = [](bool value) { return std::string(value ? "yes" : "no"); };
  return {{"field", options.field},
          {"keep", options.keep},
          {"delimiter", options.delimiter},
          {"encoding", options.encoding},
          {"header", yes_or_no(!options.no_header)},
          {"probabilities", yes_or_no(options.probabilities)},
          {"token counts", yes_or_no(options.token_counts)},
          {"least probability", options.min_probability ? str_cat(*options.min_probability) : std::string("none")}};
}

}  // namespace tessera::cli
