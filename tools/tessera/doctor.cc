// tessera doctor: what this machine offers, and whether the classifier computes here what it should.
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "classifier/synth.h"
#include "commands.h"
#include "comparison.h"
#include "cpu/gemm.h"
#include "exit_codes.h"
#include "machine.h"
#include "output.h"
#include "run_report.h"
#include "tessera/classifier/classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::cli {

namespace {

constexpr const char* kFooter =
    "Examples:\n"
    "  tessera doctor\n"
    "Prints processor, memory, libraries and GPU, then runs a small synthetic model in every precision this machine "
    "has\n"
    "and compares it with the fp64 oracle. The exit code is 0 when all agree, else 1.";

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

std::string gpu() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string version;
  if (!std::getline(file, version)) return "none";
  return "NVIDIA driver found (" + escaped(version) + "); this build has no GPU back end";
}

struct SmokeResult {
  std::vector<float> logits;
  double rate = 0;
  std::string description;
};

SmokeResult run_smoke(const std::shared_ptr<const classifier::Model>& model, classifier::Precision precision,
                      const std::vector<int32_t>& ids) {
  const auto classifier = classifier::make_cpu_classifier(model, {.precision = precision});
  SmokeResult result;
  result.logits.resize(static_cast<size_t>(kSmokeSentences * model->config.num_classes));
  classifier::Batch batch;
  batch.num_sentences = kSmokeSentences;
  batch.ids = ids.data();
  classifier::Outputs outputs;
  outputs.logits = result.logits.data();
  const auto start = std::chrono::steady_clock::now();
  classifier->run(batch, outputs);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  result.rate = static_cast<double>(kSmokeSentences) / seconds.count();
  result.description = classifier->description();
  return result;
}

/// Runs a small model in every precision; false if one strays from the oracle.
bool smoke_run(std::string& text) {
  const classifier::ClassifierConfig config = classifier::preset_config("small");
  const auto model = std::make_shared<const classifier::Model>(classifier::synthesize_model(config, {}, {.seed = 1}));
  std::vector<int32_t> ids(static_cast<size_t>(kSmokeSentences * config.sequence_length));
  classifier::synthesize_ids(config, 1, 0, ids);
  const SmokeResult oracle = run_smoke(model, classifier::Precision::fp64, ids);
  std::vector<std::pair<std::string, classifier::Precision>> precisions = {{"fp32", classifier::Precision::fp32}};
  if (classifier::cpu_supports_bf16()) precisions.emplace_back("bf16", classifier::Precision::bf16);
  bool healthy = true;
  for (const auto& [name, precision] : precisions) {
    const SmokeResult result = run_smoke(model, precision, ids);
    const Comparison comparison = compare_logits(result.logits, oracle.logits, config.num_classes, tolerance_of(name));
    const bool agrees = comparison.num_over_ours == 0;
    healthy = healthy && agrees;
    char line[160];
    std::snprintf(line, sizeof(line), "smoke run   %s: %s the oracle, off by at most %.2g, %.0f sentences/s\n",
                  name.c_str(), agrees ? "agrees with" : "STRAYS from", comparison.max_difference, result.rate);
    text += line;
    text += "            " + result.description + "\n";
  }
  return healthy;
}

int doctor() {
  const std::string model_name = proc_value("/proc/cpuinfo", "model name");
  std::string text = "tessera     " TESSERA_VERSION "\n";
  text += "processor   " + (model_name.empty() ? "unknown" : escaped(model_name)) + "\n";
  text += "features    " + processor_features() + "\n";
  text += str_cat("threads     ", available_processors(), " usable of ", sysconf(_SC_NPROCESSORS_ONLN), "\n");
  text += "memory      " + memory() + "\n";
  text += "products    " + cpu::gemm_library_name() + "; bf16 " +
          (classifier::cpu_supports_bf16() ? "in hardware" : "not available") + "\n";
  text += "GPU         " + gpu() + "\n";
  const bool healthy = smoke_run(text);
  text += healthy ? "healthy\n" : "NOT healthy\n";
  Output output("-");
  output.write(text);
  output.commit();
  return healthy ? kAllOk : kSomeFailed;
}

}  // namespace

Command add_doctor(CLI::App& app) {
  app.footer(kFooter);
  return [] { return doctor(); };
}

}  // namespace tessera::cli
