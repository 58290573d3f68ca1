// Enqueues a kernel whose prologue may overlap the end of the kernel before it (programmatic dependent launch).
//
// The kernel must wait by itself before it touches what an earlier one may still use (ptx::wait_for_prerequisites).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "cuda/core/cuda_check.h"
#include "tessera/core/check.h"

namespace tessera::gpu {

template <class Params>
void launch_overlapping(void (*kernel)(Params), int64_t num_ctas, int32_t threads, const Params& params,
                        cudaStream_t stream) {
  TESSERA_CHECK(num_ctas >= 1 && num_ctas <= std::numeric_limits<int32_t>::max(), num_ctas);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_ctas));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  TESSERA_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params));
}

}  // namespace tessera::gpu
