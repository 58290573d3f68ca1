// Rows grouped by expert: a counting sort of the (token, slot) pairs, see RoutingPlan.
#include <algorithm>

#include "moe/cpu/steps.h"
#include "moe/plan/arrays.h"

namespace tessera::moe::cpu_steps {
namespace {

// -1 or another negative number: no expert of this shard.
int32_t expert_of_id(const CpuRun& run, int64_t id) {
  const LayerConfig& config = run.config;
  if (config.num_mapped_experts != 0) {
    if (id < 0 || id >= config.num_mapped_experts) return -1;
    const int32_t expert = run.weights.expert_map[id];
    return expert < config.num_experts ? expert : -1;
  }
  // Compared, not subtracted: an id may be the least int64.
  if (id < config.first_expert || id >= int64_t{config.first_expert} + config.num_experts) return -1;
  return static_cast<int32_t>(id - config.first_expert);
}

}  // namespace

void plan(const CpuRun& run) {
  const void* ids = run.inputs.topk_ids;
  const bool wide = run.inputs.ids_are_64_bit;
  const auto expert_of = [&](int64_t i) {
    const int64_t id = wide ? static_cast<const int64_t*>(ids)[i] : static_cast<const int32_t*>(ids)[i];
    return std::max(expert_of_id(run, id), -1);
  };
  fill_routing_plan(expert_of, run.config.top_k, run.workspace.plan);
}

}  // namespace tessera::moe::cpu_steps
