// Where things lie in a layer's weights and inputs, and how many there are.
#pragma once

#include <cstdint>

#include "tessera/core/dtype.h"
#include "tessera/core/host_device.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe {

/// First gate row and first up row of an expert's [2I, H], for the orders that keep them together.
constexpr int64_t gate_begin(GateUpOrder order, int64_t intermediate_size) {
  return gate_row(order, 0, intermediate_size);
}
constexpr int64_t up_begin(GateUpOrder order, int64_t intermediate_size) { return up_row(order, 0, intermediate_size); }

/// Experts that every token takes: the shared expert, in slices as wide as the others, as a GPU counts it.
constexpr int32_t num_shared_experts(const LayerConfig& config) {
  return config.shared_intermediate_size / config.intermediate_size;
}

/// Columns of the intermediate as a GPU lays it out: with those of the block of scales in which the weights begin.
constexpr int32_t padded_intermediate_size(const LayerConfig& config) {
  return config.intermediate_size + config.scale_offsets.down;
}

/// k + S: slots of a token, those of the shared expert's slices included.
constexpr int32_t num_slots(const LayerConfig& config) { return config.top_k + num_shared_experts(config); }

/// The static scale of an expert's rows, of the `count` that there are: one for all, or each its own, a shared expert
/// (E or more) the last. null: none.
TESSERA_HOST_DEVICE constexpr const float* input_scale(const float* scales, int32_t count, int64_t expert) {
  return count == 0 ? nullptr : scales + (expert < count ? expert : count - 1);
}

/// Routing weight number `slot` of [T, k], as float (exact).
inline float topk_weight(const LayerInputs& inputs, int64_t slot) {
  if (inputs.topk_weights_dtype == DType::f32) return static_cast<const float*>(inputs.topk_weights)[slot];
  const uint16_t bits = static_cast<const uint16_t*>(inputs.topk_weights)[slot];
  return inputs.topk_weights_dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

}  // namespace tessera::moe
