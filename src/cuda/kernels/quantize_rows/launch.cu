#include "cuda/kernels/quantize_rows/launch.h"

#include "cuda/core/launch.h"
#include "cuda/kernels/quantize_rows/copy_kernel.cuh"
#include "cuda/kernels/quantize_rows/kernel.cuh"
#include "cuda/kernels/quantize_rows/whole_rows_kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"

namespace tessera::kernels::quantize_rows {
namespace {

using Kernel = void (*)(Params);

// For tokens of 16-bit elements.
template <class Element>
Kernel quantizing_kernel(const Args& args) {
  if (args.given_scales != nullptr) return quantize_given_kernel<Element>;
  return args.one_scale ? quantize_whole_rows_kernel<Element> : quantize_rows_kernel<Element>;
}

}  // namespace

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
  if (args.num_given_scales > 1 && args.token_row == nullptr)
    throw Error("quantised tokens' num_given_scales", str_cat(args.num_given_scales), "1 where no rows are named");
  const int32_t token_groups = scale_groups(args.columns);
  const Params params{args, int64_t{args.num_tokens} * token_groups, token_groups};
  const bool copies = args.token_scales != nullptr;
  const bool is_whole = args.one_scale && args.given_scales == nullptr && !copies;
  const int64_t ctas =
      is_whole ? int64_t{args.num_tokens} : (params.num_groups * kGroupLanes + kPolicy.threads - 1) / kPolicy.threads;
  const Kernel quantize =
      args.dtype == DType::bf16 ? quantizing_kernel<__nv_bfloat16>(args) : quantizing_kernel<__half>(args);
  cuda::launch_overlapping(copies ? copy_rows_kernel : quantize, ctas, kPolicy.threads, params, stream);
}

}  // namespace tessera::kernels::quantize_rows
