// The CPU measurements of `tessera bench moe`.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cpu/gemm.h"
#include "machine.h"
#include "moe/cpu/products.h"
#include "moe/judge/oracle.h"
#include "moe/model/explain.h"
#include "moe_bench.h"
#include "moe_check.h"
#include "moe_data.h"
#include "tessera/core/buffer.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/cpu_layer.h"
#include "text_format.h"

namespace tessera::cli {
namespace {

constexpr double kBurstSeconds = 0.05;
constexpr int kBurstBlocks = 3, kSustainedBlocks = 3;

int32_t gate_up_matrices(const moe::LayerConfig& config) { return config.gated ? 2 : 1; }

/// Bytes that the kernel could hand out, or 0 if it does not tell.
size_t available_memory() {
  const std::string kib = proc_value("/proc/meminfo", "MemAvailable");
  return kib.empty() ? 0 : size_t{1024} * std::strtoull(kib.c_str(), nullptr, 10);
}

/// Seconds a run of work(0), work(1), ..., work(repetitions - 1).
template <class Work>
double seconds_a_run(int64_t repetitions, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < repetitions; ++i) work(i);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return seconds.count() / static_cast<double>(repetitions);
}

/// One dense product of many rows by the layer's own library and in its panels, on the weights of its experts in turn.
/// Results stay in the caches: the baseline stores nothing.
class DenseProduct {
 public:
  DenseProduct(int64_t rows, int64_t columns, int64_t depth, const moe::LayerConfig& config, const std::byte* weights,
               const NormalPattern& pattern, ThreadPool& pool)
      : depth_(depth),
        expert_bytes_(elements(columns, depth) * dtype_size(config.dtype)),
        num_experts_(config.num_experts),
        weights_(weights),
        pool_(pool),
        product_(columns, depth, config.dtype),
        height_(product_.gemm().max_height()),
        num_row_tiles_((rows + height_ - 1) / height_),
        operand_bytes_(dtype_size(product_.gemm().operand())),
        c_elements_(elements(height_, product_.width())),
        scratch_bytes_((product_.gemm().scratch_bytes() + kHostAlignment - 1) / kHostAlignment * kHostAlignment),
        a_(elements(num_row_tiles_ * height_, depth) * operand_bytes_),
        c_(c_elements_ * static_cast<size_t>(pool.num_threads())),
        scratch_(scratch_bytes_ * static_cast<size_t>(pool.num_threads())) {
    pattern.fill(product_.gemm().operand(), a_.data(), a_.size() / operand_bytes_, kTokenScale, 0);
  }

  void run(int64_t i) {
    const std::byte* expert = weights_ + static_cast<size_t>(i % num_experts_) * expert_bytes_;
    const size_t column_bytes = expert_bytes_ / static_cast<size_t>(columns());
    pool_.run(num_row_tiles_ * product_.num_panels(), [&](int64_t item, int worker) {
      const int64_t panel = item / num_row_tiles_, row_tile = item % num_row_tiles_;
      product_.gemm().run(height_, a_.data() + elements(row_tile * height_, depth_) * operand_bytes_,
                          expert + static_cast<size_t>(product_.begin(panel)) * column_bytes,
                          c_.data() + static_cast<size_t>(worker) * c_elements_,
                          scratch_.data() + static_cast<size_t>(worker) * scratch_bytes_);
    });
  }

 private:
  int64_t columns() const { return product_.begin(product_.num_panels() - 1) + product_.width(); }

