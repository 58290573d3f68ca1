// The full-size classifier on this machine's processors, from embeddings and from token ids, beside a plain matrix
// product of the same FLOPs in the same run. Prints one JSON object.
//
//   bench_classifier_cpu [--ids FILE] [--threads N] [--seconds S]
//
// Weights and embeddings are random, N(0, 1) times 1 / sqrt(inputs); rates do not depend on them. --ids FILE takes
// token ids as int32 little-endian rows of 16; without it ids follow Zipf's law, 4 to 16 words and padding.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "classifier/cpu_form.h"
#include "classifier/synth.h"
#include "cpu/gemm.h"
#include "cpu/page_buffer.h"
#include "tessera/classifier/classifier.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace {

using namespace tessera;
using namespace tessera::classifier;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

struct Options {
  std::string ids_file;
  int threads = available_processors();
  double seconds = 6;  // per measurement
};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void fill_normal(Buffer<float>& values, float scale, uint64_t seed, ThreadPool& pool) {
  constexpr int64_t kChunk = 1 << 20;
  pool.run((static_cast<int64_t>(values.size()) + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    std::mt19937_64 random(seed * 1'000'003 + static_cast<uint64_t>(chunk));
    std::normal_distribution<float> normal(0, scale);
    const int64_t end = std::min(static_cast<int64_t>(values.size()), (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i) values[static_cast<size_t>(i)] = normal(random);
  });
}

// Rows of 16 ids, as many as there are or `count` random ones.
std::vector<int32_t> load_ids(const Options& options, const ClassifierConfig& config, int64_t count) {
  std::vector<int32_t> ids;
  if (!options.ids_file.empty()) {
    std::ifstream file(options.ids_file, std::ios::binary | std::ios::ate);
    const std::streamoff row_bytes = config.sequence_length * static_cast<std::streamoff>(sizeof(int32_t));
    if (!file || file.tellg() == 0 || file.tellg() % row_bytes != 0) {
      throw Error(options.ids_file, "no file of whole rows", str_cat("int32 rows of ", config.sequence_length));
    }
    ids.resize(static_cast<size_t>(file.tellg()) / sizeof(int32_t));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof(int32_t)));
    return ids;
  }
  ids.resize(static_cast<size_t>(count * config.sequence_length));
  synthesize_ids(config, 1, 0, ids);
  return ids;
}

// Peak memory since the last call of reset_peak_memory.
void reset_peak_memory() { std::ofstream("/proc/self/clear_refs") << "5"; }

double peak_memory_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

double process_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Calls `step` for about `seconds` after one call that is not counted. A step returns the seconds that it took, or of
// them the part that counts. Median, least and most of amount / seconds, and how many processors this process had
// meanwhile (fewer than threads: something else was running).
Json measure(double seconds, double amount_per_step, const std::function<double()>& step) {
  step();
  std::vector<double> rates;
  const auto begin = Clock::now();
  const double cpu_begin = process_cpu_seconds();
  while (rates.size() < 3 || seconds_since(begin) < seconds) rates.push_back(amount_per_step / step());
  const double processors = (process_cpu_seconds() - cpu_begin) / seconds_since(begin);
  std::sort(rates.begin(), rates.end());
  return {
      {"median", rates[rates.size() / 2]}, {"min", rates.front()}, {"max", rates.back()}, {"processors", processors}};
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = Clock::now();
  work();
  return seconds_since(begin);
}

// A plain product [rows, 4096] x [4096, 1024] of which every thread runs its own, the weights in a cache.
class PlainMatmul {
 public:
  PlainMatmul(int64_t rows, DType operand, ThreadPool& pool)
      : rows_(rows),
        pool_(pool),
        weights_(kIn * kOut),
        a_(static_cast<size_t>(rows * kIn)),
        a_bf16_(a_.size()),
        operand_(operand) {
    fill_normal(weights_, 1.0f, 99, pool);
    fill_normal(a_, 1.0f, 98, pool);
    std::transform(a_.begin(), a_.end(), a_bf16_.begin(), f32_to_bf16);
    gemm_.emplace(cpu::GemmSpec{.rows = rows, .out_features = kOut, .in_features = kIn, .operand = operand},
                  cpu::WeightView{weights_.data(), kIn, 1});
    for (int i = 0; i < pool.num_threads(); ++i) {
      c_.emplace_back(static_cast<size_t>(rows * kOut));
      scratch_.emplace_back(gemm_->scratch_bytes());
    }
  }
  int64_t rows() const { return rows_; }

