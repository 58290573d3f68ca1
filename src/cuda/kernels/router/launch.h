// Router, host side: logits [T, E] to topk_ids [T, k] and topk_weights [T, k], by the definition in
// tessera/moe/router.h, bit for bit.
//
// One launch, no allocation, no host read; capturable. The arguments must have passed moe::validate: a broken contract
// is a ProgrammerError here.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tessera/core/router_config.h"

namespace tessera::kernels::router {

inline constexpr int32_t kMaxExperts = 1024;
inline constexpr int32_t kMaxTopK = 32;

struct Args {
  RouterConfig config;
  const void* logits;     // [T, E] of config.logits_dtype
  const float* bias;      // [E]; null: none
  int32_t* topk_ids;      // [T, k]
  float* topk_weights;    // [T, k]
  int32_t* num_nan_rows;  // [1], the number of all-NaN rows is added; null: not counted
  int32_t num_tokens;     // T; 0 launches nothing
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::router
