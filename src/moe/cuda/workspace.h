// Where everything lies in the workspace of a CudaLayer: one pass over the arrays yields both the size and the
// pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/grouped/plan_view.h"
#include "moe/array_layout.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::moe {

inline constexpr size_t kWorkspaceAlignment = 256;  // of each array

struct CudaWorkspace {
  grouped::PlanView plan;
  void* intermediate;  // [T * (k + S), I] with S shared experts, of the operands' bytes
  void* rows;          // [T * (k + S), H]
  // Of formats that quantise rows, else null: e4m3 and a scale each 128 columns (tessera/core/e4m3.h).
  void* token_codes;           // [T * (k + S), H], a token for each routed row
  float* token_scales;         // [ceil(H / 128), scale_stride], of T * (k + S) rows
  float* intermediate_scales;  // [ceil(I / 128), scale_stride]
  int32_t scale_stride;
  // Of a kernel that makes less than a group of the intermediate at a time, else null.
  float* activations;       // [T * (k + S), I]
  int32_t* block_arrivals;  // [num_block_arrivals]: T * (k + S) times ceil(I / row_group)
  int64_t num_block_arrivals;
  size_t bytes;
};

/// The arrays of a plan of so many (token, slot) pairs.
grouped::PlanView take_plan(ArrayLayout& layout, int32_t num_experts, size_t pairs);

/// Bytes of an element of tokens, weights and intermediate as the products read them.
int32_t operand_bytes(const LayerConfig& config);

/// Of a run by kernels that make their plan themselves, or by others. `base` may be null when only `bytes` is wanted.
CudaWorkspace lay_out_workspace(const LayerConfig& config, int32_t num_tokens, void* base, bool makes_plan = false);

}  // namespace tessera::moe
