// Where everything lies in the workspace of a CudaLayer: one pass over the arrays yields both the size and the
// pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/grouped/plan_view.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::moe {

struct CudaWorkspace {
  grouped::PlanView plan;
  void* intermediate;  // [T * (k + S), I] with S shared experts
  void* rows;          // [T * (k + S), H]
  size_t bytes;
};

/// `base` may be null when only `bytes` is wanted.
CudaWorkspace lay_out_workspace(const LayerConfig& config, int32_t num_tokens, void* base);

}  // namespace tessera::moe
