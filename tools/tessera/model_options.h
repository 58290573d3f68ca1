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

/// Whether the model works in processes of its own (worker_process.h).
struct Isolation {
  bool is_on = false;
  int num_processes = 1;  ///< that share the CPU; of GPUs each has one
  int lease_seconds = 300;
  bool is_worker = false;  ///< this is one of them: its supervisor says what there is to say
};

struct ModelOptions : BackEndOptions {
  std::string model;
  int num_threads = 0;
  int64_t batch_size = 0;
  Isolation isolation = {};
  bool verbose = false;  ///< say how the work is done, too
};

/// One lane computes while the other's results are taken and its next batch is made.
inline constexpr int kLanesPerGpu = 2;

/// -m, --model, --device, --precision, --layer-precision, --form, --expert-threshold, --threads, --batch-size,
/// --verbose.
void add_model_options(CLI::App& app, ModelOptions& options, bool model_required = true);

/// --isolate, --processes, --lease-timeout.
void add_isolation_options(CLI::App& app, Isolation& isolation);

/// The back end of these options on this machine. Where they isolate, the devices are told by another process, once.
BackEnd back_end_of(const ModelOptions& options);

/// Of each of the classifiers that `make_classifiers` returns the number of its device.
std::vector<int> devices_of_lanes(const ModelOptions& options, size_t num_classifiers);

/// Checks the options against what this machine has, then loads; where they isolate without the weights, which are
/// for the workers. Warnings of the loader go to standard error.
std::shared_ptr<const classifier::Model> load_model(const ModelOptions& options);

/// One classifier for the CPU, two lanes for each GPU. Says on standard error on what the model runs, unless `quiet`,
/// with --verbose also why not on a GPU, and that experts are skipped, in any case.
std::vector<std::unique_ptr<classifier::Classifier>> make_classifiers(
    const std::shared_ptr<const classifier::Model>& model, const ModelOptions& options, classifier::InputKind input,
    bool quiet);

/// The name of a class, or its index where the model names none.
std::string class_name(const classifier::ClassifierConfig& config, int64_t class_idx);

}  // namespace tessera::cli
