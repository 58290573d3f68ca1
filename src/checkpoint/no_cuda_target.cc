// What a build without CUDA answers.
#include "checkpoint/target.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"

namespace tessera::checkpoint {

std::unique_ptr<Target> make_cuda_target() { throw Error("device", cuda::why_current_unusable(), "a Hopper GPU"); }

}  // namespace tessera::checkpoint
