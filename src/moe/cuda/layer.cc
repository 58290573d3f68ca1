#include "tessera/moe/cuda_layer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "cuda/core/cuda_check.h"
#include "cuda/core/marks.h"
#include "cuda/kernels/combine/launch.h"
#include "cuda/kernels/expert_gemm_rows/policy.h"
#include "cuda/kernels/moe_plan/launch.h"
#include "cuda/kernels/quantize_rows/launch.h"
#include "moe/cuda/kernels.h"
#include "moe/cuda/workspace.h"
#include "moe/formats.h"
#include "moe/kernels.h"
#include "moe/layer_layout.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {

/// One run, laid out: what its kernels are told.
struct CudaRun {
  LayerInputs inputs;
  CudaWorkspace arrays;
  ResolvedLaunch launch;
  int32_t num_shared_experts;  // S
  int32_t num_slots;           // k + S
  grouped::Problem problem;
};

namespace {

// What the layer takes the kernels can do, a shared expert's slices included.
static_assert(kMaxTopK <= kernels::moe_plan::kMaxTopK && kMaxExperts <= kernels::moe_plan::kMaxExperts);

constexpr BackEndTraits kTraits{"device memory", false};

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
cuda::KernelMarks* marks_of(cuda::LayerMarks* marks, cuda::KernelMarks cuda::LayerMarks::*kernel) {
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
  validate(config, weights, kTraits);
  resolve_launch(config, 1, {.num_multiprocessors = 1}, policy);  // refuses what no device could follow
  validate_shared_expert(config);
  if (const std::string why = cuda::why_current_unusable(); !why.empty())
    throw Error("device", why, "a Hopper GPU with a working driver");
  device_ = current_device();
  const LaunchDevice device = current_launch_device(config);
  num_multiprocessors_ = device.num_multiprocessors;
  runs_pairs_ = device.runs_pairs;
}

ResolvedLaunch CudaLayer::resolved_launch(int32_t num_tokens) const {
  return resolve_launch(config_, num_tokens, {num_multiprocessors_, runs_pairs_}, policy_);
}

size_t CudaLayer::workspace_bytes(int32_t max_tokens) const {
  validate_num_tokens(config_, max_tokens, "max_tokens");
  const auto bytes_of = [this](int32_t tokens) {
    return lay_out_workspace(config_, tokens, nullptr, resolved_launch(tokens).kernel->makes_plan).bytes;
  };
  size_t bytes = bytes_of(max_tokens);
  if (operand_bytes(config_) == 1) {
    // A kernel for few tokens may need more than the one for many: the most that it is taken for, by bisection.
    int32_t few = 0, many = max_tokens;
    if (resolved_launch(max_tokens).kernel->makes_plan) few = max_tokens;
    while (many - few > 1) {
      const int32_t middle = few + (many - few) / 2;
      (resolved_launch(middle).kernel->makes_plan ? few : many) = middle;
    }
    bytes = std::max(bytes, bytes_of(few));
  }
  return bytes;
}

void CudaLayer::run_step(Step step, const LayerInputs& inputs, void* workspace, size_t workspace_size,
                         CUstream_st* stream) const {
  validate_num_tokens(config_, inputs.num_tokens);
  enqueue(step, prepare(inputs, workspace, workspace_size), stream);
}

// The one place that checks a run, and lays it out. num_tokens was looked at before: sizes follow from it.
CudaRun CudaLayer::prepare(const LayerInputs& inputs, void* workspace, size_t workspace_size) const {
  const ResolvedLaunch launch = resolved_launch(inputs.num_tokens);
  const CudaWorkspace arrays = lay_out_workspace(config_, inputs.num_tokens, workspace, launch.kernel->makes_plan);
  validate(config_, weights_, inputs, {workspace, workspace_size, arrays.bytes}, kTraits);
  const int device = current_device();
  if (device != device_) throw Error("device", str_cat("current device ", device), str_cat(device_, ", the layer's"));
  CudaRun run{inputs, arrays, launch, num_shared_experts(config_), num_slots(config_), {}};
  const grouped::Role first = first_role(config_);
  grouped::Problem& problem = run.problem;
  problem.plan = arrays.plan;
  problem.tilings[grouped::gemm_idx(first)] = run.launch.tiling(first, padded_intermediate_size(config_));
  problem.tilings[grouped::gemm_idx(grouped::Role::down)] = run.launch.tiling(grouped::Role::down, config_.hidden_size);
  problem.hidden_size = config_.hidden_size;
  problem.intermediate_size = padded_intermediate_size(config_);
  problem.weight_front = config_.scale_offsets.down;
  problem.num_experts = config_.num_experts;
  problem.num_shared_experts = run.num_shared_experts;
  problem.max_rows = inputs.num_tokens * run.num_slots;
  problem.dtype = config_.dtype;
  problem.gate_up_order = config_.gate_up_order;
  problem.activation = config_.activation;
  problem.operand_bytes = operand_bytes(config_);
  const bool is_quantized = arrays.token_codes != nullptr;
  problem.quantized_when_read = is_quantized && launch.kernel->makes_plan && inputs.x_scale == nullptr &&
                                !format_row(config_.weight_format).scales_rows() &&
                                kernels::expert_gemm_rows::is_quantized_when_read(
                                    inputs.num_tokens, config_.hidden_size, config_.intermediate_size);
  problem.tokens = is_quantized && !problem.quantized_when_read ? arrays.token_codes : inputs.x;
  problem.gate_up = weights_.gate_up;
  problem.down = weights_.down;
  problem.gate_up_bias = weights_.gate_up_bias;
  problem.down_bias = weights_.down_bias;
  problem.shared_gate_up = weights_.shared_gate_up;
  problem.shared_down = weights_.shared_down;
  problem.token_scales = arrays.token_scales;
  problem.gate_up_scale = static_cast<const float*>(weights_.gate_up_scale);
  problem.down_scale = static_cast<const float*>(weights_.down_scale);
  problem.shared_gate_up_scale = static_cast<const float*>(weights_.shared_gate_up_scale);
  problem.shared_down_scale = static_cast<const float*>(weights_.shared_down_scale);
  problem.intermediate_scales = arrays.intermediate_scales;
  problem.given_scales = weights_.down_input_scale;
  problem.num_given_scales = config_.num_down_input_scales;
  problem.weight_rows_scaled = format_row(config_.weight_format).scales_rows();
  problem.round_like_engines = config_.round_like_engines;
  problem.scale_stride = arrays.scale_stride;
  problem.activations = arrays.activations;
  problem.block_arrivals = arrays.block_arrivals;
  problem.intermediate = arrays.intermediate;
  problem.rows = arrays.rows;
  problem.routing = {.topk_ids = inputs.topk_ids,
                     .ids_are_64_bit = inputs.ids_are_64_bit,
                     .num_tokens = inputs.num_tokens,
                     .num_slots = run.num_slots,
                     .num_experts = config_.num_experts + run.num_shared_experts,
                     .first_expert = config_.first_expert,
                     .num_shared_experts = run.num_shared_experts,
                     .expert_map = weights_.expert_map,
                     .num_mapped_experts = config_.num_mapped_experts};
  return run;
}

void CudaLayer::enqueue(Step step, const CudaRun& run, CUstream_st* stream) const {
  const LayerInputs& inputs = run.inputs;
  switch (step) {
    case Step::plan:
      if (!run.launch.kernel->makes_plan) launch_plan(run, stream);
      if (run.problem.operand_bytes == 1 && !run.problem.quantized_when_read) quantize_tokens(run, stream);
      return;
    case Step::gate_up:
      return launch_gemm(run.problem, first_role(config_), run.launch,
                         marks_of(policy_.marks, &cuda::LayerMarks::gate_up), stream);
    case Step::down:
      return launch_gemm(run.problem, grouped::Role::down, run.launch, marks_of(policy_.marks, &cuda::LayerMarks::down),
                         stream);
    case Step::combine:
      return kernels::combine::launch(
          {config_.dtype, run.problem.rows, run.problem.plan.token_row, inputs.topk_weights, inputs.out,
           inputs.num_tokens, run.num_slots, config_.hidden_size, run.num_shared_experts, inputs.shared_weight,
           inputs.topk_weights_dtype, marks_of(policy_.marks, &cuda::LayerMarks::combine)},
          stream);
  }
}

void CudaLayer::quantize_tokens(const CudaRun& run, CUstream_st* stream) const {
  // Written here, read by the products. Kernels that find rows themselves find tokens so, too.
  const bool makes_plan = run.launch.kernel->makes_plan;
  kernels::quantize_rows::launch({.dtype = config_.dtype,
                                  .tokens = run.inputs.x,
                                  .token_row = makes_plan ? nullptr : run.arrays.plan.token_row,
                                  .codes = run.arrays.token_codes,
                                  .scales = run.arrays.token_scales,
                                  .num_tokens = run.inputs.num_tokens,
                                  .num_slots = makes_plan ? 1 : run.num_slots,
                                  .columns = config_.hidden_size,
                                  .scale_stride = run.arrays.scale_stride,
                                  .counters = run.arrays.block_arrivals,
                                  .num_counters = run.arrays.num_block_arrivals,
                                  .token_scales = run.inputs.x_scale,
                                  .one_scale = run.problem.weight_rows_scaled,
                                  .given_scales = weights_.gate_up_input_scale,
                                  .num_given_scales = config_.num_gate_up_input_scales,
                                  .routing = run.problem.routing},
                                 stream);
}

void CudaLayer::launch_plan(const CudaRun& run, CUstream_st* stream) const {
  kernels::moe_plan::Args args{};
  static_cast<grouped::Routing&>(args) = run.problem.routing;
  args.order = run.launch.order;
  std::copy(std::begin(run.problem.tilings), std::end(run.problem.tilings), std::begin(args.tilings));
  args.plan = run.problem.plan;
  args.count_marks = marks_of(policy_.marks, &cuda::LayerMarks::count);
  args.place_marks = marks_of(policy_.marks, &cuda::LayerMarks::place);
  kernels::moe_plan::launch(args, stream);
}

void CudaLayer::run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const {
  validate_num_tokens(config_, inputs.num_tokens);
  if (inputs.num_tokens == 0) return;
  const CudaRun run = prepare(inputs, workspace, workspace_size);
  for (const Step step : {Step::plan, Step::gate_up, Step::down, Step::combine}) enqueue(step, run, stream);
}

}  // namespace tessera::moe
