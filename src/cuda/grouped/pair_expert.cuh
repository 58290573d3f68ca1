// Which expert a (token, slot) pair goes to: from the ids of a routing, the expert map and the shared experts.
//
// Pairs are numbered token * num_slots + slot; a token's last num_shared_experts slots are the shared experts'.
#pragma once

#include <cstdint>

#include "cuda/grouped/routing.h"

namespace tessera::grouped {

// Expert of this shard that an id names, else -1.
__device__ inline int32_t local_expert(const Routing& routing, int64_t id) {
  const int32_t routed_experts = routing.num_experts - routing.num_shared_experts;
  if (routing.num_mapped_experts > 0) {
    const int32_t expert = id >= 0 && id < routing.num_mapped_experts ? routing.expert_map[id] : -1;
    return expert >= 0 && expert < routed_experts ? expert : -1;
  }
  const bool in_shard = id >= routing.first_expert && id < static_cast<int64_t>(routing.first_expert) + routed_experts;
  return in_shard ? static_cast<int32_t>(id - routing.first_expert) : -1;
}

// Expert of a pair (token, slot), -1 for pairs past the end and for ids outside the shard. The last slots of a token
// are the shared experts'.
__device__ inline int32_t expert_of(const Routing& routing, int64_t pair) {
  if (pair >= routing.pairs()) return -1;
  int64_t position = pair;  // in topk_ids
  if (routing.num_shared_experts > 0) {
    const int32_t routed_slots = routing.num_slots - routing.num_shared_experts;
    const int32_t token = static_cast<int32_t>(pair / routing.num_slots);
    const int32_t slot = static_cast<int32_t>(pair - static_cast<int64_t>(token) * routing.num_slots);
    if (slot >= routed_slots) return routing.num_experts - routing.num_shared_experts + slot - routed_slots;
    position = static_cast<int64_t>(token) * routed_slots + slot;
  }
  return local_expert(routing, routing.ids_are_64_bit ? static_cast<const int64_t*>(routing.topk_ids)[position]
                                                      : static_cast<const int32_t*>(routing.topk_ids)[position]);
}

}  // namespace tessera::grouped
