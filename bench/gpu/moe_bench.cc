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
#include <numeric>
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
  int h, i, e, k, t;
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

std::vector<int32_t> make_ids(const Row& row) {
  std::vector<int32_t> ids(static_cast<size_t>(row.t) * row.k);
  const std::string kind = row.routing;
  std::mt19937 rng(7);
  for (size_t n = 0; n < ids.size(); ++n) {
    if (kind == "balanced") ids[n] = static_cast<int32_t>(n % row.e);
    if (kind == "best" || kind == "worst") ids[n] = static_cast<int32_t>(n % row.k);
    if (kind == "worst" && n < static_cast<size_t>(row.e - row.k)) ids[n] = row.k + static_cast<int32_t>(n);
  }
  if (kind == "random") {
    std::vector<int32_t> experts(row.e);
    std::iota(experts.begin(), experts.end(), 0);
    for (int t = 0; t < row.t; ++t) {
      for (int s = 0; s < row.k; ++s) {
        std::swap(experts[s], experts[s + rng() % (row.e - s)]);
        ids[static_cast<size_t>(t) * row.k + s] = experts[s];
      }
    }
  }
  return ids;
}

void* device_alloc(size_t bytes) {
  void* p = nullptr;
  TESSERA_CUDA_CHECK(cudaMalloc(&p, bytes));
  return p;
}

