// Where everything lies in the workspace of a CpuLayer: one pass over the arrays yields both the size and the pointers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/cpu/products.h"
#include "moe/plan/arrays.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

struct CpuWorkspace {
  RoutingPlanArrays plan;
  std::byte* intermediate;         // [T * k, I] of the products' intermediate_dtype, and rows to read beyond the last
  std::byte* rows;                 // [T * k, H]
  std::byte* shared_intermediate;  // [T, I_s], the same
  std::byte* shared_rows;          // [T, H]
  std::byte* scratch;              // [threads, scratch_bytes()] of the products
  size_t bytes;
};

/// `base` may be null when only `bytes` is wanted.
CpuWorkspace lay_out_workspace(const LayerConfig& config, const LayerProducts& products, int num_threads,
                               int32_t num_tokens, void* base);

}  // namespace tessera::moe
