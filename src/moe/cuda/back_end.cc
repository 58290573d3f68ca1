#include "moe/back_end.h"
#include "cuda/kernels/transpose/launch.h"
#include "moe/validation.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::moe {
namespace {

class CudaBackEnd final : public LayerBackEnd {
 public:
  CudaBackEnd(const LayerConfig& config, const LayerWeights& weights)
      : config_(config), weights_(weights), layer_(config, weights) {}

  size_t workspace_bytes(int32_t max_tokens) const override { return layer_.workspace_bytes(max_tokens); }
  void run(const LayerInputs& inputs, void* workspace, size_t workspace_size, CUstream_st* stream) const override {
    validate_num_tokens(config_, inputs.num_tokens);
    if (inputs.num_tokens > 0) {
      require_apart(config_, weights_, inputs, workspace, layer_.workspace_bytes(inputs.num_tokens));
    }
    layer_.run(inputs, workspace, workspace_size, stream);
  }

 private:
  LayerConfig config_;
  LayerWeights weights_;
  CudaLayer layer_;
};

}  // namespace

std::unique_ptr<const LayerBackEnd> make_cuda_back_end(const LayerConfig& config, const LayerWeights& weights) {
  return std::make_unique<CudaBackEnd>(config, weights);
}

void transpose_on_device(const void* in, void* out, int32_t num_matrices, int32_t rows, int32_t columns,
                         CUstream_st* stream) {
  kernels::transpose::launch({in, out, num_matrices, rows, columns}, stream);
}

}  // namespace tessera::moe
