// Device plan, host side: from topk_ids to everything the expert GEMMs and the combine need, without a host read.
//
// Result (see cuda/grouped/plan_view.h): that of moe::build_routing_plan and batching::BatchPlan. Row order is stable
// by (token, slot): deterministic. Two launches, one when T * num_slots <= 1024. Capturable; allocates nothing.
// num_pairs may be 0: the plan is then empty.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/marks.h"
#include "cuda/grouped/plan_view.h"
#include "cuda/grouped/tiling.h"
#include "cuda/kernels/moe_plan/policy.h"
#include "tessera/batching/plan.h"

namespace tessera::kernels::moe_plan {

inline constexpr int32_t kMaxExperts = 1024;
inline constexpr int32_t kMaxTopK = 32;

struct Args {
  const void* topk_ids;  // [T, k] int32 or int64
  bool ids_are_64_bit;
  int32_t num_tokens;    // T
  int32_t num_slots;     // k + S, 1..32: of a token, of which the last num_shared_experts are not in topk_ids
  int32_t num_experts;   // E + S, 1..1024: of this shard, then the shared experts
  int32_t first_expert;  // id of this shard's expert 0; ids outside [first_expert, first_expert + E) are skipped
  batching::TaskOrder order;
  grouped::Tiling tilings[grouped::kNumGemms];
  grouped::PlanView plan;                    // arrays to fill; chunk_counts [num_chunks][E + S]
  int32_t num_shared_experts = 0;            // S: experts that every token takes
  const int32_t* expert_map = nullptr;       // [num_mapped_experts] id -> expert of this shard, else any other number
  int32_t num_mapped_experts = 0;            // 0: no map
  cuda::KernelMarks* count_marks = nullptr;  // [1] of each launch; both or neither
  cuda::KernelMarks* place_marks = nullptr;
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::moe_plan
