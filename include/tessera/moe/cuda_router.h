// Routing on one CUDA device, by the definition in router.h and with the same bits as the host's route.
//
//   cuda_route(config, {.logits = logits, .topk_ids = ids, .topk_weights = weights, .num_tokens = num_tokens}, stream);
//
// Pointers are device memory. One kernel is enqueued, and none for no tokens: no allocation, no synchronisation, no
// host read; capturable in a CUDA graph. num_nan_rows, where asked for, is added to on the device.
#pragma once

#include "tessera/moe/router.h"

struct CUstream_st;

namespace tessera::moe {

/// Throws Error as validate does, before any launch, and always in a build without CUDA.
void cuda_route(const RouterConfig& config, const RouterInputs& inputs, CUstream_st* stream);

}  // namespace tessera::moe
