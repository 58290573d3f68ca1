#include "cuda/core/cuda_check.h"

#include "tessera/core/check.h"

namespace tessera::cuda {

void throw_cuda_error(cudaError_t error, const char* expression, const char* file, int line) {
  cudaGetLastError();  // the error is reported here: a later call must not report it again
  throw CudaError(
      str_cat(file, ":", line, ": ", expression, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

}  // namespace tessera::cuda
