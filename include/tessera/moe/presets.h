// Named shapes of published mixture-of-experts models, and routings for them: what benchmarks and explanations run on.
//
//   const Preset& preset = find_preset("qwen3-30b");                       // H = 2048, I = 768, E = 128, k = 8
//   const std::vector<int32_t> ids = make_topk_ids(preset, Routing::zipf, num_tokens, seed);      // [T, k]
//
// A routing is a shape of load, not a model's router: `best` and `worst` bound what a router can do to the kernels. The
// same arguments give the same ids on every machine.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/moe/layer_config.h"

namespace tessera::moe {

struct Preset {
  std::string_view name;
  std::string_view description;
  LayerConfig config;          ///< bf16; num_experts are those of this shard
  int32_t num_global_experts;  ///< that tokens are routed over; ids outside the shard belong to other ranks
};

/// All of them, in the order in which help and documents list them.
std::span<const Preset> presets();

/// Throws Error that lists the names for one that is not among them.
const Preset& find_preset(std::string_view name);

/// Where T tokens send their k slots among E experts. Ids of a token are distinct but for `one`.
enum class Routing : uint8_t {
  balanced,  ///< slot i of all T * k goes to expert i mod E: row counts differ by one at most
  best,      ///< all tokens choose experts 0..k-1: the least weight to read
  worst,     ///< as best, but each of the other E - k experts gets one row: all weights must be read. T * k >= E
  random,    ///< k distinct experts, all equally likely
  zipf,      ///< k distinct experts, drawn one after the other with p ~ 1 / rank; ranks are shuffled over the experts
  one,       ///< every slot names expert 0: one expert has all T * k rows
};

std::string_view routing_name(Routing routing);

/// Throws Error that lists the names for one that is not among them; `where` names the option.
Routing parse_routing(std::string_view name, const std::string& where);

/// topk_ids [T, k] with ids in [0, E). `seed` matters for random and zipf only. Throws Error where 0 <= T, 1 <= k <=
/// min(E, kMaxTopK), E <= kMaxExperts (limits.h), T * k < 2^31 or (for worst) T * k >= E does not hold.
std::vector<int32_t> make_topk_ids(Routing routing, int64_t num_tokens, int32_t num_experts, int32_t top_k,
                                   uint64_t seed);

/// The same over the global experts of a preset, counted from its shard's first, so that best, worst and one fall on
/// the shard.
std::vector<int32_t> make_topk_ids(const Preset& preset, Routing routing, int64_t num_tokens, uint64_t seed);

}  // namespace tessera::moe
