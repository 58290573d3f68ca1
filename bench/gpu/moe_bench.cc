// The whole layer against the two dense cuBLASLt products of the same FLOPs, A B A B in one process.
//
//   moe_bench [--rows a,b,...] [--seconds S] [--order natural|heavy|interleaved] [--back N] [--cluster N] [--steps]
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cuda/core/cuda_check.h"
#include "gpu/moe/reference.h"
#include "moe/cuda_workspace.h"
#include "tessera/core/check.h"

namespace tessera {
namespace {

struct Row {
  const char* name;
  int hidden, intermediate, experts, top_k, tokens;
  const char* routing;
};
const Row kRows[] = {
    {"mixtral", 4096, 14336, 8, 2, 4096, "balanced"},  {"mixtral16k", 4096, 14336, 8, 2, 16384, "balanced"},
    {"mixtral-r", 4096, 14336, 8, 2, 4096, "random"},  {"qwen57", 3584, 2560, 64, 8, 4096, "balanced"},
    {"qwen57-best", 3584, 2560, 64, 8, 4096, "best"},  {"qwen57-worst", 3584, 2560, 64, 8, 4096, "worst"},
    {"qwen30", 2048, 768, 128, 8, 16384, "balanced"},  {"qwen30-r", 2048, 768, 128, 8, 16384, "random"},
    {"dsv3", 7168, 2048, 32, 8, 16384, "balanced"},    {"gptoss-r", 2880, 2880, 128, 4, 16384, "random"},
    {"gptoss", 2880, 2880, 128, 4, 16384, "balanced"},
};

size_t slots(const Row& row) { return static_cast<size_t>(row.tokens) * row.top_k; }

std::vector<int32_t> make_ids(const Row& row) {
  std::vector<int32_t> ids(slots(row));
  const std::string kind = row.routing;
  std::mt19937 rng(7);
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    if (kind == "balanced") ids[slot] = static_cast<int32_t>(slot % row.experts);
    if (kind == "best" || kind == "worst") ids[slot] = static_cast<int32_t>(slot % row.top_k);
    if (kind == "worst" && slot < static_cast<size_t>(row.experts - row.top_k))
      ids[slot] = row.top_k + static_cast<int32_t>(slot);
  }
  if (kind == "random") {
    std::vector<int32_t> experts(row.experts);
    std::iota(experts.begin(), experts.end(), 0);
    for (int token = 0; token < row.tokens; ++token) {
      for (int choice = 0; choice < row.top_k; ++choice) {
        std::swap(experts[choice], experts[choice + rng() % (row.experts - choice)]);
        ids[static_cast<size_t>(token) * row.top_k + choice] = experts[choice];
      }
    }
  }
  return ids;
}

struct CudaFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, CudaFree>;

DeviceMemory device_alloc(size_t bytes) {
  void* memory = nullptr;
  TESSERA_CUDA_CHECK(cudaMalloc(&memory, bytes));
  return DeviceMemory(memory);
}

float time_ms(const std::function<void()>& work, int repetitions) {
  static cudaEvent_t begin = nullptr, end = nullptr;
  if (begin == nullptr) {
    TESSERA_CUDA_CHECK(cudaEventCreate(&begin));
    TESSERA_CUDA_CHECK(cudaEventCreate(&end));
  }
  TESSERA_CUDA_CHECK(cudaEventRecord(begin));
  for (int i = 0; i < repetitions; ++i) work();
  TESSERA_CUDA_CHECK(cudaEventRecord(end));
  TESSERA_CUDA_CHECK(cudaEventSynchronize(end));
  float ms = 0;
  TESSERA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
  return ms / static_cast<float>(repetitions);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void check_lt(cublasStatus_t status, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    std::fprintf(stderr, "cublasLt %d at line %d\n", static_cast<int>(status), line);
    std::exit(1);
  }
}
#define LT(call) check_lt((call), __LINE__)

// D[m, n] = A[m, k] * B[n, k]^T, row-major, best of the heuristics by measurement.
class DenseGemm {
 public:
  DenseGemm(cublasLtHandle_t handle, int64_t m, int64_t n, int64_t k, const void* a, const void* b, void* d,
            void* workspace, size_t workspace_bytes)
      : handle_(handle), a_(a), b_(b), d_(d), workspace_(workspace), workspace_bytes_(workspace_bytes) {
    LT(cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T, as_it_lies = CUBLAS_OP_N;
    LT(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    LT(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSB, &as_it_lies, sizeof as_it_lies));
    LT(cublasLtMatrixLayoutCreate(&lb_, CUDA_R_16BF, k, n, k));
    LT(cublasLtMatrixLayoutCreate(&la_, CUDA_R_16BF, k, m, k));
    LT(cublasLtMatrixLayoutCreate(&ld_, CUDA_R_16BF, n, m, n));
    cublasLtMatmulPreference_t preference;
    LT(cublasLtMatmulPreferenceCreate(&preference));
    LT(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                            sizeof workspace_bytes));
    cublasLtMatmulHeuristicResult_t results[8];
    int found = 0;
    LT(cublasLtMatmulAlgoGetHeuristic(handle_, desc_, lb_, la_, ld_, ld_, preference, 8, results, &found));
    double best = 1e30;
    for (int candidate = 0; candidate < found; ++candidate) {
      algo_ = results[candidate].algo;
      if (!run()) continue;
      time_ms([&] { run(); }, 2);
      const double ms = time_ms([&] { run(); }, 5);
      if (ms < best) {
        best = ms;
        best_algo_ = algo_;
      }
    }
    algo_ = best_algo_;
  }
  bool run() const {
    const float one = 1.0f, zero = 0.0f;
    return cublasLtMatmul(handle_, desc_, &one, b_, lb_, a_, la_, &zero, d_, ld_, d_, ld_, &algo_, workspace_,
                          workspace_bytes_, nullptr) == CUBLAS_STATUS_SUCCESS;
  }

