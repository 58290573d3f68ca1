// Where the tokens of a layer go, as the caller gives it: what a plan is built from.
#pragma once

#include <cstdint>

#include "tessera/core/host_device.h"

namespace tessera::grouped {

struct Routing {
  const void* topk_ids;  // [T, k] int32 or int64
  bool ids_are_64_bit;
  int32_t num_tokens;          // T
  int32_t num_slots;           // k + S, 1..32: of a token, of which the last S are not in topk_ids
  int32_t num_experts;         // E + S, 1..1024: of this shard, then the shared experts
  int32_t first_expert;        // id of this shard's expert 0; ids outside [first_expert, first_expert + E) are skipped
  int32_t num_shared_experts;  // S: experts that every token takes
  const int32_t* expert_map;   // [num_mapped_experts] id -> expert of this shard, else any other number
  int32_t num_mapped_experts;  // 0: no map

  TESSERA_HOST_DEVICE constexpr int64_t pairs() const { return int64_t{num_tokens} * num_slots; }
};

}  // namespace tessera::grouped
