// CUDA errors as exceptions: expression, file, line and CUDA's own words.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace tessera::cuda {

class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] void throw_cuda_error(cudaError_t error, const char* expression, const char* file, int line);

inline void check(cudaError_t error, const char* expression, const char* file, int line) {
  if (error != cudaSuccess) [[unlikely]]
    throw_cuda_error(error, expression, file, line);
}

}  // namespace tessera::cuda

#define TESSERA_CUDA_CHECK(expression) ::tessera::cuda::check((expression), #expression, __FILE__, __LINE__)