  /// Multiplies `num_rows` rows or a few more; returns GFLOP.
  double run(int64_t num_rows) {
    const int64_t num_products = (num_rows + rows_ - 1) / rows_;
    const void* input = operand_ == DType::bf16 ? static_cast<const void*>(a_bf16_.data()) : a_.data();
    pool_.run(num_products, [&](int64_t, int worker) {
      const auto i = static_cast<size_t>(worker);
      gemm_->run(input, c_[i].data(), scratch_[i].data());
    });
    return 2e-9 * static_cast<double>(num_products * rows_ * kIn * kOut);
  }

 private:
  static constexpr int64_t kIn = 4096;
  static constexpr int64_t kOut = 1024;
  int64_t rows_;
  ThreadPool& pool_;
  Buffer<float> weights_, a_;
  Buffer<uint16_t> a_bf16_;
  DType operand_;
  std::optional<cpu::PackedGemm> gemm_;
  std::vector<Buffer<float>> c_;
  std::vector<Buffer<std::byte>> scratch_;
};

// The number of rows that is fastest here.
std::unique_ptr<PlainMatmul> fastest_matmul(DType operand, ThreadPool& pool) {
  std::unique_ptr<PlainMatmul> best;
  double best_rate = 0;
  for (const int64_t rows : {64, 96, 112, 128, 192, 256, 512, 1024}) {
    auto matmul = std::make_unique<PlainMatmul>(rows, operand, pool);
    const Json rate = measure(0.5, 1, [&] { return seconds_of([&] { matmul->run(4096); }); });
    const double gflops = rate["median"].get<double>() * matmul->run(4096);
    if (gflops > best_rate) {
      best_rate = gflops;
      best = std::move(matmul);
    }
  }
  return best;
}

// Worst |logit - oracle| / max(1, |oracle|) over the first sentences of the batch.
double worst_logit_error(const std::shared_ptr<Model>& model, Classifier& classifier, InputKind input, Batch batch,
                         const Options& options) {
  batch.num_sentences = std::min<int64_t>(batch.num_sentences, 8);  // the oracle takes about a second for each
  const auto oracle =
      make_cpu_classifier(model, {.input = input, .precision = Precision::fp64, .num_threads = options.threads});
  Buffer<float> logits(static_cast<size_t>(batch.num_sentences * model->config.num_classes));
  Buffer<float> expected(logits.size());
  classifier.run(batch, {.logits = logits.data()});
  oracle->run(batch, {.logits = expected.data()});
  double worst = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double scale = std::max(1.0, std::abs(double{expected[i]}));
    worst = std::max(worst, std::abs(double{logits[i]} - double{expected[i]}) / scale);
  }
  return worst;
}

int64_t executed_flops(const ClassifierConfig& config) {
  const CpuForm form = select_cpu_form(config, InputKind::embeddings, cpu::physical_memory_bytes());
  return config.flops_per_sentence() - tail_flops(config, CpuForm{}) + tail_flops(config, form);
}

Json bench_embeddings(const std::shared_ptr<Model>& model, Precision precision, const Options& options,
                      ThreadPool& pool) {
  const ClassifierConfig& config = model->config;
  const auto matmul = fastest_matmul(precision == Precision::bf16 ? DType::bf16 : DType::f32, pool);
  reset_peak_memory();
  const auto load_begin = Clock::now();
  const auto classifier = make_cpu_classifier(
      model, {.input = InputKind::embeddings, .precision = precision, .num_threads = options.threads});
  const double load_seconds = seconds_since(load_begin);
  const int64_t batch = classifier->preferred_batch();
  Buffer<float> embeddings(static_cast<size_t>(batch * config.embedding_size * config.sequence_length));
  fill_normal(embeddings, 1.0f, 55, pool);
  Buffer<float> logits(static_cast<size_t>(batch * config.num_classes));
  const Batch sentences = {.num_sentences = batch, .embeddings = embeddings.data()};
  // A batch and plain products of about the same FLOPs take turns, as the machine's speed drifts.
  const double batch_gflop = static_cast<double>(batch * executed_flops(config)) / 1e9;
  const int64_t matmul_rows = batch * executed_flops(config) / (2 * 4096 * 1024);
  std::vector<double> matmul_rates;
  const Json rate = measure(options.seconds, static_cast<double>(batch), [&] {
    double gflop = 0;
    const double matmul_seconds = seconds_of([&] { gflop = matmul->run(matmul_rows); });
    matmul_rates.push_back(gflop / matmul_seconds);
    return seconds_of([&] { classifier->run(sentences, {.logits = logits.data()}); });
  });
  const double peak = peak_memory_mib();
  std::sort(matmul_rates.begin(), matmul_rates.end());
  const double matmul_gflops = matmul_rates[matmul_rates.size() / 2];
  const double gflops = rate["median"].get<double>() / static_cast<double>(batch) * batch_gflop;
  return {{"sentences_per_second", rate["median"]},
          {"spread", {rate["min"], rate["max"]}},
          {"processors_had", rate["processors"]},
          {"batch", batch},
          {"gflops", gflops},
          {"plain_matmul_gflops", matmul_gflops},
          {"plain_matmul_rows", matmul->rows()},
          {"ratio_to_plain_matmul", gflops / matmul_gflops},
          {"worst_logit_error", worst_logit_error(model, *classifier, InputKind::embeddings, sentences, options)},
          {"pack_seconds", load_seconds},
          {"peak_memory_mib", peak},
          {"description", classifier->description()}};
}

