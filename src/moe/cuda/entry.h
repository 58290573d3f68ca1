// What the rest of the MoE code calls of this room, beside cuda_route. A build without CUDA has no_cuda_layer.cc in its
// place, where each of them throws: ask cuda::why_current_unusable() first.
#pragma once

#include <cstdint>
#include <memory>

#include "tessera/moe/layer_back_end.h"

namespace tessera::moe {

/// A CudaLayer that chooses how it is launched.
std::unique_ptr<const LayerBackEnd> make_cuda_layer(const LayerConfig& config, const LayerWeights& weights);

/// out[m, c, r] = in[m, r, c] of 16-bit elements on the current device; enqueued.
void transpose_on_device(const void* in, void* out, int32_t num_matrices, int32_t rows, int32_t columns,
                         CUstream_st* stream);

}  // namespace tessera::moe
