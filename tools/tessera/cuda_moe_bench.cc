// The CUDA measurements of `tessera bench moe`.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>

#include "cuda_dense.h"
#include "cuda_device.h"
#include "cuda_moe_data.h"
#include "cuda_moe_floor.h"
#include "cuda_monitor.h"
#include "moe/cuda/kernels.h"
#include "moe/cuda/workspace.h"
#include "moe/formats.h"
#include "moe/judge/oracle.h"
#include "moe/kernels.h"
#include "moe/model/explain.h"
#include "moe_bench.h"
#include "moe_check.h"
#include "moe_data.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

using Step = moe::CudaLayer::Step;

constexpr size_t kElementBytes = 2;  // of tokens, rows and results
constexpr double kCudaBurstSeconds = 0.05;
constexpr int kCudaBurstBlocks = 5, kCudaSustainedBlocks = 3;
constexpr int64_t kFewestRuns = 3;
constexpr int kKernelPasses = 4;     // the first warms up
constexpr double kForgetting = 4.0;  // times the L2's size that other data pass before a buffer comes again
constexpr int64_t kMostSets = 64;
constexpr size_t kSparedBytes = size_t{1} << 30;  // for the driver, and for what fragments
constexpr size_t kDenseWorkspaceBytes = size_t{64} << 20;
constexpr int64_t kResetRuns = 200;

/// Rounded up, at least 1.
int64_t sets_needed(double bytes_a_set, double bytes_to_pass) {
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(bytes_to_pass / std::max(bytes_a_set, 1.0))));
}

/// Tokens, routing and output of one set.
struct TokenSet {
  TokenSet(const moe::LayerConfig& config, const MoeCase& moe_case)
      : num_tokens(moe_case.num_tokens),
        x(kElementBytes * elements(num_tokens, config.hidden_size)),
        ids(sizeof(int32_t) * moe_case.topk_ids.size()),
        topk_weights(sizeof(float) * moe_case.topk_ids.size()),
        out(x.bytes()) {
    const std::vector<float> equal(moe_case.topk_ids.size(), 1.0f / static_cast<float>(config.top_k));
    require_cuda(cudaMemcpy(ids.get(), moe_case.topk_ids.data(), ids.bytes(), cudaMemcpyHostToDevice), "copy ids");
    require_cuda(cudaMemcpy(topk_weights.get(), equal.data(), topk_weights.bytes(), cudaMemcpyHostToDevice),
                 "copy weights of slots");
  }

  moe::LayerInputs inputs() const {
    moe::LayerInputs view;
    view.x = x.get();
    view.topk_ids = ids.get();
    view.topk_weights = static_cast<const float*>(topk_weights.get());
    view.out = out.get();
    view.num_tokens = num_tokens;
    return view;
  }

  int32_t num_tokens;
  DeviceMemory x, ids, topk_weights, out;
};

/// The layer of one load: run(i) is the i-th run, on the i-th set.
class LayerRuns {
 public:
  LayerRuns(const std::vector<std::unique_ptr<moe::CudaLayer>>& layers, std::vector<TokenSet> tokens)
      : layers_(layers),
        tokens_(std::move(tokens)),
        workspace_(layers.front()->workspace_bytes(tokens_.front().num_tokens)) {}

  size_t num_sets() const { return tokens_.size(); }
  const TokenSet& tokens(size_t set) const { return tokens_[set]; }

  /// All bits set, which are NaNs: a read of what was never written shows in the check.
  void poison() const {
    require_cuda(cudaMemset(workspace_.get(), 0xFF, workspace_.bytes()), "fill the workspace");
    for (const TokenSet& set : tokens_)
      require_cuda(cudaMemset(set.out.get(), 0xFF, set.out.bytes()), "fill the output");
  }

  void run(int64_t i) const {
    const size_t set = set_of(i);
    layers_[set]->run(tokens_[set].inputs(), workspace_.get(), workspace_.bytes(), nullptr);
  }
  void step(Step step, int64_t i) const {
    const size_t set = set_of(i);
    layers_[set]->run_step(step, tokens_[set].inputs(), workspace_.get(), workspace_.bytes(), nullptr);
  }

  /// Gives the GEMMs of the plan in the workspace their tiles back.
  void reset_tickets() const {
    const auto arrays = moe::lay_out_workspace(layers_.front()->config(), tokens_.front().num_tokens, workspace_.get());
    auto* const header = arrays.plan.header;
    require_cuda(cudaMemsetAsync(header->tile_tickets, 0, sizeof(header->tile_tickets), nullptr), "reset the tickets");
  }