  int64_t depth_;
  size_t expert_bytes_;
  int32_t num_experts_;
  const std::byte* weights_;
  ThreadPool& pool_;
  moe::PanelProduct product_;
  int64_t height_, num_row_tiles_;
  size_t operand_bytes_, c_elements_, scratch_bytes_;
  Buffer<std::byte> a_;
  Buffer<float> c_;
  Buffer<std::byte> scratch_;
};

/// Tokens, output and workspace of one load.
struct Load {
  Load(const moe::LayerConfig& config, const MoeCase& moe_case, size_t workspace_bytes, const NormalPattern& pattern)
      : x(elements(moe_case.num_tokens, config.hidden_size) * dtype_size(config.dtype)),
        out(x.size()),
        workspace(workspace_bytes),
        topk_weights(moe_case.topk_ids.size(), 1.0f / static_cast<float>(config.top_k)) {
    pattern.fill(config.dtype, x.data(), x.size() / dtype_size(config.dtype), kTokenScale, 0);
    // All bits set, which are NaNs: a read of what was never written shows in the check.
    std::memset(out.data(), 0xFF, out.size());
    std::memset(workspace.data(), 0xFF, workspace.size());
    inputs.x = x.data();
    inputs.topk_ids = moe_case.topk_ids.data();
    inputs.topk_weights = topk_weights.data();
    inputs.out = out.data();
    inputs.num_tokens = moe_case.num_tokens;
  }

  Buffer<std::byte> x, out, workspace;
  std::vector<float> topk_weights;
  moe::LayerInputs inputs;
};

class CpuMoeBench : public MoeBench {
 public:
  CpuMoeBench(const moe::Preset& shape, const MoeBenchOptions& options)
      : config_(shape.config),
        options_(options),
        pool_(options.num_threads == 0 ? available_processors() : options.num_threads),
        pattern_(elements(config_.num_experts, config_.intermediate_size) *
                     static_cast<size_t>(gate_up_matrices(config_) * config_.hidden_size),
                 options.seed) {
    config_.dtype = options.dtype;
    tensors_ = weight_tensors(config_);
  }

  std::string device() const override { return "cpu"; }
  std::vector<std::pair<std::string, std::string>> description() const override {
    const std::string processor = proc_value("/proc/cpuinfo", "model name");
    return {{"processor", processor.empty() ? "unknown" : escaped(processor)},
            {"threads", format_text("%d", pool_.num_threads())},
            {"products", cpu::gemm_library_name()},
            {"dense", !options_.dense ? "not asked for"
                      : has_dense()   ? "the same library's, in the layer's panels"
                                      : "none: only weights without scales have them here"}};
  }
  MoeResult measure(const MoeCase& moe_case) override;

 private:
  bool has_dense() const { return options_.dense && config_.weight_format == moe::WeightFormat::dense; }
  moe::LayerWeights weights() const {
    moe::LayerWeights view;
    for (size_t i = 0; i < tensors_.size(); ++i) view.*tensors_[i].field = weights_[i].data();
    return view;
  }
  void prepare_weights();
  std::function<void(int64_t)> make_dense(int64_t rows);
  Duel duel(const std::function<void(int64_t)>& layer, const std::function<void(int64_t)>& dense, int num_blocks,
            double seconds) const;

  moe::LayerConfig config_;
  MoeBenchOptions options_;
  ThreadPool pool_;  // of the dense products; the layer has its own
  NormalPattern pattern_;
  std::array<WeightTensor, 4> tensors_;
  std::array<Buffer<std::byte>, 4> weights_;  // of tensors_
  std::unique_ptr<moe::CpuLayer> layer_;
};

// On the first load, so that an option that is wrong is not found after minutes of filling.
void CpuMoeBench::prepare_weights() {
  if (layer_) return;
  const auto experts = static_cast<size_t>(config_.num_experts);
  const size_t bytes = experts * expert_bytes(config_);
  const size_t available = available_memory();
  if (available > 0 && bytes > available)
    throw Error("memory", str_cat(available >> 20, " MiB available"), str_cat(bytes >> 20, " MiB for the weights"));
  for (size_t i = 0; i < tensors_.size(); ++i) weights_[i] = Buffer<std::byte>(experts * tensors_[i].expert_bytes);
  pool_.run(config_.num_experts, [&](int64_t item, int) {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const size_t first_byte = static_cast<size_t>(item) * tensors_[i].expert_bytes;
      const size_t element_bytes = tensors_[i].element_bytes;
      pattern_.fill(tensors_[i], config_.dtype, weights_[i].data() + first_byte,
                    tensors_[i].expert_bytes / element_bytes, first_byte / element_bytes + i);
    }
  });
  layer_ = std::make_unique<moe::CpuLayer>(config_, weights(), pool_.num_threads());
}

