// The options that every sub-command with a model shares, and what is opened with them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "tessera/classifier/classifier.h"
#include "tessera/classifier/model.h"

namespace tessera::cli {

struct ModelOptions {
  std::string model;
  std::string device = "auto";
  std::string precision = "fp32";
  int num_threads = 0;
  int64_t batch_size = 0;
};

/// --model, --device, --precision, --threads, --batch-size.
void add_model_options(CLI::App& app, ModelOptions& options, bool model_required = true);

/// Checks --device and --precision, then loads. Warnings of the loader go to standard error.
std::shared_ptr<const classifier::Model> load_model(const ModelOptions& options);

/// "fp32", "bf16", "fp64", or "auto": bf16 where the processor multiplies it, else fp32. Error naming the option.
classifier::Precision parse_precision(const std::string& name);

std::unique_ptr<classifier::Classifier> make_classifier(const std::shared_ptr<const classifier::Model>& model,
                                                        const ModelOptions& options, classifier::InputKind input);

/// The name of a class, or its index where the model names none.
std::string class_name(const classifier::ClassifierConfig& config, int64_t class_idx);

}  // namespace tessera::cli
