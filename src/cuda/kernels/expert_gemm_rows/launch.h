// Expert GEMM for few rows an expert, host side: one of a layer's two products, without a plan launched before it.
//
//   launch(problem, Role::gate_up, options, stream);      // see cuda/grouped/problem.h for what each role computes
//   launch(problem, Role::down, options, stream);
//
// The kernel finds each expert's rows from problem.routing by itself. Row r of intermediate and of rows is pair r =
// token * num_slots + slot, present or not; GEMM 1 writes problem.plan.token_row (r or -1), and nothing else of the
// plan is used. The bits of every row are those of expert_gemm. No host read, capturable, allocates nothing. Enqueued
// on `stream`; returns before it has run. Throws Error naming the argument that is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/core/marks.h"
#include "cuda/grouped/problem.h"
#include "cuda/kernels/expert_gemm_rows/policy.h"

namespace tessera::kernels::expert_gemm_rows {

struct LaunchOptions {
  int32_t num_ctas;                    // at most those that are resident together
  cuda::KernelMarks* marks = nullptr;  // [1] or null: none
};

void launch(const grouped::Problem& problem, grouped::Role role, const LaunchOptions& options, cudaStream_t stream);

}  // namespace tessera::kernels::expert_gemm_rows
