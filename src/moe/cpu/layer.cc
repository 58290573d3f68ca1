#include "tessera/moe/cpu_layer.h"

#include "moe/cpu/steps.h"
#include "moe/validation.h"
#include "tessera/core/error.h"
#include "tessera/core/thread_pool.h"

namespace tessera::moe {
namespace {

constexpr BackEndTraits kTraits{"host memory", true};

// Checked before anything is built from it.
const LayerConfig& checked(const LayerConfig& config, const LayerWeights& weights, int num_threads) {
  validate(config, weights, kTraits);
  require_range("num_threads", num_threads, 0, kMaxThreads);
  return config;
}

}  // namespace

/// What every run of a layer uses.
struct CpuLayerParts {
  LayerWeights weights;
  LayerProducts products;
  ThreadPool pool;
};

CpuLayer::CpuLayer(const LayerConfig& config, const LayerWeights& weights, int num_threads)
    : config_(checked(config, weights, num_threads)),
      parts_(new CpuLayerParts{weights, LayerProducts(config),
                               ThreadPool(num_threads > 0 ? num_threads : available_processors())}) {}

CpuLayer::~CpuLayer() = default;
CpuLayer::CpuLayer(CpuLayer&&) noexcept = default;
CpuLayer& CpuLayer::operator=(CpuLayer&&) noexcept = default;

int CpuLayer::num_threads() const { return parts_->pool.num_threads(); }

size_t CpuLayer::workspace_bytes(int32_t max_tokens) const {
  validate_num_tokens(config_, max_tokens, "max_tokens");
  return lay_out_workspace(config_, parts_->products, num_threads(), max_tokens, nullptr).bytes;
}

void CpuLayer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const {
  if (stream != nullptr) throw Error("stream", "a stream", "none: the layer runs on the CPU");
  validate_num_tokens(config_, inputs.num_tokens);
  if (inputs.num_tokens == 0) return;
  const CpuWorkspace arrays = lay_out_workspace(config_, parts_->products, num_threads(), inputs.num_tokens, workspace);
  validate(config_, parts_->weights, inputs, {workspace, workspace_size, arrays.bytes}, kTraits);
  const CpuRun run{config_, parts_->weights, parts_->products, parts_->pool, inputs, arrays};
  cpu_steps::plan(run);
  cpu_steps::gate_up(run);
  cpu_steps::down(run);
  cpu_steps::combine(run);
}

}  // namespace tessera::moe
