// tessera doctor: what this machine offers, and whether the classifier computes here what it should.
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "back_end.h"
#include "classifier/school_format.h"
#include "classifier/synth.h"
#include "commands.h"
#include "comparison.h"
#include "cpu/gemm.h"
#include "exit_codes.h"
#include "machine.h"
#include "output.h"
#include "tessera/classifier/classifier.h"
#include "tessera/classifier/cuda_classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cli {

namespace {

constexpr const char* kDoctorFooter =
    "Examples:\n"
    "  tessera doctor\n"
    "Prints processor, memory, libraries and GPUs, then runs a small synthetic model in every precision of the CPU "
    "and\n"
    "of every GPU that can be used, and compares it with the fp64 oracle. The exit code is 0 when all agree, else 1.";

constexpr int64_t kSmokeSentences = 512;

std::string processor_features() {
  std::istringstream flags(proc_value("/proc/cpuinfo", "flags"));
  const std::vector<std::string> known = {"avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16"};
  std::vector<std::string> found;
  for (std::string flag; flags >> flag;) {
    if (std::find(known.begin(), known.end(), flag) != known.end()) found.push_back(flag);
  }
  std::string text;
  for (const std::string& name : known) {
    if (std::find(found.begin(), found.end(), name) != found.end()) text += (text.empty() ? "" : ", ") + name;
  }
  return text.empty() ? "none of avx2, avx512, amx" : text;
}

std::string memory() {
  struct sysinfo info {};
  if (sysinfo(&info) != 0) return "unknown";
  const double gib = static_cast<double>(info.mem_unit) / (1 << 30);
  char text[64];
  std::snprintf(text, sizeof(text), "%.1f GiB, %.1f GiB free", static_cast<double>(info.totalram) * gib,
                static_cast<double>(info.freeram + info.bufferram) * gib);
  return text;
}

/// A line for each GPU, or why there is none.
std::string gpu_lines(const Devices& devices) {
  if (devices.gpus.empty()) return "GPU         none: " + devices.why_none + "\n";
  std::string text;
  for (const cuda::DeviceFacts& gpu : devices.gpus) {
    char line[64];
    std::snprintf(line, sizeof(line), ", %.1f GiB: ", static_cast<double>(gpu.memory_bytes) / (1 << 30));
    const std::string why = cuda::why_unusable(gpu);
    text += "GPU         " + gpu_name(gpu) + line + (why.empty() ? "usable" : why) + "\n";
  }
  return text;
}

/// Sentences in both forms: ids [kSmokeSentences, sequence_length], embeddings [kSmokeSentences, embedding_size,
/// sequence_length], and the oracle's logits for them.
struct SmokeInput {
  std::vector<int32_t> ids;
  std::vector<float> embeddings;
  std::vector<float> answers;
};

struct SmokeResult {
  std::vector<float> logits;
  double rate = 0;
};

SmokeResult run_smoke(const classifier::Model& model, classifier::Classifier& classifier, classifier::InputKind kind,
                      const SmokeInput& input) {
  SmokeResult result;
  result.logits.resize(static_cast<size_t>(kSmokeSentences * model.config.num_classes));
  classifier::Batch batch;
  batch.num_sentences = kSmokeSentences;
  if (kind == classifier::InputKind::ids) batch.ids = input.ids.data();
  if (kind == classifier::InputKind::embeddings) batch.embeddings = input.embeddings.data();
  classifier::Outputs outputs;
  outputs.logits = result.logits.data();
  const auto start = std::chrono::steady_clock::now();
  classifier.run(batch, outputs);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  result.rate = static_cast<double>(kSmokeSentences) / seconds.count();
  return result;
}

SmokeInput make_smoke_input(const std::shared_ptr<const classifier::Model>& model) {
  const classifier::ClassifierConfig& config = model->config;
  SmokeInput input;
  input.ids.resize(static_cast<size_t>(kSmokeSentences * config.sequence_length));
  classifier::synthesize_ids(config, 1, 0, input.ids);
  const int64_t row_size = config.embedding_size * config.sequence_length;
  input.embeddings.resize(static_cast<size_t>(kSmokeSentences * row_size));
  for (int64_t i = 0; i < kSmokeSentences; ++i) {
    classifier::gather_embeddings(*model, input.ids.data() + i * config.sequence_length,
                                  input.embeddings.data() + i * row_size);
  }
  const auto oracle = classifier::make_cpu_classifier(model, {.precision = classifier::Precision::fp64});
  input.answers = run_smoke(*model, *oracle, classifier::InputKind::ids, input).logits;
  return input;
}

/// The small model on this machine's back ends, one after the other; what came out is added to `text`.
class SmokeRun {
 public:
  explicit SmokeRun(std::string& text)
      : text_(text),
        model_(std::make_shared<const classifier::Model>(
            classifier::synthesize_model(classifier::preset_config("small"), {}, {.seed = 1}))),
        input_(make_smoke_input(model_)) {}

