// How a grouped GEMM is laid out on the device; any choice gives the same bits.
#pragma once

#include <cstdint>

#include "cuda/core/marks.h"

namespace tessera::grouped {

struct LaunchOptions {
  int32_t num_ctas;      // at least a cluster
  int32_t cluster_size;  // CTAs that share weights, 1 or 2
  int32_t back_every;    // every back_every-th cluster takes tiles from the back of the list; 0: none does
  cuda::KernelMarks* marks = nullptr;  // [1] or null: none
};

}  // namespace tessera::grouped