 private:
  cublasLtHandle_t handle_;
  const void *a_, *b_;
  void *d_, *workspace_;
  size_t workspace_bytes_;
  cublasLtMatmulDesc_t desc_;
  cublasLtMatrixLayout_t la_, lb_, ld_;
  cublasLtMatmulAlgo_t algo_{}, best_algo_{};
};

std::map<std::string, std::string> parse(int argc, char** argv) {
  std::map<std::string, std::string> options;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    options[key] = i + 1 < argc && argv[i + 1][0] != '-' ? argv[++i] : "1";
  }
  return options;
}

double number(const std::map<std::string, std::string>& options, const char* key, double fallback) {
  const auto found = options.find(key);
  return found == options.end() ? fallback : std::atof(found->second.c_str());
}

moe::LaunchPolicy make_policy(const std::map<std::string, std::string>& options) {
  moe::LaunchPolicy policy;
  const auto order = options.find("--order");
  if (order != options.end()) {
    policy.order = order->second == "natural" ? batching::TaskOrder::natural
                   : order->second == "heavy" ? batching::TaskOrder::heavy_first
                                              : batching::TaskOrder::interleaved;
  }
  policy.back_every = static_cast<int32_t>(number(options, "--back", policy.back_every));
  policy.cluster_size = static_cast<int32_t>(number(options, "--cluster", policy.cluster_size));
  policy.num_ctas = static_cast<int32_t>(number(options, "--ctas", 0));
  return policy;
}

// Largest error over bound, on a few sampled tokens; anything above 1 is wrong.
double check(const moe::LayerConfig& config, const moe::LayerWeights& weights, const moe::LayerInputs& inputs) {
  std::vector<int32_t> tokens;
  for (int64_t sample = 0; sample < 6; ++sample)
    tokens.push_back(static_cast<int32_t>(sample * (inputs.num_tokens - 1) / 5));
  const auto reference = testing::reference_layer(config, weights, inputs, tokens);
  const auto* out = static_cast<const uint16_t*>(inputs.out);
  std::vector<uint16_t> got(config.hidden_size);
  double worst = 0;
  for (size_t sample = 0; sample < tokens.size(); ++sample) {
    TESSERA_CUDA_CHECK(cudaMemcpy(got.data(), out + static_cast<size_t>(tokens[sample]) * got.size(), got.size() * 2,
                                  cudaMemcpyDeviceToHost));
    for (size_t column = 0; column < got.size(); ++column) {
      const size_t element = sample * got.size() + column;
      const double value = bf16_to_f32(got[column]);
      const double error = std::fabs(value - reference.out[element]) / (reference.bound[element] + 1e-30);
      worst = std::isfinite(value) ? std::max(worst, error) : 1e30;
    }
  }
  return worst;
}

