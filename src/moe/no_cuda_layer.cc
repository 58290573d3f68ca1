// What a build without CUDA answers.
#include "moe/cuda/entry.h"
#include "tessera/core/error.h"
#include "tessera/moe/cuda_router.h"

namespace tessera::moe {
namespace {

[[noreturn]] void refuse() { throw Error("device", "a build without CUDA", "one made where nvcc is installed"); }

}  // namespace

std::unique_ptr<const LayerBackEnd> make_cuda_layer(const LayerConfig&, const LayerWeights&) { refuse(); }

void transpose_on_device(const void*, void*, int32_t, int32_t, int32_t, CUstream_st*) { refuse(); }

void cuda_route(const RouterConfig&, const RouterInputs&, CUstream_st*) { refuse(); }

}  // namespace tessera::moe
