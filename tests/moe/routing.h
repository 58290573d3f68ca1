// Where tokens of a test go: the routings of presets.h, and those that only a test wants.
//
//   balanced best worst random zipf   as moe::Routing; ids of a token are distinct where there are experts enough
//   first last middle                 every slot names this expert
//   few                               any of three experts, a token may name one several times
//   any                               any expert, a token may name one several times
//   foreign                           half the slots name nobody: -1, E, negative ids, the least and the largest int32
//   none                              every slot is -1
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "moe/case.h"

namespace tessera::testing {

/// [T, k] ids in [0, E) but for `foreign` and `none`; the same for the same arguments on every machine. Error for
/// another kind.
std::vector<int32_t> make_ids(std::string_view kind, int32_t tokens, int32_t top_k, int32_t experts, uint64_t seed = 1);

/// The global ids of a case: among the entries of its map, or from its first expert on.
std::vector<int32_t> ids_of(const LayerCase& c, uint64_t seed = 1);

}  // namespace tessera::testing