// The device memory of a row, weights and inputs filled in.
struct RowBuffers {
  explicit RowBuffers(const Row& row)
      : tokens_bytes(static_cast<size_t>(row.tokens) * row.hidden * 2),
        x(device_alloc(tokens_bytes)),
        gate_up(device_alloc(gate_up_count(row) * 2)),
        down(device_alloc(down_count(row) * 2)),
        ids(device_alloc(slots(row) * sizeof(int32_t))),
        topk_weights(device_alloc(slots(row) * sizeof(float))),
        out(device_alloc(tokens_bytes)),
        dense_in(device_alloc(dense_in_count(row) * 2)),
        dense_out(device_alloc(slots(row) * std::max(2 * row.intermediate, row.hidden) * 2)),
        lt_workspace(device_alloc(kLtWorkspaceBytes)) {
    testing::fill_normal(DType::bf16, x.get(), static_cast<size_t>(row.tokens) * row.hidden, 1.0f, 1);
    testing::fill_normal(DType::bf16, gate_up.get(), gate_up_count(row), 0.02f, 2);
    testing::fill_normal(DType::bf16, down.get(), down_count(row), 0.02f, 3);
    testing::fill_normal(DType::bf16, dense_in.get(), dense_in_count(row), 1.0f, 4);
    const std::vector<int32_t> host_ids = make_ids(row);
    TESSERA_CUDA_CHECK(
        cudaMemcpy(ids.get(), host_ids.data(), host_ids.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    const std::vector<float> equal(slots(row), 1.0f / static_cast<float>(row.top_k));
    TESSERA_CUDA_CHECK(
        cudaMemcpy(topk_weights.get(), equal.data(), equal.size() * sizeof(float), cudaMemcpyHostToDevice));
  }

  // Its size is known only once the layer exists. All bits set here and in `out`: NaNs, so that a read of what was
  // never written shows in the check.
  void allocate_workspace(size_t bytes) {
    workspace_bytes = bytes;
    workspace = device_alloc(bytes);
    TESSERA_CUDA_CHECK(cudaMemset(out.get(), 0xFF, tokens_bytes));
    TESSERA_CUDA_CHECK(cudaMemset(workspace.get(), 0xFF, bytes));
  }

  moe::LayerWeights weights() const { return {gate_up.get(), down.get(), nullptr, nullptr}; }
  moe::LayerInputs inputs(const Row& row) const {
    return {x.get(), ids.get(), false, static_cast<const float*>(topk_weights.get()), out.get(), row.tokens};
  }

  static size_t gate_up_count(const Row& row) {
    return static_cast<size_t>(row.experts) * 2 * row.intermediate * row.hidden;
  }
  static size_t down_count(const Row& row) { return static_cast<size_t>(row.experts) * row.hidden * row.intermediate; }
  static size_t dense_in_count(const Row& row) { return slots(row) * std::max(row.hidden, row.intermediate); }

  static constexpr size_t kLtWorkspaceBytes = size_t{64} << 20;

  size_t tokens_bytes;  // of x, and of out
  DeviceMemory x, gate_up, down, ids, topk_weights, out, dense_in, dense_out, lt_workspace;
  DeviceMemory workspace;
  size_t workspace_bytes = 0;
};

// The layer of a row with all that a run of it needs.
struct LayerRun {
  using Step = moe::CudaLayer::Step;

  void operator()() const { layer.run(inputs, workspace, workspace_bytes, nullptr); }
  void step(Step step) const { layer.run_step(step, inputs, workspace, workspace_bytes, nullptr); }

  const moe::CudaLayer& layer;
  moe::LayerInputs inputs;
  void* workspace;
  size_t workspace_bytes;
};

// The two dense products that cost as many FLOPs as the layer.
struct DensePair {
  DensePair(cublasLtHandle_t lt, const Row& row, const RowBuffers& buffers)
      : gate_up(lt, static_cast<int64_t>(slots(row)), int64_t{2} * row.intermediate, row.hidden, buffers.dense_in.get(),
                buffers.gate_up.get(), buffers.dense_out.get(), buffers.lt_workspace.get(),
                RowBuffers::kLtWorkspaceBytes),
        down(lt, static_cast<int64_t>(slots(row)), row.hidden, row.intermediate, buffers.dense_in.get(),
             buffers.down.get(), buffers.dense_out.get(), buffers.lt_workspace.get(), RowBuffers::kLtWorkspaceBytes) {}
  void operator()() const {
    gate_up.run();
    down.run();
  }

  DenseGemm gate_up, down;
};

struct BlockTimes {
  std::vector<double> layer_ms, dense_ms, ratio;
};

// Alternating, so that clocks and heat fall on both alike.
BlockTimes measure_blocks(const LayerRun& layer, const DensePair& dense, int repetitions) {
  BlockTimes times;
  for (int block = 0; block < 3; ++block) {
    times.dense_ms.push_back(time_ms([&] { dense(); }, repetitions));
    times.layer_ms.push_back(time_ms([&] { layer(); }, repetitions));
    times.ratio.push_back(times.dense_ms.back() / times.layer_ms.back());
  }
  return times;
}

struct StepTimes {
  double plan_ms, gate_up_ms, down_ms, combine_ms, dense_gate_up_ms, dense_down_ms;
};

// Each GEMM alone needs its tickets back; the memset of the counters costs about 2 us, measured and subtracted.
StepTimes measure_steps(const LayerRun& layer, const DensePair& dense, int repetitions) {
  using Step = LayerRun::Step;
  const auto arrays = moe::lay_out_workspace(layer.layer.config(), layer.inputs.num_tokens, layer.workspace);
  auto reset = [&] { TESSERA_CUDA_CHECK(cudaMemsetAsync(arrays.plan.header->tile_tickets, 0, 16)); };
  const double reset_ms = time_ms(reset, 200);
  auto gemm_ms = [&](Step step) {
    auto reset_and_run = [&] {
      reset();
      layer.step(step);
    };
    return time_ms(reset_and_run, repetitions) - reset_ms;
  };
  StepTimes times{};
  for (int pass = 0; pass < 2; ++pass) {  // the first warms up
    times.dense_gate_up_ms = time_ms([&] { dense.gate_up.run(); }, repetitions);
    times.gate_up_ms = gemm_ms(Step::gate_up);
    times.dense_down_ms = time_ms([&] { dense.down.run(); }, repetitions);
    times.down_ms = gemm_ms(Step::down);
    times.plan_ms = time_ms([&] { layer.step(Step::plan); }, repetitions);
    times.combine_ms = time_ms([&] { layer.step(Step::combine); }, repetitions);
  }
  return times;
}

void print_row(const Row& row, const BlockTimes& blocks, double worst_error, const std::optional<StepTimes>& steps) {
  const double flops = 6.0 * static_cast<double>(slots(row)) * row.hidden * row.intermediate;
  const double layer_ms = median(blocks.layer_ms), dense_ms = median(blocks.dense_ms);
  const auto [lowest, highest] = std::minmax_element(blocks.ratio.begin(), blocks.ratio.end());
  std::printf("%-13s r %.3f (%.3f..%.3f)  layer %.3f ms %.0f TF  dense %.3f ms %.0f TF  err %.3f", row.name,
              median(blocks.ratio), *lowest, *highest, layer_ms, flops / layer_ms / 1e9, dense_ms,
              flops / dense_ms / 1e9, worst_error);
  if (steps) {
    const double gate_up_flops = flops / 1.5, down_flops = flops / 3;
    const double combine_bytes = (static_cast<double>(slots(row)) + row.tokens) * row.hidden * 2;
    std::printf(" | plan %.1f us, g1 %.0f vs %.0f TF (%.3f), g2 %.0f vs %.0f TF (%.3f), combine %.1f us %.0f GB/s",
                steps->plan_ms * 1e3, gate_up_flops / steps->gate_up_ms / 1e9,
                gate_up_flops / steps->dense_gate_up_ms / 1e9, steps->dense_gate_up_ms / steps->gate_up_ms,
                down_flops / steps->down_ms / 1e9, down_flops / steps->dense_down_ms / 1e9,
                steps->dense_down_ms / steps->down_ms, steps->combine_ms * 1e3,
                combine_bytes / steps->combine_ms / 1e6);
  }
  std::printf("\n");
  std::fflush(stdout);
}

void bench_row(const Row& row, const std::map<std::string, std::string>& options, cublasLtHandle_t lt) {
  const moe::LayerConfig config{row.hidden, row.intermediate, row.experts, row.top_k, DType::bf16, true, {}, 0};
  RowBuffers buffers(row);
  const moe::CudaLayer layer(config, buffers.weights(), make_policy(options));
  buffers.allocate_workspace(layer.workspace_bytes(row.tokens));
  const LayerRun run{layer, buffers.inputs(row), buffers.workspace.get(), buffers.workspace_bytes};
  run();
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());
  const DensePair dense(lt, row, buffers);

  // A block lasts about `--seconds`.
  const double seconds = number(options, "--seconds", 0.4);
  const double guess_ms = time_ms([&] { run(); }, 3);
  const int repetitions = std::max(3, static_cast<int>(seconds * 1000 / guess_ms));
  const BlockTimes blocks = measure_blocks(run, dense, repetitions);
  const double worst_error = check(config, buffers.weights(), run.inputs);
  std::optional<StepTimes> steps;
  if (options.count("--steps")) steps = measure_steps(run, dense, std::max(3, repetitions / 4));
  print_row(row, blocks, worst_error, steps);
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  using namespace tessera;
  const auto options = parse(argc, argv);
  cublasLtHandle_t lt;
  LT(cublasLtCreate(&lt));
  const std::string rows = options.count("--rows") ? "," + options.at("--rows") + "," : "";
  try {
    for (const Row& row : kRows) {
      if (rows.empty() || rows.find("," + std::string(row.name) + ",") != std::string::npos)
        bench_row(row, options, lt);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "moe_bench: %s\n", e.what());
    return 1;
  }
  return 0;
}
