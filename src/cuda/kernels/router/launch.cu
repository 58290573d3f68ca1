#include "cuda/kernels/router/launch.h"

#include "cuda/core/cuda_check.h"
#include "cuda/kernels/router/kernel.cuh"
#include "tessera/core/check.h"

namespace tessera::kernels::router {
namespace {

template <int kValues>
void launch_values(const Params& params, cudaStream_t stream) {
  const bool is_grouped = params.config.kind == RouterKind::sigmoid_grouped;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((static_cast<unsigned>(params.num_tokens) + kPolicy.warps - 1) / kPolicy.warps);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = is_grouped ? sizeof(float) * kPolicy.warps * params.config.num_experts : 0;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, router_kernel<kValues>, params));
}

}  // namespace

void launch(const Args& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return;
  const RouterConfig& config = args.config;
  TESSERA_CHECK(args.num_tokens > 0, args.num_tokens);
  TESSERA_CHECK(config.num_experts >= 1 && config.num_experts <= kMaxExperts, config.num_experts);
  TESSERA_CHECK(config.top_k >= 1 && config.top_k <= kMaxTopK && config.top_k <= config.num_experts, config.top_k);
  TESSERA_CHECK(config.num_groups >= 1 && config.num_experts % config.num_groups == 0, config.num_groups);
  TESSERA_CHECK(config.topk_groups >= 1 && config.topk_groups <= config.num_groups, config.topk_groups);
  TESSERA_CHECK(config.top_k <= config.topk_groups * (config.num_experts / config.num_groups), config.top_k);
  const Params params{config,         args.logits, args.bias, args.topk_ids, args.topk_weights, args.num_nan_rows,
                      args.num_tokens};
  const int32_t values = (config.num_experts + kLanes - 1) / kLanes;
  if (values <= 1) return launch_values<1>(params, stream);
  if (values <= 2) return launch_values<2>(params, stream);
  if (values <= 4) return launch_values<4>(params, stream);
  if (values <= 8) return launch_values<8>(params, stream);
  if (values <= 16) return launch_values<16>(params, stream);
  launch_values<32>(params, stream);
}

}  // namespace tessera::kernels::router