 private:
  size_t set_of(int64_t i) const { return static_cast<size_t>(i) % tokens_.size(); }

  const std::vector<std::unique_ptr<moe::CudaLayer>>& layers_;
  std::vector<TokenSet> tokens_;
  DeviceMemory workspace_;
};

/// Two dense products of the layer's FLOPs: [R, H] x [H, 2I] and [R, I] x [I, H], on weights of the layer's experts in
/// turn and, where they would fit the L2, several operands in turn. Operands have the type of the weights, without
/// their scales.
class DensePair {
 public:
  /// `filler`: of the rows. Throws Incomplete where the library has no such product.
  DensePair(const CublasLt& lt, const moe::LayerConfig& config, const std::vector<WeightSet>& weights, int64_t rows,
            int64_t num_operands, const DeviceFiller& filler)
      : config_(config),
        weights_(weights),
        num_operands_(num_operands),
        operand_bytes_(operand_bytes(config)),
        width_(int64_t{config.gated ? 2 : 1} * config.intermediate_size),
        a_bytes_(operand_bytes_ * elements(rows, std::max(config.hidden_size, config.intermediate_size))),
        d_bytes_(kElementBytes * elements(rows, std::max<int64_t>(width_, config.hidden_size))),
        workspace_(kDenseWorkspaceBytes),
        a_(a_bytes_ * static_cast<size_t>(num_operands)),
        d_(d_bytes_ * static_cast<size_t>(num_operands)),
        gate_up_(filled(filler, lt), config.dtype, rows, width_, config.hidden_size, workspace_, a(0),
                 gate_up_weight(0), d(0), operands(config)),
        down_(lt, config.dtype, rows, config.hidden_size, config.intermediate_size, workspace_, a(0), down_weight(0),
              d(0), operands(config)) {}

  void run(int64_t i) const {
    run_gate_up(i);
    run_down(i);
  }
  void run_gate_up(int64_t i) const { gate_up_.run(a(i), gate_up_weight(i), d(i)); }
  void run_down(int64_t i) const { down_.run(a(i), down_weight(i), d(i)); }

  static size_t bytes(const moe::LayerConfig& config, int64_t rows) {
    const int64_t width = int64_t{config.gated ? 2 : 1} * config.intermediate_size;
    return operand_bytes(config) * elements(rows, std::max(config.hidden_size, config.intermediate_size)) +
           kElementBytes * elements(rows, std::max<int64_t>(width, config.hidden_size));
  }

 private:
  static size_t operand_bytes(const moe::LayerConfig& config) { return weight_tensors(config)[0].element_bytes; }
  static DenseOperands operands(const moe::LayerConfig& config) {
    return weight_tensors(config)[0].kind == WeightKind::codes ? DenseOperands::e4m3 : DenseOperands::as_result;
  }
  const CublasLt& filled(const DeviceFiller& filler, const CublasLt& lt) const {
    filler.fill(a_, 0);  // before the first product runs
    return lt;
  }
  void* a(int64_t i) const { return a_.at(static_cast<size_t>(i % num_operands_) * a_bytes_); }
  void* d(int64_t i) const { return d_.at(static_cast<size_t>(i % num_operands_) * d_bytes_); }
  const WeightSet& set(int64_t i) const { return weights_[static_cast<size_t>(i) % weights_.size()]; }
  /// Of one expert, `rows` x `columns` elements; another one each time.
  const void* weight(const DeviceMemory& memory, int64_t rows, int64_t columns, int64_t i) const {
    return memory.at(static_cast<size_t>(i % config_.num_experts) * elements(rows, columns) * operand_bytes_);
  }
  const void* gate_up_weight(int64_t i) const { return weight(set(i).gate_up(), width_, config_.hidden_size, i); }
  const void* down_weight(int64_t i) const {
    return weight(set(i).down(), config_.hidden_size, config_.intermediate_size, i);
  }

  const moe::LayerConfig& config_;
  const std::vector<WeightSet>& weights_;
  int64_t num_operands_;
  size_t operand_bytes_;
  int64_t width_;
  size_t a_bytes_, d_bytes_;
  DeviceMemory workspace_, a_, d_;
  DenseProduct gate_up_, down_;
};

