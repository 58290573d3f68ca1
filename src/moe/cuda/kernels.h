// The device side of the table of kernels: what the current device can run, and the launch of each row.
#pragma once

#include "cuda/grouped/launch_options.h"
#include "cuda/grouped/problem.h"
#include "moe/kernels.h"

struct CUstream_st;

namespace tessera::moe {

/// Of the current device.
LaunchDevice current_launch_device(const LayerConfig& config);

/// One of a layer's products by the kernel that was chosen. `problem` must have the launch's tilings.
void launch_gemm(const grouped::Problem& problem, grouped::Role role, const ResolvedLaunch& launch,
                 cuda::KernelMarks* marks, CUstream_st* stream);

}  // namespace tessera::moe
