#include "cuda/kernels/moe_plan/launch.h"

#include <limits>

#include "cuda/core/launch.h"
#include "cuda/kernels/moe_plan/kernel.cuh"
#include "tessera/core/check.h"
#include "tessera/core/error.h"

namespace tessera::kernels::moe_plan {
namespace {

void validate(const Args& args) {
  if (args.num_tokens < 0) throw Error("plan num_tokens", str_cat(args.num_tokens), "at least 0");
  if (args.num_slots < 1 || args.num_slots > kMaxTopK)
    throw Error("plan num_slots", str_cat(args.num_slots), str_cat("1..", kMaxTopK));
  if (args.num_experts < 1 || args.num_experts > kMaxExperts) {
    throw Error("plan num_experts", str_cat(args.num_experts), str_cat("1..", kMaxExperts));
  }
  const int64_t pairs = static_cast<int64_t>(args.num_tokens) * args.num_slots;
  if (pairs > std::numeric_limits<int32_t>::max() / 2)
    throw Error("plan num_tokens * num_slots", str_cat(pairs), "less than 2^30");
}

// A counter of each expert for each warp.
size_t shared_bytes(int32_t num_experts) { return static_cast<size_t>(kWarps) * num_experts * sizeof(uint16_t); }

template <bool kMarked>
void launch_kernels(const Args& args, Params params, cudaStream_t stream) {
  params.marks = args.count_marks;
  if (params.chunking.num_chunks > 1)
    cuda::launch_overlapping(count_kernel<kMarked>, params.chunking.num_chunks, kThreads, params, stream);
  params.marks = args.place_marks;
  cuda::allow_shared_memory<place_kernel<kMarked>>(shared_bytes(kMaxExperts));
  if (params.chunking.num_chunks == 0) params.chunking.num_chunks = 1;  // an empty plan is still written
  cuda::launch_overlapping(place_kernel<kMarked>, params.chunking.num_chunks + 1, kThreads, params, stream,
                           shared_bytes(args.num_experts));
}

}  // namespace

void launch(const Args& args, cudaStream_t stream) {
  validate(args);
  Params params{args, args.num_tokens * args.num_slots, {}, nullptr};
  params.chunking = select_chunking(default_policy(), params.num_pairs, args.num_experts);
  args.place_marks == nullptr ? launch_kernels<false>(args, params, stream)
                              : launch_kernels<true>(args, params, stream);
}

}  // namespace tessera::kernels::moe_plan
