#include "tessera/moe/cuda_router.h"

#include "cuda/kernels/router/launch.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {

static_assert(kMaxTopK <= kernels::router::kMaxTopK && kMaxExperts <= kernels::router::kMaxExperts);

void cuda_route(const RouterConfig& config, const RouterInputs& inputs, CUstream_st* stream) {
  validate(config);
  validate(config, inputs, "device memory");
  kernels::router::launch({config, inputs.logits, inputs.bias, inputs.topk_ids, inputs.topk_weights,
                           inputs.num_nan_rows, inputs.num_tokens},
                          stream);
}

}  // namespace tessera::moe
