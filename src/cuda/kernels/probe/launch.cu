#include "cuda/kernels/probe/launch.h"

#include <limits>

#include "cuda/core/cuda_check.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/probe/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::probe {

void read(const ReadArgs& args, cudaStream_t stream) {
  if (args.num_bytes == 0 || args.num_bytes % sizeof(uint4) != 0)
    throw Error("read num_bytes", str_cat(args.num_bytes), str_cat("a positive multiple of ", sizeof(uint4)));
  cuda::check_pointer("read data", args.data, sizeof(uint4));
  cuda::check_pointer("read found", args.found, sizeof(uint32_t));
  const auto num_chunks = static_cast<int64_t>(args.num_bytes / sizeof(uint4));
  const int64_t ctas = (num_chunks + kCtaChunks - 1) / kCtaChunks;
  if (ctas > std::numeric_limits<int32_t>::max())
    throw Error("read num_bytes", str_cat(args.num_bytes), "less than 2^31 CTAs' worth");
  read_kernel<<<static_cast<unsigned>(ctas), kPolicy.threads, 0, stream>>>(
      {static_cast<const uint4*>(args.data), num_chunks, args.key, args.found});
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

void timer_step(uint64_t* step, cudaStream_t stream) {
  cuda::check_pointer("timer step", step, sizeof(uint64_t));
  timer_step_kernel<<<1, 1, 0, stream>>>(step);
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace tessera::kernels::probe
