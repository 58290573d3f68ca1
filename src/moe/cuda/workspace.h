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
  void* intermediate;  // [T * (k + S), I] with S shared experts, of the operands' bytes
  void* rows;          // [T * (k + S), H]
  // Of formats that quantise rows, else null: e4m3 and a scale each `row_group` columns.
  void* token_codes;           // [T, H]
  float* token_scales;         // [T, ceil(H / row_group)]
  float* intermediate_scales;  // [ceil(I / row_group), scale_stride], of T * (k + S) rows
  int32_t scale_stride;
  size_t bytes;
};

/// Experts that every token takes: the shared expert, in slices as wide as the others.
inline int32_t num_shared_experts(const LayerConfig& config) {
  return config.shared_intermediate_size / config.intermediate_size;
}

/// Bytes of an element of tokens, weights and intermediate as the products read them.
int32_t operand_bytes(const LayerConfig& config);

/// `base` may be null when only `bytes` is wanted.
CudaWorkspace lay_out_workspace(const LayerConfig& config, int32_t num_tokens, void* base);

}  // namespace tessera::moe
