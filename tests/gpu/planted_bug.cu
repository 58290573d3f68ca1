// One bug of each class that compute-sanitizer looks for: planted_bug memcheck|racecheck|initcheck|synccheck. A run of
// the sanitizer that does not find it has not looked.
#include <cuda_runtime.h>

#include <cstdio>
#include <string_view>

namespace {

__global__ void write_beyond_the_end(int* data, int size) { data[size + threadIdx.x] = 1; }

__global__ void share_without_barrier(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[63 - threadIdx.x];  // another warp's value, and nothing says it is there
}

__global__ void read_what_nobody_wrote(const int* data, int* out) { out[threadIdx.x] = data[threadIdx.x]; }

__global__ void diverge_at_a_barrier(int* out) {
  if (threadIdx.x < 16) {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view tool = argc == 2 ? argv[1] : "";
  int* data = nullptr;
  int* out = nullptr;
  if (cudaMalloc(&data, 64 * sizeof(int)) != cudaSuccess || cudaMalloc(&out, 64 * sizeof(int)) != cudaSuccess) return 3;
  if (tool == "memcheck") {
    write_beyond_the_end<<<1, 64>>>(data, 64);
  } else if (tool == "racecheck") {
    share_without_barrier<<<1, 64>>>(out);
  } else if (tool == "initcheck") {
    read_what_nobody_wrote<<<1, 64>>>(data, out);
  } else if (tool == "synccheck") {
    diverge_at_a_barrier<<<1, 32>>>(out);
  } else {
    std::fprintf(stderr, "usage: planted_bug memcheck|racecheck|initcheck|synccheck\n");
    return 2;
  }
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
