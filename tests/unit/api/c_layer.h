// A case of the MoE layer as a C program would state it.
//
//   CLayer c(data);
//   ASSERT_EQ(c.create(), TESSERA_OK) << tessera_last_error();
//   tessera_moe_run(c.layer, &c.inputs, workspace, bytes, nullptr);
#pragma once

#include "moe/layer_data.h"
#include "tessera/tessera.h"

namespace tessera::testing {

/// The C structures of a case, as a C program would fill them.
struct CLayer {
  explicit CLayer(const LayerData& data) {
    const moe::LayerConfig from = data.config();
    tessera_moe_config_init(&config);
    config.hidden_size = from.hidden_size;
    config.intermediate_size = from.intermediate_size;
    config.num_experts = from.num_experts;
    config.top_k = from.top_k;
    config.dtype = static_cast<int32_t>(from.dtype);
    config.gated = from.gated ? 1 : 0;
    config.activation = static_cast<int32_t>(from.activation.kind);
    config.alpha = from.activation.alpha;
    config.beta = from.activation.beta;
    config.limit = from.activation.limit;
    config.gate_up_order = static_cast<int32_t>(from.gate_up_order);
    config.first_expert = from.first_expert;
    config.num_mapped_experts = from.num_mapped_experts;
    config.shared_intermediate_size = from.shared_intermediate_size;
    config.weight_format = static_cast<int32_t>(from.weight_format);
    config.gate_scale_offset = from.scale_offsets.gate;
    config.up_scale_offset = from.scale_offsets.up;
    config.down_scale_offset = from.scale_offsets.down;
    config.num_gate_up_input_scales = from.num_gate_up_input_scales;
    config.num_down_input_scales = from.num_down_input_scales;
    config.round_like_engines = from.round_like_engines ? 1 : 0;
    config.num_threads = 1;
    const moe::LayerWeights w = data.weights();
    tessera_moe_weights_init(&weights);
    weights.gate_up = w.gate_up;
    weights.down = w.down;
    weights.gate_up_bias = w.gate_up_bias;
    weights.down_bias = w.down_bias;
    weights.shared_gate_up = w.shared_gate_up;
    weights.shared_down = w.shared_down;
    weights.expert_map = w.expert_map;
    weights.gate_up_scale = w.gate_up_scale;
    weights.down_scale = w.down_scale;
    weights.shared_gate_up_scale = w.shared_gate_up_scale;
    weights.shared_down_scale = w.shared_down_scale;
    weights.gate_up_input_scale = w.gate_up_input_scale;
    weights.down_input_scale = w.down_input_scale;
    const moe::LayerInputs i = data.inputs();
    tessera_moe_inputs_init(&inputs);
    inputs.num_tokens = i.num_tokens;
    inputs.ids_are_64_bit = i.ids_are_64_bit ? 1 : 0;
    inputs.x = i.x;
    inputs.topk_ids = i.topk_ids;
    inputs.topk_weights = i.topk_weights;
    inputs.topk_weights_dtype = static_cast<int32_t>(i.topk_weights_dtype);
    inputs.shared_weight = i.shared_weight;
    inputs.x_scale = i.x_scale;
  }
  ~CLayer() { tessera_moe_destroy(layer); }

  tessera_status create() { return tessera_moe_create(&config, &weights, &layer); }

  tessera_moe_config config;
  tessera_moe_weights weights;
  tessera_moe_inputs inputs;
  tessera_moe* layer = nullptr;
};

}  // namespace tessera::testing
