// How large an MoE layer may be, and how its arrays must lie: the only place that states it.
//
//   if (hidden_size % kWidthMultiple != 0) ...                   // in C: tessera_moe_limits(); in Python: moe_limits()
//
// Each holds for every back end and every type; what a kernel can do beyond or below them is checked where it is
// called.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::moe {

/// Hidden and intermediate sizes are multiples of it: a row of 16-bit elements is then whole 16-byte vectors. Narrower
/// weights want more: fp8_block 16.
inline constexpr int32_t kWidthMultiple = 8;

/// Experts of one shard: the plan kernels keep a counter of each in shared memory, the router a score in registers.
inline constexpr int32_t kMaxExperts = 1024;

/// Slots a token, k: a warp holds a token's slots, a lane each.
inline constexpr int32_t kMaxTopK = 32;

/// Bytes to which weights, tokens, outputs, router logits and workspaces are aligned: one vector load or TMA row.
inline constexpr size_t kAlignment = 16;

}  // namespace tessera::moe
