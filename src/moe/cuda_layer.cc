#include "tessera/moe/cuda_layer.h"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/kernels/combine/launch.h"
#include "cuda/kernels/expert_gemm/launch.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "moe/cuda_workspace.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::moe {
namespace {

namespace expert_gemm = kernels::expert_gemm;

constexpr size_t kPointerAlignment = 16;
constexpr int32_t kSizeMultiple = 8;

void require_range(const char* name, int32_t value, int32_t low, int32_t high) {
  if (value < low || value > high) throw Error(name, str_cat(value), str_cat(low, "..", high));
}

void require_width(const char* name, int32_t value) {
  if (value <= 0 || value % kSizeMultiple != 0)
    throw Error(name, str_cat(value), str_cat("a positive multiple of ", kSizeMultiple));
}

void require_pointer(const char* name, const void* pointer, bool optional = false) {
  if (pointer == nullptr && !optional) throw Error(name, "a null pointer", "device memory");
  if (reinterpret_cast<uintptr_t>(pointer) % kPointerAlignment != 0)
    throw Error(name, "a misaligned pointer", "16-byte alignment");
}

expert_gemm::Role first_role(const LayerConfig& config) {
  return config.gated ? expert_gemm::Role::gate_up : expert_gemm::Role::up_only;
}

void validate_activation(const LayerConfig& config) {
  const ActivationKind kind = config.activation.kind;
  if (config.gated && kind == ActivationKind::relu_squared)
    throw Error("activation", "relu_squared", "a gated activation, or gated = false");
  if (!config.gated && kind == ActivationKind::clamped_swiglu)
    throw Error("activation", "clamped_swiglu", "gated = true");
}

}  // namespace

CudaLayer::CudaLayer(const LayerConfig& config, const LayerWeights& weights, const LaunchPolicy& policy)
    : config_(config), weights_(weights), policy_(policy) {
  require_width("hidden_size", config.hidden_size);
  require_width("intermediate_size", config.intermediate_size);
  require_range("num_experts", config.num_experts, 1, kernels::moe_plan::kMaxExperts);
  require_range("top_k", config.top_k, 1, kernels::moe_plan::kMaxTopK);
  require_range("first_expert", config.first_expert, 0, INT32_MAX - config.num_experts);
  require_range("cluster_size", policy.cluster_size, 1, cta::kMaxClusterSize);
  require_range("back_every", policy.back_every, 0, INT32_MAX);
  if (policy.num_ctas != 0) require_range("num_ctas", policy.num_ctas, 1, INT32_MAX);
  if (policy.num_ctas == 1) policy_.cluster_size = 1;
  if (config.dtype == DType::f32) throw Error("dtype", "f32", "bf16 or f16");
  validate_activation(config);
  require_pointer("gate_up weight", weights.gate_up);
  require_pointer("down weight", weights.down);
  require_pointer("gate_up bias", weights.gate_up_bias, true);
  require_pointer("down bias", weights.down_bias, true);
}

size_t CudaLayer::workspace_bytes(int32_t max_tokens) const {
  require_range("max_tokens", max_tokens, 0, INT32_MAX);
  return lay_out_workspace(config_, max_tokens, nullptr).bytes;
}

void CudaLayer::validate(const LayerInputs& inputs, const void* workspace, size_t workspace_size) const {
  require_pointer("x", inputs.x);
  require_pointer("out", inputs.out);
  if (inputs.topk_ids == nullptr) throw Error("topk_ids", "a null pointer", "device memory");
  if (inputs.topk_weights == nullptr) throw Error("topk_weights", "a null pointer", "device memory");
  require_pointer("workspace", workspace);
  const size_t needed = workspace_bytes(inputs.num_tokens);
  if (workspace_size < needed)
    throw Error("workspace", str_cat(workspace_size, " bytes"), str_cat("at least ", needed));
}

void CudaLayer::run_step(Step step, const LayerInputs& inputs, void* workspace, size_t workspace_size,
                         CUstream_st* stream) const {
  validate(inputs, workspace, workspace_size);
  const CudaWorkspace arrays = lay_out_workspace(config_, inputs.num_tokens, workspace);
  const expert_gemm::Role role = first_role(config_);
  const expert_gemm::LaunchOptions options{policy_.num_ctas, policy_.cluster_size, policy_.back_every, true};
  const int32_t hidden = config_.hidden_size;
  const int32_t intermediate = config_.intermediate_size;
  switch (step) {
    case Step::plan:
      return kernels::moe_plan::launch({inputs.topk_ids,
                                        inputs.ids_are_64_bit,
                                        inputs.num_tokens,
                                        config_.top_k,
                                        config_.num_experts,
                                        config_.first_expert,
                                        policy_.order,
                                        {expert_gemm::tiling(role, intermediate, policy_.cluster_size),
                                         expert_gemm::tiling(expert_gemm::Role::down, hidden, policy_.cluster_size)},
                                        arrays.plan},
                                       stream);
    case Step::gate_up:
      return expert_gemm::launch({role, config_.dtype, arrays.plan, config_.num_experts,
                                  inputs.num_tokens * config_.top_k, inputs.num_tokens, hidden, intermediate, inputs.x,
                                  weights_.gate_up, weights_.gate_up_bias, arrays.intermediate, config_.activation},
                                 options, stream);
    case Step::down:
      return expert_gemm::launch({expert_gemm::Role::down,
                                  config_.dtype,
                                  arrays.plan,
                                  config_.num_experts,
                                  inputs.num_tokens * config_.top_k,
                                  inputs.num_tokens,
                                  intermediate,
                                  hidden,
                                  arrays.intermediate,
                                  weights_.down,
                                  weights_.down_bias,
                                  arrays.rows,
                                  {}},
                                 options, stream);
    case Step::combine:
      return kernels::combine::launch({config_.dtype, arrays.rows, arrays.plan.token_row, inputs.topk_weights,
                                       inputs.out, inputs.num_tokens, config_.top_k, hidden},
                                      stream);
  }
}

void CudaLayer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const {
  require_range("num_tokens", inputs.num_tokens, 0, INT32_MAX / config_.top_k / 2);
  if (inputs.num_tokens == 0) return;
  for (const Step step : {Step::plan, Step::gate_up, Step::down, Step::combine})
    run_step(step, inputs, workspace, workspace_size, stream);
}

}  // namespace tessera::moe