class CudaMoeBench : public MoeBench {
 public:
  CudaMoeBench(const moe::Preset& shape, const moe::LaunchPolicy& policy, const MoeBenchOptions& options)
      : shape_(with_dtype(shape, options.dtype)),
        policy_(policy),
        options_(options),
        monitor_(device_bus_id()),
        pattern_(NormalPattern::kMaxElements, options.seed),
        token_filler_(pattern_, options.dtype, kTokenScale),
        weight_filler_(pattern_, shape_.config) {
    require_cuda(cudaGetDeviceProperties(&device_, 0), "read the device's properties");
    if (!options.floor) return;
    DeviceMemory buffer(MoeFloor::kBufferBytes);
    weight_filler_.of(0).fill(buffer, 0);
    floor_.emplace(std::move(buffer));
  }

  std::string device() const override { return "cuda"; }
  std::vector<std::pair<std::string, std::string>> description() const override;
  MoeResult measure(const MoeCase& moe_case) override;

 private:
  static std::string device_bus_id() {
    std::array<char, 32> id{};
    require_cuda(cudaSetDevice(0), "use device 0");
    require_cuda(cudaDeviceGetPCIBusId(id.data(), static_cast<int>(id.size()), 0), "read the device's address");
    return id.data();
  }

  static moe::Preset with_dtype(moe::Preset shape, DType dtype) {
    shape.config.dtype = dtype;
    return shape;
  }

  bool has_dense() const { return options_.dense && lt_.is_available(); }
  std::unique_ptr<DensePair> make_dense(int64_t rows, int64_t num_operands) const;
  std::vector<TokenSet> prepare_sets(const MoeCase& moe_case, double bytes_touched, size_t other_bytes);
  Duel duel(const LayerRuns& layer, const DensePair* dense, int num_blocks, double seconds, bool watched);
  std::vector<KernelTime> measure_kernels(const LayerRuns& layer, const DensePair* dense, const moe::LayerWork& work,
                                          int64_t runs);
  std::vector<FinishedRun> finished_runs(const LayerRuns& layer) const;
  CheckResult check(const LayerRuns& layer) const;

  moe::Preset shape_;
  moe::LaunchPolicy policy_;
  MoeBenchOptions options_;
  DeviceMonitor monitor_;
  CublasLt lt_;
  DeviceTimer timer_;
  cudaDeviceProp device_{};
  NormalPattern pattern_;
  DeviceFiller token_filler_;
  WeightFiller weight_filler_;
  std::optional<MoeFloor> floor_;                        // before weights_ take what memory there is
  std::vector<WeightSet> weights_;                       // one a set, kept from load to load
  std::vector<std::unique_ptr<moe::CudaLayer>> layers_;  // of weights_
};

std::vector<std::pair<std::string, std::string>> CudaMoeBench::description() const {
  const double gib = static_cast<double>(device_.totalGlobalMem) / (1 << 30);
  int runtime = 0, driver = 0;
  require_cuda(cudaRuntimeGetVersion(&runtime), "read the runtime's version");
  require_cuda(cudaDriverGetVersion(&driver), "read the driver's version");
  std::vector<std::pair<std::string, std::string>> lines = {
      {"GPU", format_text("%s, %d multiprocessors, %.1f GiB, L2 %.0f MiB", device_.name, device_.multiProcessorCount,
                          gib, device_.l2CacheSize / 1048576.0)},
      {"CUDA", format_text("runtime %d.%d, driver's %d.%d", runtime / 1000, runtime % 1000 / 10, driver / 1000,
                           driver % 1000 / 10)}};
  for (auto& line : monitor_.description()) lines.push_back(std::move(line));
  const bool narrow = moe::format_row(shape_.config.weight_format).has_scales();
  lines.emplace_back("dense",
                     options_.dense ? lt_.description() + (narrow ? "; e4m3 without scales" : "") : "not asked for");
  return lines;
}

// As many sets as it takes for a buffer to leave the L2 before its turn comes again, or as many as fit the device.
std::vector<TokenSet> CudaMoeBench::prepare_sets(const MoeCase& moe_case, double bytes_touched, size_t other_bytes) {
  const int64_t wanted = std::min(kMostSets, sets_needed(bytes_touched, kForgetting * device_.l2CacheSize));
  const size_t token_bytes =
      2 * kElementBytes * elements(moe_case.num_tokens, shape_.config.hidden_size) + 8 * moe_case.topk_ids.size();
  const auto& config = shape_.config;
  const size_t weight_bytes = static_cast<size_t>(config.num_experts) * expert_bytes(config);
  while (static_cast<int64_t>(weights_.size()) > wanted) {  // a smaller load before this one needed more
    layers_.pop_back();
    weights_.pop_back();
  }
  std::vector<TokenSet> tokens;
  while (static_cast<int64_t>(tokens.size()) < wanted) {
    const size_t set = tokens.size();
    size_t free_bytes = 0, total_bytes = 0;
    require_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "ask for free memory");
    const size_t needed = token_bytes + (set < weights_.size() ? 0 : weight_bytes) + other_bytes + kSparedBytes;
    if (free_bytes < needed) {
      if (set > 0) break;
      throw Error("device memory", str_cat(free_bytes >> 20, " MiB free"), str_cat("at least ", needed >> 20, " MiB"));
    }
    if (set == weights_.size()) {
      weights_.emplace_back(config, weight_filler_, set);
      layers_.push_back(std::make_unique<moe::CudaLayer>(config, weights_[set].view(), policy_));
    }
    tokens.emplace_back(config, moe_case);
    token_filler_.fill(tokens[set].x, set * 3'000'017);
  }
  return tokens;
}

