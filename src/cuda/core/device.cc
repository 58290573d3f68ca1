#include "tessera/cuda/device.h"

#include <cuda_runtime_api.h>

#include <mutex>

#include "cuda/core/cuda_check.h"

namespace tessera::cuda {
namespace {

DeviceFacts read_facts(int index) {
  cudaDeviceProp properties{};
  TESSERA_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  DeviceFacts facts;
  facts.index = index;
  facts.name = properties.name;
  facts.major = properties.major;
  facts.minor = properties.minor;
  facts.num_sms = properties.multiProcessorCount;
  facts.shared_memory_bytes = properties.sharedMemPerBlockOptin;
  facts.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  facts.memory_bytes = properties.totalGlobalMem;
  return facts;
}

// Read once: the question takes milliseconds, and a process's devices do not change. That there is none is asked again.
const std::vector<DeviceFacts>& known_devices(std::string& why_none) {
  static std::mutex mutex;
  static std::vector<DeviceFacts> known;
  const std::lock_guard lock(mutex);
  why_none.clear();
  if (!known.empty()) return known;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();  // answered here: a later call must not report it
    why_none = error == cudaSuccess || error == cudaErrorNoDevice ? "no GPU" : cudaGetErrorString(error);
    return known;
  }
  std::vector<DeviceFacts> found;
  for (int index = 0; index < count; ++index) found.push_back(read_facts(index));
  known = std::move(found);  // all of them or none: others hold references to what is in it
  return known;
}

}  // namespace

std::vector<DeviceFacts> devices(std::string& why_none) { return known_devices(why_none); }

std::string why_current_unusable() {
  std::string why_none;
  const std::vector<DeviceFacts>& known = known_devices(why_none);
  if (known.empty()) return why_none;
  int current = 0;
  TESSERA_CUDA_CHECK(cudaGetDevice(&current));
  return why_unusable(known.at(static_cast<size_t>(current)));
}

}  // namespace tessera::cuda
