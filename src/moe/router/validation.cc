#include <cmath>
#include <string>

#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"
#include "tessera/moe/router.h"

namespace tessera::moe {

void validate(const RouterConfig& config) {
  require_range("router kind", static_cast<int64_t>(config.kind), 0,
                static_cast<int64_t>(RouterKind::sigmoid_renormalize));
  require_range("num_experts", config.num_experts, 1, kMaxExperts);
  require_range("top_k", config.top_k, 1, std::min(kMaxTopK, config.num_experts));
  if (!std::isfinite(config.scale)) throw Error("scale", str_cat(config.scale), "a finite number");
  require_dtype("logits_dtype", config.logits_dtype);
  if (config.kind != RouterKind::sigmoid_grouped) {
    if (config.num_groups != 1)
      throw Error("num_groups", str_cat(config.num_groups), "1: only sigmoid_grouped has groups");
    if (config.topk_groups != 1)
      throw Error("topk_groups", str_cat(config.topk_groups), "1: only sigmoid_grouped has groups");
    return;
  }
  require_range("num_groups", config.num_groups, 1, config.num_experts);
  if (config.num_experts % config.num_groups != 0)
    throw Error("num_groups", str_cat(config.num_groups), str_cat("a divisor of num_experts = ", config.num_experts));
  require_range("topk_groups", config.topk_groups, 1, config.num_groups);
  const int32_t choosable = config.num_experts / config.num_groups * config.topk_groups;
  if (config.top_k > choosable)
    throw Error("top_k", str_cat(config.top_k), str_cat("at most ", choosable, ", what topk_groups groups hold"));
}

void validate(const RouterConfig& config, const RouterInputs& inputs, const char* memory) {
  require_range("num_tokens", inputs.num_tokens, 0, INT32_MAX / config.top_k / 2);
  if (inputs.num_tokens == 0) return;
  require_pointer("logits", inputs.logits, memory, kAlignment);
  require_pointer("bias", inputs.bias, memory, kAlignment, true);
  if (inputs.bias != nullptr && config.kind != RouterKind::sigmoid_grouped)
    throw Error("bias", "a pointer", "null: only sigmoid_grouped has a bias");
  require_pointer("topk_ids", inputs.topk_ids, memory, alignof(int32_t));
  require_pointer("topk_weights", inputs.topk_weights, memory, alignof(float));
  require_pointer("num_nan_rows", inputs.num_nan_rows, memory, alignof(int32_t), true);
  const auto num_tokens = static_cast<uint64_t>(inputs.num_tokens);
  const auto num_experts = static_cast<uint64_t>(config.num_experts);
  const uint64_t slots = num_tokens * static_cast<uint64_t>(config.top_k);
  const MemoryRange read[] = {{"logits", inputs.logits, num_tokens * num_experts * dtype_size(config.logits_dtype)},
                              {"bias", inputs.bias, num_experts * sizeof(float)}};
  const MemoryRange written[] = {{"topk_ids", inputs.topk_ids, slots * sizeof(int32_t)},
                                 {"topk_weights", inputs.topk_weights, slots * sizeof(float)},
                                 {"num_nan_rows", inputs.num_nan_rows, sizeof(int32_t)}};
  require_apart(written, read);
}

}  // namespace tessera::moe
