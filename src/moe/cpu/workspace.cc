#include "moe/cpu/workspace.h"

#include <span>

#include "moe/array_layout.h"
#include "tessera/core/buffer.h"

namespace tessera::moe {

CpuWorkspace lay_out_workspace(const LayerConfig& config, const LayerProducts& products, int num_threads,
                               int32_t num_tokens, void* base) {
  const auto experts = static_cast<size_t>(config.num_experts);
  const auto tokens = static_cast<size_t>(num_tokens);
  const size_t pairs = tokens * static_cast<size_t>(config.top_k);
  const size_t row_bytes = static_cast<size_t>(config.hidden_size) * dtype_size(config.dtype);
  // The caller promises 16 bytes.
  const size_t misalignment = reinterpret_cast<uintptr_t>(base) % kHostAlignment;
  const size_t skipped = misalignment == 0 ? 0 : kHostAlignment - misalignment;
  ArrayLayout layout(base == nullptr ? nullptr : static_cast<std::byte*>(base) + skipped, kHostAlignment);
  const auto integers = [&](size_t count) { return std::span<int32_t>(layout.take<int32_t>(count), count); };
  const auto intermediate = [&](const ExpertProducts& expert, size_t rows) {
    const size_t padded = rows + static_cast<size_t>(expert.down.gemm().max_height());
    return layout.take<std::byte>(padded * static_cast<size_t>(expert.intermediate_size) *
                                  dtype_size(products.intermediate_dtype()));
  };
  CpuWorkspace workspace{};
  workspace.plan = {integers(experts), integers(experts + 1), integers(pairs), integers(pairs)};
  workspace.intermediate = intermediate(products.routed(), pairs);
  workspace.rows = layout.take<std::byte>(pairs * row_bytes);
  if (const ExpertProducts* shared = products.shared()) {
    workspace.shared_intermediate = intermediate(*shared, tokens);
    workspace.shared_rows = layout.take<std::byte>(tokens * row_bytes);
  }
  workspace.scratch = layout.take<std::byte>(products.scratch_bytes() * static_cast<size_t>(num_threads));
  workspace.bytes = layout.used() + kHostAlignment;
  return workspace;
}

}  // namespace tessera::moe
