// Expert GEMM, host side: one of a layer's two products, for every routed row of every expert, in one launch.
//
//   launch(problem, Role::gate_up, options, stream);      // see cuda/grouped/problem.h for what each role computes
//   launch(problem, Role::down, options, stream);
//
// Everything about routing comes from the plan, on the device: no host read, capturable. The plan must have been built
// with problem.tilings, which must be tiling() of policy.h for options.cluster_size. Nothing is allocated. Enqueued on
// `stream`; returns before it has run. Throws Error naming the argument that is wrong.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "cuda/kernels/expert_gemm/policy.h"

namespace tessera::kernels::expert_gemm {

// Whether the current device can run clusters of this size with the kernel's shared memory.
bool clusters_fit(DType dtype, int32_t cluster_size);

void launch(const grouped::Problem& problem, grouped::Role role, const grouped::LaunchOptions& options,
            cudaStream_t stream);

}  // namespace tessera::kernels::expert_gemm
