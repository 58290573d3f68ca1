// Launches the FP8 expert GEMM (see kernel.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"

namespace tessera::kernels::expert_gemm_fp8 {

/// Enqueues one of the two products for all experts: gate_up or up_only writes `intermediate` and its scales, down
/// writes `rows`. Operands of one byte with their scales; both widths multiples of 16. Throws Error for bad arguments,
/// CudaError if the launch fails.
void launch(const grouped::Problem& problem, grouped::Role role, const grouped::LaunchOptions& options,
            cudaStream_t stream);

}  // namespace tessera::kernels::expert_gemm_fp8
