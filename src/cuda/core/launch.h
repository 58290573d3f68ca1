// Enqueues a kernel whose prologue may overlap the end of the kernel before it (programmatic dependent launch).
//
// The kernel must wait by itself before it touches what an earlier one may still use (ptx::wait_for_prerequisites).
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <limits>

#include "cuda/core/cuda_check.h"
#include "tessera/core/check.h"

namespace tessera::cuda {

// Lets `kernel` have `bytes` of dynamic shared memory on the current device. Asked of the driver once a device: a
// launch is shorter than the question.
template <auto* kernel>
void allow_shared_memory(size_t bytes) {
  static std::atomic<uint64_t> allowed{0};  // a bit a device
  int device = 0;
  TESSERA_CUDA_CHECK(cudaGetDevice(&device));
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return;
  TESSERA_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

template <class Params>
void launch_overlapping(void (*kernel)(Params), int64_t num_ctas, int32_t threads, const Params& params,
                        cudaStream_t stream, size_t shared_bytes = 0) {
  TESSERA_CHECK(num_ctas >= 1 && num_ctas <= std::numeric_limits<int32_t>::max(), num_ctas);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_ctas));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params));
}

}  // namespace tessera::cuda