Json bench_ids(const std::shared_ptr<Model>& model, Precision precision, const Options& options) {
  const ClassifierConfig& config = model->config;
  const std::vector<int32_t> ids = load_ids(options, config, 16'384);
  const auto num_sentences = static_cast<int64_t>(ids.size()) / config.sequence_length;
  reset_peak_memory();
  const auto load_begin = Clock::now();
  const auto classifier =
      make_cpu_classifier(model, {.input = InputKind::ids, .precision = precision, .num_threads = options.threads});
  const double load_seconds = seconds_since(load_begin);
  Buffer<float> logits(static_cast<size_t>(num_sentences * config.num_classes));
  const Batch sentences = {.num_sentences = num_sentences, .ids = ids.data()};
  const auto first_begin = Clock::now();
  classifier->run(sentences, {.logits = logits.data()});
  const double first_seconds = seconds_since(first_begin);
  const Json rate = measure(options.seconds, static_cast<double>(num_sentences),
                            [&] { return seconds_of([&] { classifier->run(sentences, {.logits = logits.data()}); }); });
  const double peak = peak_memory_mib();
  std::vector<int32_t> distinct = ids;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto padding = std::count(ids.begin(), ids.end(), config.pad_id);
  return {{"sentences_per_second", rate["median"]},
          {"spread", {rate["min"], rate["max"]}},
          {"processors_had", rate["processors"]},
          {"sentences", num_sentences},
          {"source", options.ids_file.empty() ? "synthetic" : "file"},
          {"distinct_tokens", distinct.size()},
          {"padding_share", static_cast<double>(padding) / static_cast<double>(ids.size())},
          {"worst_logit_error", worst_logit_error(model, *classifier, InputKind::ids, sentences, options)},
          {"first_pass_seconds", first_seconds},
          {"pack_seconds", load_seconds},
          {"peak_memory_mib", peak},
          {"description", classifier->description()}};
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw Error(name, "no value", "one");
    const std::string value = argv[i + 1];
    if (name == "--ids") {
      options.ids_file = value;
    } else if (name == "--threads") {
      options.threads = std::stoi(value);
    } else if (name == "--seconds") {
      options.seconds = std::stod(value);
    } else {
      throw Error(name, "an unknown option", "--ids FILE, --threads N or --seconds S");
    }
  }
  return options;
}

Json bench(const Options& options) {
  ThreadPool pool(options.threads);
  const ClassifierConfig config = preset_config("apws25");
  Json result = {{"cpu_model", cpu_name()},
                 {"threads", options.threads},
                 {"library", cpu::gemm_library_name()},
                 {"compiler", __VERSION__},
                 {"flops_per_sentence", config.flops_per_sentence()},
                 {"flops_executed_per_sentence", executed_flops(config)}};
  const auto model = std::make_shared<Model>(synthesize_model(config, {}, {.num_threads = options.threads}));
  const bool has_bf16 = cpu_supports_bf16();
  result["embeddings_fp32"] = bench_embeddings(model, Precision::fp32, options, pool);
  if (has_bf16) result["embeddings_bf16"] = bench_embeddings(model, Precision::bf16, options, pool);
  result["ids_fp32"] = bench_ids(model, Precision::fp32, options);
  if (has_bf16) result["ids_bf16"] = bench_ids(model, Precision::bf16, options);
  return result;
}

}  // namespace

int main(int argc, char** argv) try {
  std::printf("%s\n", bench(parse(argc, argv)).dump(2).c_str());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_classifier_cpu: %s\n", error.what());
  return 1;
}
