#include <cuda_runtime_api.h>

#include "api/device.h"
#include "api/status.h"
#include "cuda/core/memory.h"

namespace tessera::api {

DeviceScope::DeviceScope(int32_t device) {
  if (device == TESSERA_CPU) return;
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess || current != device) {
    cudaGetLastError();  // no driver or no such device: require_usable says so
    require_usable(device);
    TESSERA_CUDA_CHECK(cudaGetDevice(&current));
    TESSERA_CUDA_CHECK(cudaSetDevice(device));
    previous_ = current;
  }
}

DeviceScope::~DeviceScope() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

bool is_device_failure(const std::exception& exception) {
  return dynamic_cast<const cuda::CudaError*>(&exception) != nullptr;
}

void* allocate_on_device(size_t bytes) { return cuda::DeviceBytes(bytes).release(); }
void free_on_device(void* memory) { cuda::DeviceBytes::adopt(memory); }

}  // namespace tessera::api
