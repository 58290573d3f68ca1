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
#include "cuda/grouped/routing.h"
#include "cuda/grouped/tiling.h"
#include "cuda/kernels/moe_plan/policy.h"
#include "tessera/batching/plan.h"

namespace tessera::kernels::moe_plan {

inline constexpr int32_t kMaxExperts = 1024;
inline constexpr int32_t kMaxTopK = 32;

struct Args : grouped::Routing {
  batching::TaskOrder order;
  grouped::Tiling tilings[grouped::kNumGemms];
  grouped::PlanView plan;                    // arrays to fill; chunk_counts [num_chunks][E + S]
  cuda::KernelMarks* count_marks = nullptr;  // [1] of each launch; both or neither
  cuda::KernelMarks* place_marks = nullptr;
};

void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::moe_plan
