// What Layer needs of a back end.
#pragma once

#include <cstddef>
#include <memory>

#include "tessera/moe/layer.h"

namespace tessera::moe {

class LayerBackEnd {
 public:
  virtual ~LayerBackEnd() = default;
  virtual size_t workspace_bytes(int32_t max_tokens) const = 0;
  virtual void run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const = 0;
};

#ifdef TESSERA_HAVE_CUDA
/// In cuda/back_end.cc.
std::unique_ptr<const LayerBackEnd> make_cuda_back_end(const LayerConfig& config, const LayerWeights& weights);
/// out[m, c, r] = in[m, r, c] of 16-bit elements on the current device; enqueued.
void transpose_on_device(const void* in, void* out, int32_t num_matrices, int32_t rows, int32_t columns,
                         CUstream_st* stream);
#endif

}  // namespace tessera::moe
