#include "model_options.h"

#include <cstdio>

#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cli {

using classifier::Precision;

namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxBatchSize = 1 << 20;

void check_device(const std::string& device) {
  if (device == "auto" || device == "cpu") return;
  const bool gpu = device.starts_with("cuda") || device.starts_with("gpu");
  throw Error("--device", "'" + escaped(device) + "'",
              gpu ? "auto or cpu: this build has no GPU back end" : "auto or cpu");
}

}  // namespace

void add_model_options(CLI::App& app, ModelOptions& options, bool model_required) {
  CLI::Option* model =
      app.add_option("--model", options.model, "Checkpoint directory: config.json, vocab.txt, model.safetensors");
  if (model_required) model->required();
  app.add_option("--device", options.device, "auto or cpu")->capture_default_str();
  app.add_option("--precision", options.precision,
                 "fp32, bf16, auto (bf16 where the processor multiplies it, else fp32), or fp64: the oracle, slow")
      ->capture_default_str();
  app.add_option("--threads", options.num_threads, "0 = every processor of this process")
      ->check(CLI::Range(0, kMaxThreads))
      ->capture_default_str();
  app.add_option("--batch-size", options.batch_size, "Records at a time, 0 = chosen; results do not depend on it")
      ->check(CLI::Range(int64_t{0}, kMaxBatchSize))
      ->capture_default_str();
}

Precision parse_precision(const std::string& name) {
  if (name == "fp32") return Precision::fp32;
  if (name == "bf16") return Precision::bf16;
  if (name == "fp64") return Precision::fp64;
  if (name == "auto") return classifier::cpu_supports_bf16() ? Precision::bf16 : Precision::fp32;
  throw Error("--precision", "'" + escaped(name) + "'", "fp32, bf16, auto or fp64");
}

std::shared_ptr<const classifier::Model> load_model(const ModelOptions& options) {
  check_device(options.device);
  static_cast<void>(parse_precision(options.precision));
  auto model = std::make_shared<const classifier::Model>(classifier::load_model(options.model));
  for (const std::string& warning : model->warnings) std::fprintf(stderr, "tessera: warning: %s\n", warning.c_str());
  return model;
}

std::unique_ptr<classifier::Classifier> make_classifier(const std::shared_ptr<const classifier::Model>& model,
                                                        const ModelOptions& options, classifier::InputKind input) {
  return classifier::make_cpu_classifier(
      model, {.input = input, .precision = parse_precision(options.precision), .num_threads = options.num_threads});
}

std::string class_name(const classifier::ClassifierConfig& config, int64_t class_idx) {
  const size_t i = static_cast<size_t>(class_idx);
  return i < config.class_names.size() ? config.class_names[i] : std::to_string(class_idx);
}

}  // namespace tessera::cli
