// Which device the kernels run on: no question to CUDA, so that builds without it compile and test it too.
#include "tessera/core/check.h"
#include "tessera/cuda/device.h"

namespace tessera::cuda {
namespace {

constexpr int kMajor = 9, kMinor = 0;  // what CMAKE_CUDA_ARCHITECTURES = 90a runs on

}  // namespace

std::string why_unusable(const DeviceFacts& facts) {
  if (facts.major == kMajor && facts.minor == kMinor) return "";
  return str_cat("compute capability ", facts.major, ".", facts.minor, ", expected ", kMajor, ".", kMinor, " (Hopper)");
}

}  // namespace tessera::cuda