float time_ms(const std::function<void()>& f, int reps) {
  static cudaEvent_t a = nullptr, b = nullptr;
  if (a == nullptr) {
    TESSERA_CUDA_CHECK(cudaEventCreate(&a));
    TESSERA_CUDA_CHECK(cudaEventCreate(&b));
  }
  TESSERA_CUDA_CHECK(cudaEventRecord(a));
  for (int i = 0; i < reps; ++i) f();
  TESSERA_CUDA_CHECK(cudaEventRecord(b));
  TESSERA_CUDA_CHECK(cudaEventSynchronize(b));
  float ms = 0;
  TESSERA_CUDA_CHECK(cudaEventElapsedTime(&ms, a, b));
  return ms / static_cast<float>(reps);
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

void check_lt(cublasStatus_t s, int line) {
  if (s != CUBLAS_STATUS_SUCCESS) {
    std::fprintf(stderr, "cublasLt %d at line %d\n", static_cast<int>(s), line);
    std::exit(1);
  }
}
#define LT(x) check_lt((x), __LINE__)

// D[m, n] = A[m, k] * B[n, k]^T, row-major, best of the heuristics by measurement.
class DenseGemm {
 public:
  DenseGemm(cublasLtHandle_t handle, int64_t m, int64_t n, int64_t k, const void* a, const void* b, void* d,
            void* workspace, size_t workspace_bytes)
      : handle_(handle), a_(a), b_(b), d_(d), workspace_(workspace), workspace_bytes_(workspace_bytes) {
    LT(cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t t = CUBLAS_OP_T, nn = CUBLAS_OP_N;
    LT(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t));
    LT(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSB, &nn, sizeof nn));
    LT(cublasLtMatrixLayoutCreate(&lb_, CUDA_R_16BF, k, n, k));
    LT(cublasLtMatrixLayoutCreate(&la_, CUDA_R_16BF, k, m, k));
    LT(cublasLtMatrixLayoutCreate(&ld_, CUDA_R_16BF, n, m, n));
    cublasLtMatmulPreference_t pref;
    LT(cublasLtMatmulPreferenceCreate(&pref));
    LT(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                            sizeof workspace_bytes));
    cublasLtMatmulHeuristicResult_t results[8];
    int found = 0;
    LT(cublasLtMatmulAlgoGetHeuristic(handle_, desc_, lb_, la_, ld_, ld_, pref, 8, results, &found));
    double best = 1e30;
    for (int c = 0; c < found; ++c) {
      algo_ = results[c].algo;
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

double number(const std::map<std::string, std::string>& o, const char* key, double fallback) {
  const auto it = o.find(key);
  return it == o.end() ? fallback : std::atof(it->second.c_str());
}

// Largest error over bound, on a few sampled tokens; anything above 1 is wrong.
double check(const moe::LayerConfig& config, const moe::LayerWeights& weights, const moe::LayerInputs& in) {
  std::vector<int32_t> tokens;
  for (int n = 0; n < 6; ++n) tokens.push_back(static_cast<int32_t>(static_cast<int64_t>(n) * (in.num_tokens - 1) / 5));
  const auto ref = testing::reference_layer(config, weights, in, tokens);
  std::vector<uint16_t> row(config.hidden_size);
  double worst = 0;
  for (size_t n = 0; n < tokens.size(); ++n) {
    TESSERA_CUDA_CHECK(cudaMemcpy(row.data(),
                                  static_cast<const uint16_t*>(in.out) + static_cast<size_t>(tokens[n]) * row.size(),
                                  row.size() * 2, cudaMemcpyDeviceToHost));
    for (size_t c = 0; c < row.size(); ++c) {
      const double got = bf16_to_f32(row[c]);
      const double error = std::fabs(got - ref.out[n * row.size() + c]) / (ref.bound[n * row.size() + c] + 1e-30);
      worst = std::isfinite(got) ? std::max(worst, error) : 1e30;
    }
  }
  return worst;
}

struct Buffers {
  void *x, *gate_up, *down, *ids, *topk_weights, *out, *workspace, *dense_a, *dense_d, *lt_workspace;
  size_t workspace_bytes;
};
constexpr size_t kLtWorkspace = size_t{64} << 20;

moe::LaunchPolicy make_policy(const std::map<std::string, std::string>& o) {
  moe::LaunchPolicy p;
  const auto it = o.find("--order");
  if (it != o.end()) {
    p.order = it->second == "natural" ? batching::TaskOrder::natural
              : it->second == "heavy" ? batching::TaskOrder::heavy_first
                                      : batching::TaskOrder::interleaved;
  }
  p.back_every = static_cast<int32_t>(number(o, "--back", p.back_every));
  p.cluster_size = static_cast<int32_t>(number(o, "--cluster", p.cluster_size));
  p.num_ctas = static_cast<int32_t>(number(o, "--ctas", 0));
  return p;
}

void bench_row(const Row& row, const std::map<std::string, std::string>& options, cublasLtHandle_t lt) {
  const double seconds = number(options, "--seconds", 0.4);
  moe::LayerConfig config{row.h, row.i, row.e, row.k, DType::bf16, true, {}, 0};
  const size_t r = static_cast<size_t>(row.t) * row.k;
  const size_t w1 = static_cast<size_t>(row.e) * 2 * row.i * row.h, w2 = static_cast<size_t>(row.e) * row.h * row.i;
  Buffers b{};
  b.x = device_alloc(static_cast<size_t>(row.t) * row.h * 2);
  b.gate_up = device_alloc(w1 * 2);
  b.down = device_alloc(w2 * 2);
  b.ids = device_alloc(r * 4);
  b.topk_weights = device_alloc(r * 4);
  b.out = device_alloc(static_cast<size_t>(row.t) * row.h * 2);
  b.dense_a = device_alloc(r * static_cast<size_t>(std::max(row.h, row.i)) * 2);
  b.dense_d = device_alloc(r * static_cast<size_t>(std::max(2 * row.i, row.h)) * 2);
  b.lt_workspace = device_alloc(kLtWorkspace);
  testing::fill_normal(DType::bf16, b.x, static_cast<size_t>(row.t) * row.h, 1.0f, 1);
  testing::fill_normal(DType::bf16, b.gate_up, w1, 0.02f, 2);
  testing::fill_normal(DType::bf16, b.down, w2, 0.02f, 3);
  testing::fill_normal(DType::bf16, b.dense_a, r * static_cast<size_t>(std::max(row.h, row.i)), 1.0f, 4);
  const auto ids = make_ids(row);
  TESSERA_CUDA_CHECK(cudaMemcpy(b.ids, ids.data(), r * 4, cudaMemcpyHostToDevice));
  const std::vector<float> w(r, 1.0f / static_cast<float>(row.k));
  TESSERA_CUDA_CHECK(cudaMemcpy(b.topk_weights, w.data(), r * 4, cudaMemcpyHostToDevice));

  const moe::LayerWeights weights{b.gate_up, b.down, nullptr, nullptr};
  const moe::CudaLayer layer(config, weights, make_policy(options));
  b.workspace_bytes = layer.workspace_bytes(row.t);
  b.workspace = device_alloc(b.workspace_bytes);
  TESSERA_CUDA_CHECK(cudaMemset(b.out, 0xFF, static_cast<size_t>(row.t) * row.h * 2));
  TESSERA_CUDA_CHECK(cudaMemset(b.workspace, 0xFF, b.workspace_bytes));
  const moe::LayerInputs in{b.x, b.ids, false, static_cast<const float*>(b.topk_weights), b.out, row.t};
  auto run = [&] { layer.run(in, b.workspace, b.workspace_bytes, nullptr); };
  run();
  TESSERA_CUDA_CHECK(cudaDeviceSynchronize());

  const DenseGemm g1(lt, static_cast<int64_t>(r), 2 * row.i, row.h, b.dense_a, b.gate_up, b.dense_d, b.lt_workspace,
                     kLtWorkspace);
  const DenseGemm g2(lt, static_cast<int64_t>(r), row.h, row.i, b.dense_a, b.down, b.dense_d, b.lt_workspace,
                     kLtWorkspace);
  auto dense = [&] {
    g1.run();
    g2.run();
  };
  const double flops = 6.0 * static_cast<double>(r) * row.h * row.i;

  // Blocks of `seconds` each, alternating.
  const double guess = time_ms(run, 3);
  const int reps = std::max(3, static_cast<int>(seconds * 1000 / guess));
  std::vector<double> layer_ms, dense_ms, ratio;
  for (int n = 0; n < 3; ++n) {
    dense_ms.push_back(time_ms(dense, reps));
    layer_ms.push_back(time_ms(run, reps));
    ratio.push_back(dense_ms.back() / layer_ms.back());
  }
  const double worst = check(config, weights, in);
  // Steps: each GEMM alone needs its tickets back; a memset of the header's counters costs about 2 us, subtracted
  // below.
  double step_ms[4] = {}, dense1 = 0, dense2 = 0;
  if (options.count("--steps")) {
    using Step = moe::CudaLayer::Step;
    const auto arrays = moe::lay_out_workspace(config, row.t, b.workspace);
    auto reset = [&] { TESSERA_CUDA_CHECK(cudaMemsetAsync(arrays.plan.header->tile_tickets, 0, 16)); };
    const double reset_ms = time_ms(reset, 200);
    const int n = std::max(3, reps / 4);
    for (int pass = 0; pass < 2; ++pass) {
      dense1 = time_ms([&] { g1.run(); }, n);
      step_ms[1] = time_ms(
                       [&] {
                         reset();
                         layer.run_step(Step::gate_up, in, b.workspace, b.workspace_bytes, nullptr);
                       },
                       n) -
                   reset_ms;
      dense2 = time_ms([&] { g2.run(); }, n);
      step_ms[2] = time_ms(
                       [&] {
                         reset();
                         layer.run_step(Step::down, in, b.workspace, b.workspace_bytes, nullptr);
                       },
                       n) -
                   reset_ms;
      step_ms[0] = time_ms([&] { layer.run_step(Step::plan, in, b.workspace, b.workspace_bytes, nullptr); }, n);
      step_ms[3] = time_ms([&] { layer.run_step(Step::combine, in, b.workspace, b.workspace_bytes, nullptr); }, n);
    }
  }
  const double ms = median(layer_ms);
  std::printf("%-13s r %.3f (%.3f..%.3f)  layer %.3f ms %.0f TF  dense %.3f ms %.0f TF  err %.3f", row.name,
              median(ratio), *std::min_element(ratio.begin(), ratio.end()),
              *std::max_element(ratio.begin(), ratio.end()), ms, flops / ms / 1e9, median(dense_ms),
              flops / median(dense_ms) / 1e9, worst);
  if (options.count("--steps")) {
    const double combine_bytes = (static_cast<double>(r) + row.t) * row.h * 2;
    std::printf(" | plan %.1f us, g1 %.0f vs %.0f TF (%.3f), g2 %.0f vs %.0f TF (%.3f), combine %.1f us %.0f GB/s",
                step_ms[0] * 1e3, flops / 1.5 / step_ms[1] / 1e9, flops / 1.5 / dense1 / 1e9, dense1 / step_ms[1],
                flops / 3 / step_ms[2] / 1e9, flops / 3 / dense2 / 1e9, dense2 / step_ms[2], step_ms[3] * 1e3,
                combine_bytes / step_ms[3] / 1e6);
  }
  std::printf("\n");
  std::fflush(stdout);
  for (void* p :
       {b.x, b.gate_up, b.down, b.ids, b.topk_weights, b.out, b.workspace, b.dense_a, b.dense_d, b.lt_workspace})
    cudaFree(p);
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
