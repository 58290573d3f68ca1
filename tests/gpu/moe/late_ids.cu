#include "gpu/moe/late_ids.h"

#include "cuda/core/cuda_check.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/timer.cuh"

namespace tessera::testing {
namespace {

__global__ void copy_late_kernel(const int32_t* from, int32_t* to, int32_t count, int64_t nanoseconds) {
  ptx::launch_dependents();
  const uint64_t begin = ptx::global_timer();
  while (static_cast<int64_t>(ptx::global_timer() - begin) < nanoseconds) {
  }
  for (int32_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
}

}  // namespace

void copy_late(const void* from, void* to, int32_t count, int64_t nanoseconds, cudaStream_t stream) {
  copy_late_kernel<<<1, 128, 0, stream>>>(static_cast<const int32_t*>(from), static_cast<int32_t*>(to), count,
                                          nanoseconds);
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace tessera::testing
