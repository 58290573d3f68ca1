#include "cuda/kernels/quantize_rows/launch.h"

#include "cuda/core/launch.h"
#include "cuda/kernels/quantize_rows/copy_kernel.cuh"
#include "cuda/kernels/quantize_rows/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::kernels::quantize_rows {

void launch(const Args& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return;
  if (args.dtype == DType::f32) throw Error("quantised tokens' dtype", "f32", "bf16 or f16");
  if (args.columns <= 0 || args.columns % kLaneElements != 0)
    throw Error("quantised tokens' columns", str_cat(args.columns), "a positive multiple of 16");
  for (const void* pointer : {args.tokens, static_cast<const void*>(args.codes)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) != 0)
      throw Error("quantised tokens", "a misaligned pointer", "16-byte alignment");
  }
  if (args.token_row == nullptr && args.num_slots != 1)
    throw Error("quantised tokens' num_slots", str_cat(args.num_slots), "1 where no rows are named");
  const int32_t token_groups = scale_groups(args.columns);
  const Params params{args, int64_t{args.num_tokens} * token_groups, token_groups};
  const int64_t ctas = (params.num_groups * kGroupLanes + kPolicy.threads - 1) / kPolicy.threads;
  const auto quantize = args.dtype == DType::bf16 ? quantize_rows_kernel<__nv_bfloat16> : quantize_rows_kernel<__half>;
  cuda::launch_overlapping(args.token_scales != nullptr ? copy_rows_kernel : quantize, ctas, kPolicy.threads, params,
                           stream);
}

}  // namespace tessera::kernels::quantize_rows