Duel CudaMoeBench::duel(const LayerRuns& layer, const DensePair* dense, int num_blocks, double seconds, bool watched) {
  const auto run = [&](int64_t i) { layer.run(i); };
  timer_.seconds_a_run(static_cast<int64_t>(layer.num_sets()), run);  // warms up every set
  const double guess = timer_.seconds_a_run(kFewestRuns, run);
  const auto runs_for = [&](double one_run) {
    return std::max({kFewestRuns, static_cast<int64_t>(layer.num_sets()), static_cast<int64_t>(seconds / one_run)});
  };
  Duel result;
  result.num_blocks = num_blocks;
  result.runs_a_block = runs_for(guess);
  std::vector<double> layer_seconds, dense_seconds, ratios;
  int64_t dense_runs = 0;
  if (dense != nullptr) dense_runs = runs_for(timer_.seconds_a_run(kFewestRuns, [&](int64_t i) { dense->run(i); }));
  for (int block = 0; block < num_blocks; ++block) {
    if (dense != nullptr) {
      if (watched) monitor_.start();
      dense_seconds.push_back(timer_.seconds_a_run(dense_runs, [&](int64_t i) { dense->run(i); }));
      result.dense_state = monitor_.stop();
    }
    if (watched) monitor_.start();
    layer_seconds.push_back(timer_.seconds_a_run(result.runs_a_block, run));
    result.layer_state = monitor_.stop();
    if (dense != nullptr) ratios.push_back(dense_seconds.back() / layer_seconds.back());
  }
  result.layer_seconds = spread_of(layer_seconds);
  result.seconds_a_block = result.layer_seconds.median * static_cast<double>(result.runs_a_block);
  if (dense != nullptr) {
    result.dense_seconds = spread_of(dense_seconds);
    result.ratio = spread_of(ratios);
  }
  return result;
}

// A GEMM alone needs its tickets back before each run; what that takes is measured and subtracted.
std::vector<KernelTime> CudaMoeBench::measure_kernels(const LayerRuns& layer, const DensePair* dense,
                                                      const moe::LayerWork& work, int64_t runs) {
  const auto reset = [&](int64_t) { layer.reset_tickets(); };
  const auto gemm_seconds = [&](Step step) {
    const double with_reset = timer_.seconds_a_run(runs, [&](int64_t i) {
      layer.reset_tickets();
      layer.step(step, i);
    });
    return with_reset - timer_.seconds_a_run(kResetRuns, reset);
  };
  const auto step_seconds = [&](Step step) {
    return timer_.seconds_a_run(runs, [&](int64_t i) { layer.step(step, i); });
  };
  std::vector<double> plan, gate_up, down, combine, dense_gate_up, dense_down;
  for (int pass = 0; pass < kKernelPasses; ++pass) {
    plan.push_back(step_seconds(Step::plan));
    if (dense != nullptr)
      dense_gate_up.push_back(timer_.seconds_a_run(runs, [&](int64_t i) { dense->run_gate_up(i); }));
    gate_up.push_back(gemm_seconds(Step::gate_up));
    if (dense != nullptr) dense_down.push_back(timer_.seconds_a_run(runs, [&](int64_t i) { dense->run_down(i); }));
    down.push_back(gemm_seconds(Step::down));
    combine.push_back(step_seconds(Step::combine));
  }
  const auto after_warm_up = [](const std::vector<double>& seconds) {
    return spread_of(std::vector<double>(seconds.begin() + 1, seconds.end())).median;
  };
  std::vector<KernelTime> kernels = {{"plan", after_warm_up(plan), 0.0, work.plan.bytes, {}},
                                     {"gemm1", after_warm_up(gate_up), work.gate_up.flops, work.gate_up.bytes, {}},
                                     {"gemm2", after_warm_up(down), work.down.flops, work.down.bytes, {}},
                                     {"combine", after_warm_up(combine), 0.0, work.combine.bytes, {}}};
  if (dense != nullptr) {
    kernels[1].dense_seconds = after_warm_up(dense_gate_up);
    kernels[2].dense_seconds = after_warm_up(dense_down);
  }
  return kernels;
}

