// The options of `classify` that say how records are read and what a result tells: beside the model's and the files'.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/records.h"
#include "io/results.h"
#include "tessera/classifier/config.h"

namespace tessera::cli {

struct RecordOptions {
  std::string field;
  std::string keep;       ///< "id,stars" or "all"; empty = none
  std::string delimiter;  ///< empty = the format's
  std::string encoding;   ///< empty = by the byte order mark, else UTF-8
  bool no_header = false;
  bool probabilities = false;
  bool token_counts = false;
  bool show_text = false;
  bool expert_weights = false;
  std::optional<double> min_probability;
};

/// --field, --keep, --delimiter, --encoding, --no-header.
void add_input_options(CLI::App& app, RecordOptions& options);
/// --probabilities, --token-counts, --min-probability, --expert-weights, --show-text.
void add_result_options(CLI::App& app, RecordOptions& options);

/// Throws Error naming the option for one that means nothing to an input of that format; `has_input`: --input was
/// given.
void check_input_options(const RecordOptions& options, io::InputFormat format, bool has_input);

/// Adds the options to a source of records: fields, and for text the filters that make UTF-8 of what is compressed or
/// in another encoding.
void apply_input_options(const RecordOptions& options, io::RecordSource& source);

/// What is written of each record. `kept_names`: the reader's. Throws Error for what the format cannot tell.
io::ResultFormat make_result_format(const RecordOptions& options, io::OutputFormat format, io::InputFormat input,
                                    const classifier::ClassifierConfig& config, std::vector<std::string> kept_names);

/// Names and values of the options that change what a run writes, for the journal.
std::vector<std::pair<std::string, std::string>> describe(const RecordOptions& options);

}  // namespace tessera::cli
