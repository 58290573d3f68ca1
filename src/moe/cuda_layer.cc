#include "tessera/moe/cuda_layer.h"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/core/cuda_check.h"
#include "cuda/core/marks.h"
#include "cuda/kernels/combine/launch.h"
#include "cuda/kernels/expert_gemm/launch.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "moe/cuda_workspace.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {
namespace {

namespace expert_gemm = kernels::expert_gemm;

// What the layer takes the kernels can do, a shared expert's slices included.
static_assert(kMaxTopK <= kernels::moe_plan::kMaxTopK && kMaxExperts <= kernels::moe_plan::kMaxExperts);

constexpr BackEndTraits kTraits{"device memory", false};

expert_gemm::Role first_role(const LayerConfig& config) {
  return config.gated ? expert_gemm::Role::gate_up : expert_gemm::Role::up_only;
}

// The kernels take a shared expert in slices as wide as the other experts.
void validate_shared_expert(const LayerConfig& config) {
  const int32_t width = config.shared_intermediate_size;
  if (width % config.intermediate_size != 0) {
    throw Error("shared_intermediate_size", str_cat(width),
                str_cat("a multiple of intermediate_size, ", config.intermediate_size));
  }
  const int32_t slices = num_shared_experts(config);
  if (config.top_k + slices > kMaxTopK || config.num_experts + slices > kMaxExperts) {
    throw Error("shared_intermediate_size", str_cat(width),
                str_cat("at most ", kMaxTopK, " slots a token and ", kMaxExperts, " experts, each ",
                        config.intermediate_size, " of it counting as one"));
  }
}

// One kernel's; null where the layer marks nothing.
gpu::KernelMarks* marks_of(gpu::LayerMarks* marks, gpu::KernelMarks gpu::LayerMarks::*kernel) {
  return marks == nullptr ? nullptr : &(marks->*kernel);
}

int current_device() {
  int device = 0;
  TESSERA_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

}  // namespace

CudaLayer::CudaLayer(const LayerConfig& config, const LayerWeights& weights, const LaunchPolicy& policy)
    : config_(config), weights_(weights), policy_(policy) {
  moe::validate(config, weights, kTraits);
  require_range("cluster_size", policy.cluster_size, 1, cta::kMaxClusterSize);
  require_range("back_every", policy.back_every, 0, INT32_MAX);
  if (policy.num_ctas != 0) require_range("num_ctas", policy.num_ctas, 1, INT32_MAX);
  validate_shared_expert(config);
  if (const std::string why = cuda::why_current_unusable(); !why.empty())
    throw Error("device", why, "a Hopper GPU with a working driver");
  device_ = current_device();
  if (policy.num_ctas == 0)
    TESSERA_CUDA_CHECK(cudaDeviceGetAttribute(&policy_.num_ctas, cudaDevAttrMultiProcessorCount, device_));
  if (policy_.num_ctas == 1 || !expert_gemm::clusters_fit(config.dtype, policy.cluster_size)) policy_.cluster_size = 1;
}

size_t CudaLayer::workspace_bytes(int32_t max_tokens) const {
  validate_num_tokens(config_, max_tokens, "max_tokens");
  return lay_out_workspace(config_, max_tokens, nullptr).bytes;
}

void CudaLayer::validate(const LayerInputs& inputs, const void* workspace, size_t workspace_size) const {
  moe::validate(config_, inputs, workspace, workspace_size, workspace_bytes(inputs.num_tokens), kTraits);
  const int device = current_device();
  if (device != device_) throw Error("device", str_cat("current device ", device), str_cat(device_, ", the layer's"));
}

void CudaLayer::run_step(Step step, const LayerInputs& inputs, void* workspace, size_t workspace_size,
                         CUstream_st* stream) const {
  validate(inputs, workspace, workspace_size);
  enqueue(step, inputs, lay_out_workspace(config_, inputs.num_tokens, workspace), stream);
}

void CudaLayer::enqueue(Step step, const LayerInputs& inputs, const CudaWorkspace& arrays, CUstream_st* stream) const {
  const int32_t shared = num_shared_experts(config_);
  const int32_t slots = config_.top_k + shared;
  const expert_gemm::LaunchOptions options{policy_.num_ctas, policy_.cluster_size, policy_.back_every, true};
  const int32_t hidden = config_.hidden_size;
  const int32_t intermediate = config_.intermediate_size;
  expert_gemm::Args gemm{};
  gemm.dtype = config_.dtype;
  gemm.plan = arrays.plan;
  gemm.num_experts = config_.num_experts;
  gemm.max_rows = inputs.num_tokens * slots;
  gemm.num_shared_experts = shared;
  switch (step) {
    case Step::plan: return launch_plan(inputs, arrays, stream);
    case Step::gate_up:
      gemm.role = first_role(config_);
      gemm.k = hidden;
      gemm.n = intermediate;
      gemm.a = inputs.x;
      gemm.weight = weights_.gate_up;
      gemm.bias = weights_.gate_up_bias;
      gemm.out = arrays.intermediate;
      gemm.activation = config_.activation;
      gemm.interleaved = config_.gated && config_.gate_up_order == GateUpOrder::interleaved;
      gemm.up_first = config_.gated && config_.gate_up_order == GateUpOrder::up_first;
      gemm.shared_weight = weights_.shared_gate_up;
      gemm.marks = marks_of(policy_.marks, &gpu::LayerMarks::gate_up);
      return expert_gemm::launch(gemm, options, stream);
    case Step::down:
      gemm.role = expert_gemm::Role::down;
      gemm.k = intermediate;
      gemm.n = hidden;
      gemm.a = arrays.intermediate;
      gemm.weight = weights_.down;
      gemm.bias = weights_.down_bias;
      gemm.out = arrays.rows;
      gemm.shared_weight = weights_.shared_down;
      gemm.marks = marks_of(policy_.marks, &gpu::LayerMarks::down);
      return expert_gemm::launch(gemm, options, stream);
    case Step::combine:
      return kernels::combine::launch({config_.dtype, arrays.rows, arrays.plan.token_row, inputs.topk_weights,
                                       inputs.out, inputs.num_tokens, slots, hidden, shared, inputs.shared_weight,
                                       inputs.topk_weights_dtype, marks_of(policy_.marks, &gpu::LayerMarks::combine)},
                                      stream);
  }
}

void CudaLayer::launch_plan(const LayerInputs& inputs, const CudaWorkspace& arrays, CUstream_st* stream) const {
  const int32_t shared = num_shared_experts(config_);
  kernels::moe_plan::Args args{};
  args.topk_ids = inputs.topk_ids;
  args.ids_are_64_bit = inputs.ids_are_64_bit;
  args.num_tokens = inputs.num_tokens;
  args.top_k = config_.top_k + shared;
  args.num_experts = config_.num_experts + shared;
  args.first_expert = config_.first_expert;
  args.order = policy_.order;
  args.tilings[0] = expert_gemm::tiling(first_role(config_), config_.intermediate_size, policy_.cluster_size);
  args.tilings[1] = expert_gemm::tiling(expert_gemm::Role::down, config_.hidden_size, policy_.cluster_size);
  args.plan = arrays.plan;
  args.num_shared_experts = shared;
  args.expert_map = weights_.expert_map;
  args.num_mapped_experts = config_.num_mapped_experts;
  args.count_marks = marks_of(policy_.marks, &gpu::LayerMarks::count);
  args.place_marks = marks_of(policy_.marks, &gpu::LayerMarks::place);
  kernels::moe_plan::launch(args, stream);
}

void CudaLayer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const {
  validate_num_tokens(config_, inputs.num_tokens);
  if (inputs.num_tokens == 0) return;
  validate(inputs, workspace, workspace_size);
  const CudaWorkspace arrays = lay_out_workspace(config_, inputs.num_tokens, workspace);
  for (const Step step : {Step::plan, Step::gate_up, Step::down, Step::combine}) enqueue(step, inputs, arrays, stream);
}

}  // namespace tessera::moe