// None where the library has no product of such operands: not every one has those of 8 bits.
std::unique_ptr<DensePair> CudaMoeBench::make_dense(int64_t rows, int64_t num_operands) const {
  const bool narrow = moe::format_row(shape_.config.weight_format).has_scales();
  const DeviceFiller& filler = narrow ? weight_filler_.of(0) : token_filler_;
  try {
    return std::make_unique<DensePair>(lt_, shape_.config, weights_, rows, num_operands, filler);
  } catch (const Incomplete&) {
    if (!narrow) throw;
    return nullptr;
  }
}

std::vector<FinishedRun> CudaMoeBench::finished_runs(const LayerRuns& layer) const {
  std::vector<FinishedRun> runs;
  for (size_t set = 0; set < layer.num_sets(); ++set)
    runs.push_back({weights_[set].view(), layer.tokens(set).inputs()});
  return runs;
}

CheckResult CudaMoeBench::check(const LayerRuns& layer) const {
  const double unit = moe::format_row(shape_.config.weight_format).product_roundoff;
  return check_runs(shape_.config, finished_runs(layer), std::max(unit, moe::kWgmmaAccumulatorUnit),
                    [](void* to, const void* from, size_t bytes) {
                      require_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy results");
                    });
}

MoeResult CudaMoeBench::measure(const MoeCase& moe_case) {
  const moe::LayerConfig& config = shape_.config;
  const moe::LayerWork work = moe::count_work(config, moe::count_rows(config, moe_case.topk_ids), moe_case.num_tokens);
  MoeResult result;
  result.num_rows = work.num_rows;
  result.num_tasks = work.num_tasks;
  result.flops = work.flops();
  result.bytes = work.bytes();
  result.launch = moe::describe_launch(
      config, moe::resolve_launch(config, moe_case.num_tokens, moe::current_launch_device(config), policy_));

  const size_t workspace_bytes = moe::lay_out_workspace(config, moe_case.num_tokens, nullptr).bytes;
  const bool with_dense = has_dense() && work.num_rows > 0;
  const size_t dense_bytes = DensePair::bytes(config, work.num_rows);
  const int64_t num_operands =
      std::min<int64_t>(kMostSets, sets_needed(static_cast<double>(dense_bytes), kForgetting * device_.l2CacheSize));
  const size_t other_bytes = (floor_ ? 3 : 1) * workspace_bytes +
                             (with_dense ? dense_bytes * static_cast<size_t>(num_operands) + kDenseWorkspaceBytes : 0);
  std::vector<TokenSet> tokens = prepare_sets(moe_case, result.bytes, other_bytes);
  result.num_sets = static_cast<int>(tokens.size());
  const LayerRuns layer(layers_, std::move(tokens));
  const std::unique_ptr<DensePair> dense = with_dense ? make_dense(work.num_rows, num_operands) : nullptr;

  layer.poison();
  result.burst = duel(layer, dense.get(), kCudaBurstBlocks, kCudaBurstSeconds, false);
  if (options_.seconds > 0.0) result.sustained = duel(layer, dense.get(), kCudaSustainedBlocks, options_.seconds, true);
  result.check = check(layer);
  if (floor_)
    result.floor =
        floor_->measure(config, policy_, finished_runs(layer), work.num_tasks, result.burst.layer_seconds.median);
  const int64_t kernel_runs = std::max(kFewestRuns, result.burst.runs_a_block / 4);
  result.kernels = measure_kernels(layer, dense.get(), work, kernel_runs);
  return result;
}

}  // namespace

std::string cuda_moe_unavailable() {
  std::string why_none;
  const std::vector<cuda::DeviceFacts> devices = cuda::devices(why_none);
  if (devices.empty()) return "no GPU here: " + why_none;
  return cuda::why_unusable(devices[0]);
}

std::unique_ptr<MoeBench> make_cuda_moe_bench(const moe::Preset& shape, const moe::LaunchPolicy& policy,
                                              const MoeBenchOptions& options) {
  return std::make_unique<CudaMoeBench>(shape, policy, options);
}

}  // namespace tessera::cli
