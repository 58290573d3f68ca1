// Expert GEMM for few rows an expert, host side: both of a layer's products in one launch, without a plan launched
// before it.
//
//   clear_counters({counters, num_counters}, stream);   // or whatever kernel clears them, as this one does
//   launch(problem, options, stream);                   // see cuda/grouped/problem.h for what each product computes
//
// The kernel finds each expert's rows from problem.routing by itself. Row r of intermediate and of rows is pair r =
// token * num_slots + slot, present or not; scales of intermediate rows lie row by row, kScaleLine floats or a multiple
// apart. GEMM 1 writes problem.plan.token_row (r or -1), and nothing else of the plan is used. The bits of every row
// are those of expert_gemm, or of expert_gemm_fp8. No host read, capturable, allocates nothing. Enqueued on `stream`;
// returns before it has run. Throws Error naming the argument that is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/marks.h"
#include "cuda/grouped/problem.h"
#include "cuda/kernels/expert_gemm_rows/policy.h"
#include "tessera/core/host_device.h"

namespace tessera::kernels::expert_gemm_rows {

struct LaunchOptions {
  int32_t num_ctas;                                   // at most those that are resident together
  bool gemms[grouped::kNumGemms] = {true, true};      // that are run; GEMM 2 alone after GEMM 1 alone
  grouped::Role first_role = grouped::Role::gate_up;  // of GEMM 1: gate_up or up_only
  cuda::KernelMarks* marks = nullptr;                 // [1] of the one GEMM that is run, or null: none

  TESSERA_HOST_DEVICE constexpr bool runs(int gemm) const { return gemms[gemm]; }
};

struct Counters {
  int32_t* data;  // all of a problem's share_tickets, pass_arrivals and block_arrivals
  int64_t count;
};

/// A kernel that sets them to 0, and lets the next begin only when all before it have ended: it may read ids at once.
void clear_counters(const Counters& counters, cudaStream_t stream);

void launch(const grouped::Problem& problem, const LaunchOptions& options, cudaStream_t stream);

}  // namespace tessera::kernels::expert_gemm_rows