  /// False once a back end has strayed from the oracle or failed.
  bool healthy() const { return healthy_; }

  void on_cpu(classifier::Precision precision) {
    run(precision_name(precision), precision, classifier::InputKind::ids,
        [&] { return classifier::make_cpu_classifier(model_, {.precision = precision}); });
  }

  void on_gpu(const cuda::DeviceFacts& gpu, classifier::Precision precision) {
    using classifier::InputKind;
    for (const InputKind kind : {InputKind::ids, InputKind::embeddings}) {
      const std::string input = kind == InputKind::ids ? ", token ids, " : ", embeddings, ";
      run(str_cat("GPU ", gpu.index, input, precision_name(precision)), precision, kind, [&] {
        classifier::CudaOptions options;
        options.input = kind;
        options.precision = {.convolutions = precision, .experts = precision, .head = precision};
        options.device = gpu.index;
        return std::unique_ptr<classifier::Classifier>(
            std::move(classifier::make_cuda_classifiers(model_, options).at(0)));
      });
    }
  }

 private:
  using MakeClassifier = std::function<std::unique_ptr<classifier::Classifier>()>;

  void run(const std::string& name, classifier::Precision precision, classifier::InputKind kind,
           const MakeClassifier& make) {
    try {
      const auto classifier = make();
      run_smoke(*model_, *classifier, kind, input_);  // the first run of a device is slow
      const SmokeResult result = run_smoke(*model_, *classifier, kind, input_);
      const Comparison comparison = compare_logits(result.logits, input_.answers, model_->config.num_classes,
                                                   tolerance_of(precision_name(precision)));
      const bool agrees = comparison.num_over_ours == 0;
      healthy_ = healthy_ && agrees;
      char line[200];
      std::snprintf(line, sizeof(line), "smoke run   %s: %s the oracle, off by at most %.2g, %.0f sentences/s\n",
                    name.c_str(), agrees ? "agrees with" : "STRAYS from", comparison.max_difference, result.rate);
      text_ += line;
      text_ += "            " + classifier->description() + "\n";
    } catch (const std::exception& error) {
      healthy_ = false;
      text_ += "smoke run   " + name + ": FAILED: " + error.what() + "\n";
    }
  }

  std::string& text_;
  std::shared_ptr<const classifier::Model> model_;
  SmokeInput input_;
  bool healthy_ = true;
};

/// Runs a small model in every precision; false if one strays from the oracle.
bool smoke_run(const Devices& devices, std::string& text) {
  using classifier::Precision;
  SmokeRun smoke(text);
  smoke.on_cpu(Precision::fp32);
  if (devices.cpu_multiplies_bf16) smoke.on_cpu(Precision::bf16);
  for (const cuda::DeviceFacts& gpu : devices.gpus) {
    if (!cuda::why_unusable(gpu).empty()) continue;
    for (const Precision precision : {Precision::fp16, Precision::bf16, Precision::fp32}) smoke.on_gpu(gpu, precision);
  }
  return smoke.healthy();
}

int doctor() {
  const Devices devices = find_devices();
  const std::string model_name = proc_value("/proc/cpuinfo", "model name");
  std::string text = "tessera     " TESSERA_VERSION "\n";
  text += "processor   " + (model_name.empty() ? "unknown" : escaped(model_name)) + "\n";
  text += "features    " + processor_features() + "\n";
  text += str_cat("threads     ", available_processors(), " usable of ", sysconf(_SC_NPROCESSORS_ONLN), "\n");
  text += "memory      " + memory() + "\n";
  text += "products    " + cpu::gemm_library_name() + "; bf16 " +
          (devices.cpu_multiplies_bf16 ? "in hardware" : "not available") + "\n";
  text += gpu_lines(devices);
  const bool healthy = smoke_run(devices, text);
  text += healthy ? "healthy\n" : "NOT healthy\n";
  Output output("-");
  output.write(text);
  output.commit();
  return healthy ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_doctor(CLI::App& app) {
  app.footer(kDoctorFooter);
  return [] { return doctor(); };
}

}  // namespace tessera::cli
