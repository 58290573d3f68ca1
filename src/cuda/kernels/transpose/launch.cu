#include "cuda/kernels/transpose/launch.h"

#include <utility>

#include "cuda/core/cuda_check.h"
#include "cuda/core/operand_check.h"
#include "cuda/kernels/transpose/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::transpose {
namespace {

constexpr int32_t kMaxGridSide = 65535;  // of y and z, CUDA's limit

void validate(const Args& args) {
  for (const auto& [name, value] : {std::pair{"transpose rows", args.rows}, {"transpose columns", args.columns}}) {
    if (value <= 0 || value % kChunkElements != 0)
      throw Error(name, str_cat(value), str_cat("a positive multiple of ", kChunkElements));
  }
  if (args.rows > kMaxGridSide * kPolicy.tile)
    throw Error("transpose rows", str_cat(args.rows), str_cat("at most ", kMaxGridSide * kPolicy.tile));
  if (args.num_matrices > kMaxGridSide)
    throw Error("transpose num_matrices", str_cat(args.num_matrices), str_cat("at most ", kMaxGridSide));
  cuda::check_pointer("transpose in", args.in, sizeof(uint4));
  cuda::check_pointer("transpose out", args.out, sizeof(uint4));
}

unsigned tiles(int32_t size) { return static_cast<unsigned>((size + kPolicy.tile - 1) / kPolicy.tile); }

}  // namespace

void launch(const Args& args, cudaStream_t stream) {
  if (args.num_matrices == 0) return;
  validate(args);
  const Params params{static_cast<const uint4*>(args.in), static_cast<uint4*>(args.out), args.rows, args.columns};
  const dim3 grid(tiles(args.columns), tiles(args.rows), static_cast<unsigned>(args.num_matrices));
  transpose_kernel<<<grid, kPolicy.threads, 0, stream>>>(params);
  TESSERA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace tessera::kernels::transpose
