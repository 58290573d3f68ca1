#include "endurance/gpu/device_work.h"

#include "cuda/core/cuda_check.h"
#include "cuda/ptx/timer.cuh"

namespace tessera::testing {

namespace {

constexpr int kThreads = 256;

__global__ void spin_kernel(int64_t nanoseconds) {
  const uint64_t begin = ptx::global_timer();
  while (static_cast<int64_t>(ptx::global_timer() - begin) < nanoseconds) __nanosleep(1000);
}

__global__ void compare_kernel(const uint8_t* one, const uint8_t* other, size_t bytes, unsigned long long* differing) {
  unsigned long long count = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < bytes; i += stride) count += one[i] != other[i];
  if (count != 0) atomicAdd(differing, count);
}

__global__ void nowhere_kernel(int* address) { *address = 1; }

}  // namespace

void spin(int num_ctas, int64_t nanoseconds, cudaStream_t stream) {
  spin_kernel<<<num_ctas, 32, 0, stream>>>(nanoseconds);
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

void count_differing(const void* one, const void* other, size_t bytes, unsigned long long* differing,
                     cudaStream_t stream) {
  if (bytes == 0) return;
  compare_kernel<<<64, kThreads, 0, stream>>>(static_cast<const uint8_t*>(one), static_cast<const uint8_t*>(other),
                                              bytes, differing);
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

void write_to_nowhere(cudaStream_t stream) {
  nowhere_kernel<<<1, 1, 0, stream>>>(reinterpret_cast<int*>(uintptr_t{0x7000'0000'0000}));
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace tessera::testing