Duel CpuMoeBench::duel(const std::function<void(int64_t)>& layer, const std::function<void(int64_t)>& dense,
                       int num_blocks, double seconds) const {
  const auto runs_for = [&](const auto& work) {
    return std::max<int64_t>(1, static_cast<int64_t>(seconds / seconds_a_run(1, work)));  // warm since the burst
  };
  Duel result;
  result.num_blocks = num_blocks;
  result.runs_a_block = runs_for(layer);
  const int64_t dense_runs = dense ? runs_for(dense) : 0;
  std::vector<double> layer_seconds, dense_seconds, ratios;
  for (int block = 0; block < num_blocks; ++block) {
    if (dense) dense_seconds.push_back(seconds_a_run(dense_runs, dense));
    layer_seconds.push_back(seconds_a_run(result.runs_a_block, layer));
    if (dense) ratios.push_back(dense_seconds.back() / layer_seconds.back());
  }
  result.layer_seconds = spread_of(layer_seconds);
  result.seconds_a_block = result.layer_seconds.median * static_cast<double>(result.runs_a_block);
  if (dense) {
    result.dense_seconds = spread_of(dense_seconds);
    result.ratio = spread_of(ratios);
  }
  return result;
}

/// Two dense products of the layer's FLOPs; empty where none is wanted or possible.
std::function<void(int64_t)> CpuMoeBench::make_dense(int64_t rows) {
  if (!has_dense() || rows == 0) return {};
  const int64_t width = int64_t{gate_up_matrices(config_)} * config_.intermediate_size;
  const auto gate_up =
      std::make_shared<DenseProduct>(rows, width, config_.hidden_size, config_, weights_[0].data(), pattern_, pool_);
  const auto down = std::make_shared<DenseProduct>(rows, config_.hidden_size, config_.intermediate_size, config_,
                                                   weights_[1].data(), pattern_, pool_);
  return [gate_up, down](int64_t i) {
    gate_up->run(i);
    down->run(i);
  };
}

MoeResult CpuMoeBench::measure(const MoeCase& moe_case) {
  prepare_weights();
  const moe::LayerWork work =
      moe::count_work(config_, moe::count_rows(config_, moe_case.topk_ids), moe_case.num_tokens);
  MoeResult result;
  result.num_rows = work.num_rows;
  result.num_tasks = work.num_tasks;
  result.flops = work.flops();
  result.bytes = work.bytes();

  Load load(config_, moe_case, layer_->workspace_bytes(moe_case.num_tokens), pattern_);
  const auto run_layer = [&](int64_t) { layer_->run(load.inputs, load.workspace.data(), load.workspace.size()); };
  const std::function<void(int64_t)> run_dense = make_dense(work.num_rows);
  if (run_dense) run_dense(0);  // warms up
  run_layer(0);
  result.burst = duel(run_layer, run_dense, kBurstBlocks, kBurstSeconds);
  if (options_.seconds > 0.0) {
    const bool long_enough = result.burst.seconds_a_block >= options_.seconds;  // one run takes longer than a block
    result.sustained = long_enough ? result.burst : duel(run_layer, run_dense, kSustainedBlocks, options_.seconds);
  }
  const FinishedRun finished{weights(), load.inputs};
  result.check = check_runs(config_, {&finished, 1}, moe::kCpuAccumulatorUnit,
                            [](void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); });
  return result;
}

}  // namespace

std::unique_ptr<MoeBench> make_cpu_moe_bench(const moe::Preset& shape, const MoeBenchOptions& options) {
  return std::make_unique<CpuMoeBench>(shape, options);
}

}  // namespace tessera::cli
