#include "cuda/kernels/combine/launch.h"

#include "cuda/core/cuda_check.h"
#include "cuda/core/launch.h"
#include "cuda/kernels/combine/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::combine {

void launch(const Args& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return;
  if (args.dtype == DType::f32) throw Error("combine dtype", "f32", "bf16 or f16");
  if (args.hidden_size <= 0 || args.hidden_size % kChunkElements != 0) {
    throw Error("combine hidden_size", str_cat(args.hidden_size), "a positive multiple of 8");
  }
  for (const void* pointer : {args.rows, static_cast<const void*>(args.out)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) != 0)
      throw Error("combine argument", "a misaligned pointer", "16-byte alignment");
  }
  const int32_t row_chunks = args.hidden_size / kChunkElements;
  const Params params{args, static_cast<int64_t>(args.num_tokens) * row_chunks, row_chunks};
  const int64_t ctas = (params.num_chunks + kPolicy.threads - 1) / kPolicy.threads;
  const bool is_bf16 = args.dtype == DType::bf16;
  auto* const kernel = is_bf16 ? combine_kernel<__nv_bfloat16, false> : combine_kernel<__half, false>;
  auto* const marked_kernel = is_bf16 ? combine_kernel<__nv_bfloat16, true> : combine_kernel<__half, true>;
  cuda::launch_overlapping(args.marks == nullptr ? kernel : marked_kernel, ctas, kPolicy.threads, params, stream);
}

}  // namespace tessera::kernels::combine
