// The CPU measurements of `tessera bench classify`.
#include <chrono>
#include <cmath>
#include <limits>

#include "classify_bench.h"
#include "classify_blocks.h"
#include "cpu/gemm.h"
#include "machine.h"
#include "tessera/core/buffer.h"
#include "tessera/core/error.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

using classifier::InputKind;
using classifier::Precision;

class CpuClassifyBench : public ClassifyBench {
 public:
  CpuClassifyBench(std::shared_ptr<ClassifyData> data, const ClassifyBenchOptions& options)
      : data_(std::move(data)), options_(options) {}

  std::string impossible(const ClassifyCase& asked) const override {
    if (asked.path == Path::resident) return "there is no device memory without a GPU";
    if (asked.precision == Precision::fp16) return "fp16 is for GPUs";
    if (asked.precision == Precision::bf16 && !classifier::cpu_supports_bf16())
      return "this processor or build has no bf16 products";
    if (asked.form != classifier::Form::automatic) return "the CPU back end chooses its form itself";
    return "";
  }

  std::vector<std::pair<std::string, std::string>> description() const override {
    const std::string processor = proc_value("/proc/cpuinfo", "model name");
    const int threads = options_.num_threads > 0 ? options_.num_threads : available_processors();
    return {{"processor", processor.empty() ? "unknown" : escaped(processor)},
            {"threads", format_text("%d", threads)},
            {"products", cpu::gemm_library_name()}};
  }

  ClassifyResult measure(const ClassifyCase& asked) override;

 private:
  std::shared_ptr<ClassifyData> data_;
  ClassifyBenchOptions options_;
  Buffer<float> embeddings_;  // filled by the first case that needs them
};

ClassifyResult CpuClassifyBench::measure(const ClassifyCase& asked) {
  const InputKind input = asked.path == Path::ids ? InputKind::ids : InputKind::embeddings;
  const int64_t count = data_->num_sentences();
  ClassifyResult result;
  result.num_sentences = count;
  if (input == InputKind::embeddings && embeddings_.empty()) {
    embeddings_ = Buffer<float>(static_cast<size_t>(count * data_->sentence_size()));
    data_->fill(0, count, embeddings_.data());
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto classifier = classifier::make_cpu_classifier(
      data_->model(), {.input = input, .precision = asked.precision, .num_threads = options_.num_threads});
  result.setup_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.description = classifier->description();

  const auto num_logits = static_cast<size_t>(count * data_->model()->config.num_classes);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> once(num_logits, nan), sustained(num_logits, nan);
  const auto run_into = [&](std::vector<float>& logits) {
    return Worker{.step = [&](int64_t) {
      classifier::Batch batch;
      batch.num_sentences = count;
      batch.ids = input == InputKind::ids ? data_->ids().data() : nullptr;
      batch.embeddings = input == InputKind::ids ? nullptr : embeddings_.data();
      classifier::Outputs outputs;
      outputs.logits = logits.data();
      classifier->run(batch, outputs);
      return static_cast<double>(count);
    }};
  };
  result.latency_seconds = repeated_seconds({run_into(once)});
  const Turns turns = take_turns({run_into(sustained)}, {}, options_.seconds,
                                 {.begin = [] {}, .end = [] { return std::vector<DeviceState>(); }});
  result.num_blocks = turns.num_blocks;
  result.seconds_a_block = turns.seconds_a_block;
  result.rate = turns.rate;
  result.why_no_limit = "none is measured on the CPU";
  result.check = check_classified(*data_, input, DType::f32, precision_name(asked.precision), options_.num_checked,
                                  options_.num_threads, {once, sustained});
  return result;
}

}  // namespace

std::unique_ptr<ClassifyBench> make_cpu_classify_bench(std::shared_ptr<ClassifyData> data,
                                                       const ClassifyBenchOptions& options) {
  return std::make_unique<CpuClassifyBench>(std::move(data), options);
}

}  // namespace tessera::cli
