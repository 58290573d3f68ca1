// The options that every sub-command with a model shares, and what is opened with them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "back_end.h"
#include "tessera/classifier/classifier.h"
#include "tessera/classifier/model.h"

namespace tessera::cli {

struct ModelOptions : BackEndOptions {
  std::string model;
  int num_threads = 0;
  int64_t batch_size = 0;
  bool verbose = false;  ///< say how the work is done, too
};

/// -m, --model, --device, --precision, --layer-precision, --form, --expert-threshold, --threads, --batch-size,
/// --verbose.
void add_model_options(CLI::App& app, ModelOptions& options, bool model_required = true);

/// Checks the options against what this machine has, then loads. Warnings of the loader go to standard error.
std::shared_ptr<const classifier::Model> load_model(const ModelOptions& options);

/// One classifier for the CPU, two lanes for each GPU. Says on standard error on what the model runs, unless `quiet`,
/// with --verbose also why not on a GPU, and that experts are skipped, in any case.
std::vector<std::unique_ptr<classifier::Classifier>> make_classifiers(
    const std::shared_ptr<const classifier::Model>& model, const ModelOptions& options, classifier::InputKind input,
    bool quiet);

/// The name of a class, or its index where the model names none.
std::string class_name(const classifier::ClassifierConfig& config, int64_t class_idx);

}  // namespace tessera::cli
