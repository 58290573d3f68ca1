#include "model_options.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "integer_option.h"
#include "option_text.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/thread_pool.h"
#include "worker_process.h"

namespace tessera::cli {

namespace {

using Classifiers = std::vector<std::unique_ptr<classifier::Classifier>>;

constexpr int64_t kMaxBatchSize = 1 << 20;

// A lane is never given more sentences than were read at a time, so a smaller --batch-size bounds its micro-batch, and
// its memory. Above this the lane's own choice is the smaller of the two.
constexpr int64_t kMaxMicroBatch = 4096;

/// On what the model runs, as "GPU 0 (...), GPU 1 (...)" or "the CPU, fp32, 2 threads".
std::string describe_model(const BackEnd& back_end, const ModelOptions& options) {
  if (!back_end.on_gpu()) {
    const int num_threads = options.num_threads > 0 ? options.num_threads : available_processors();
    return str_cat("the CPU, ", precision_name(back_end.cpu_precision), ", ", num_threads,
                   num_threads == 1 ? " thread" : " threads",
                   options.verbose && !back_end.why_cpu.empty() ? ": " + back_end.why_cpu : "");
  }
  std::string names;
  for (const cuda::DeviceFacts& gpu : back_end.gpus) names += (names.empty() ? "" : ", ") + gpu_name(gpu);
  return names;
}

/// Threads that stage input for each GPU: together as many as were asked for.
int staging_threads(const ModelOptions& options, size_t num_gpus) {
  const int all = options.num_threads > 0 ? options.num_threads : available_processors();
  return std::max(1, all / static_cast<int>(num_gpus));
}

Classifiers make_lanes(const std::shared_ptr<const classifier::Model>& model, const ModelOptions& options,
                       const BackEnd& back_end, classifier::InputKind input) {
  classifier::CudaOptions cuda;
  cuda.input = input;
  cuda.precision = back_end.gpu_precision;
  cuda.form = back_end.form;
  cuda.expert_threshold = back_end.expert_threshold;
  cuda.micro_batch = options.batch_size <= kMaxMicroBatch ? options.batch_size : 0;
  cuda.num_lanes = kLanesPerGpu;
  cuda.num_staging_threads = staging_threads(options, back_end.gpus.size());
  Classifiers lanes;
  for (const cuda::DeviceFacts& gpu : back_end.gpus) {
    cuda.device = gpu.index;
    auto made = with_options_named({"form", "expert_threshold"},
                                   [&] { return classifier::make_cuda_classifiers(model, cuda); });
    for (auto& lane : made) lanes.push_back(std::move(lane));
  }
  return lanes;
}

}  // namespace

void add_model_options(CLI::App& app, ModelOptions& options, bool model_required) {
  CLI::Option* model = app.add_option("-m,--model", options.model,
                                      std::string("Checkpoint directory: config.json, vocab.txt, model.safetensors") +
                                          (model_required ? "" : "; else the model that came with the command"))
                           ->type_name("DIR");
  if (model_required) model->required();
  app.add_option("--device", options.device,
                 "auto (every GPU that can be used, else the CPU), cpu, cuda (every such GPU), or GPUs by number: "
                 "cuda:0,2")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--precision", options.precision,
                 "fp16 (GPU), bf16, fp32, or fp64: the oracle, slow (CPU); default: fp16 on a GPU, fp32 on the CPU; "
                 "auto: fp16 on a GPU, bf16 on a CPU that multiplies it, else fp32")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--layer-precision", options.layer_precision,
                 "GPU: layers that differ from --precision, as convolutions=fp32,experts=fp16,head=bf16")
      ->type_name("LAYER=NAME[,...]");
  app.add_option("--form", options.form,
                 "GPU: form of the convolutions: auto (by configuration and input), direct, dft, distinct, vocab")
      ->type_name("NAME")
      ->capture_default_str();
  app.add_option("--expert-threshold", options.expert_threshold,
                 "GPU: skip experts whose router weight is smaller, an approximation; in [0, 1), 0 = skip none")
      ->type_name("NUMBER")
      ->capture_default_str();
  add_integer(app, "--threads", options.num_threads, "0 = every processor of this process", 0, kMaxThreads);
  add_integer(app, "--batch-size", options.batch_size, "Records at a time, 0 = chosen; results do not depend on it",
              int64_t{0}, kMaxBatchSize);
  app.add_flag("-v,--verbose", options.verbose, "Say on standard error how the work is done, too");
}

void add_isolation_options(CLI::App& app, Isolation& isolation) {
  app.add_flag(
      "--isolate", isolation.is_on,
      "Each GPU, or the CPU, in a process of its own: one that dies is started again, and its batch is labelled "
      "once more; a record that ends processes fails alone");
  add_integer(app, "--processes", isolation.num_processes, "With --isolate: so many share the CPU", 1, 256);
  add_integer(app, "--lease-timeout", isolation.lease_seconds,
              "With --isolate: seconds after which a process that has not answered is ended and started again", 1,
              86'400);
}

BackEnd back_end_of(const ModelOptions& options) {
  if (!options.isolation.is_on) return select_back_end(options, find_devices());
  static const Devices devices = find_devices_elsewhere();
  return select_back_end(options, devices);
}

std::vector<int> devices_of_lanes(const ModelOptions& options, size_t num_classifiers) {
  const size_t num_lanes = back_end_of(options).on_gpu() ? kLanesPerGpu : 1;
  std::vector<int> devices;
  for (size_t i = 0; i < num_classifiers; ++i) devices.push_back(static_cast<int>(i / num_lanes));
  return devices;
}

std::shared_ptr<const classifier::Model> load_model(const ModelOptions& options) {
  static_cast<void>(back_end_of(options));  // what is wrong is said before the model is read
  classifier::Model loaded = classifier::load_model(options.model);
  if (options.isolation.is_on) loaded.weights = {};
  const auto model = std::make_shared<const classifier::Model>(std::move(loaded));
  for (const std::string& warning : model->warnings) std::fprintf(stderr, "tessera: warning: %s\n", warning.c_str());
  return model;
}

Classifiers make_classifiers(const std::shared_ptr<const classifier::Model>& model, const ModelOptions& options,
                             classifier::InputKind input, bool quiet) {
  const BackEnd back_end = back_end_of(options);
  if (!quiet) std::fprintf(stderr, "tessera: on %s\n", describe_model(back_end, options).c_str());
  if (back_end.expert_threshold > 0 && !options.isolation.is_worker) {
    std::fprintf(stderr, "tessera: experts whose router weight is below %g are skipped: results are approximate\n",
                 back_end.expert_threshold);
  }
  if (options.isolation.is_on) return make_isolated(model->config, options, back_end, input);
  if (back_end.on_gpu()) return make_lanes(model, options, back_end, input);
  Classifiers classifiers;
  classifiers.push_back(classifier::make_cpu_classifier(
      model, {.input = input, .precision = back_end.cpu_precision, .num_threads = options.num_threads}));
  return classifiers;
}

std::string class_name(const classifier::ClassifierConfig& config, int64_t class_idx) {
  const size_t i = static_cast<size_t>(class_idx);
  return i < config.class_names.size() ? config.class_names[i] : std::to_string(class_idx);
}

}  // namespace tessera::cli
