// What a build without CUDA answers.
#include "tessera/cuda/device.h"

namespace tessera::cuda {

std::vector<DeviceFacts> devices(std::string& why_none) {
  why_none = "this build has no CUDA (nvcc was not found when it was made)";
  return {};
}

std::string why_current_unusable() {
  std::string why_none;
  static_cast<void>(devices(why_none));
  return why_none;
}

}  // namespace tessera::cuda
