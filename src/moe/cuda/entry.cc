#include "moe/cuda/entry.h"

#include "cuda/kernels/transpose/launch.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::moe {

std::unique_ptr<const LayerBackEnd> make_cuda_layer(const LayerConfig& config, const LayerWeights& weights) {
  return std::make_unique<CudaLayer>(config, weights);
}

void transpose_on_device(const void* in, void* out, int32_t num_matrices, int32_t rows, int32_t columns,
                         CUstream_st* stream) {
  kernels::transpose::launch({in, out, num_matrices, rows, columns}, stream);
}

}  // namespace tessera::moe
