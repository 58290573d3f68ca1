#include <memory>

#include "api/device.h"
#include "api/status.h"
#include "moe/validation.h"
#include "tessera/core/thread_pool.h"
#include "tessera/moe/convert_scales.h"
#include "tessera/moe/cuda_router.h"
#include "tessera/moe/layer.h"
#include "tessera/moe/limits.h"
#include "tessera/moe/prepare_weights.h"
#include "tessera/moe/router.h"
#include "tessera/tessera.h"

struct tessera_moe {
  tessera::moe::Layer layer;
  int32_t device;
};

namespace tessera::api {
namespace {

constexpr tessera_moe_limit_values kLimits = {
    sizeof(tessera_moe_limit_values),      moe::kWidthMultiple, moe::kMaxExperts, moe::kMaxTopK,
    static_cast<int32_t>(moe::kAlignment), kMaxThreads};

moe::Device back_end(int32_t device) { return device == TESSERA_CPU ? moe::Device::cpu : moe::Device::cuda; }

DType read_dtype(const char* name, int32_t value) { return read_enum(name, value, DType{kNumDTypes - 1}); }

tessera_moe_config default_config() {
  tessera_moe_config config{};
  config.dtype = TESSERA_BF16;
  config.gated = 1;
  config.activation = TESSERA_SILU;
  config.alpha = 1.0f;
  config.device = TESSERA_CPU;
  return config;
}

tessera_router_config default_router_config() {
  tessera_router_config config{};
  config.kind = TESSERA_TOPK_SOFTMAX;
  config.num_groups = 1;
  config.topk_groups = 1;
  config.scale = 1.0f;
  config.device = TESSERA_CPU;
  return config;
}

moe::LayerConfig layer_config(const tessera_moe_config& given) {
  moe::LayerConfig config;
  config.hidden_size = given.hidden_size;
  config.intermediate_size = given.intermediate_size;
  config.num_experts = given.num_experts;
  config.top_k = given.top_k;
  config.dtype = read_dtype("dtype", given.dtype);
  config.gated = given.gated != 0;
  config.activation = {read_enum("activation", given.activation, ActivationKind::clamped_swiglu), given.alpha,
                       given.beta, given.limit};
  config.first_expert = given.first_expert;
  config.num_mapped_experts = given.num_mapped_experts;
  config.shared_intermediate_size = given.shared_intermediate_size;
  config.gate_up_order = read_enum("gate_up_order", given.gate_up_order, moe::GateUpOrder::up_first);
  config.weight_format = moe::weight_format(given.weight_format);
  config.scale_offsets = {given.gate_scale_offset, given.up_scale_offset, given.down_scale_offset};
  config.num_gate_up_input_scales = given.num_gate_up_input_scales;
  config.num_down_input_scales = given.num_down_input_scales;
  config.round_like_engines = given.round_like_engines != 0;
  return config;
}

moe::LayerWeights layer_weights(const tessera_moe_weights* given) {
  const tessera_moe_weights weights = read_struct("weights", given, tessera_moe_weights{});
  return {weights.gate_up,           weights.down,
          weights.gate_up_bias,      weights.down_bias,
          weights.shared_gate_up,    weights.shared_down,
          weights.expert_map,        weights.gate_up_scale,
          weights.down_scale,        weights.shared_gate_up_scale,
          weights.shared_down_scale, weights.gate_up_input_scale,
          weights.down_input_scale};
}

std::unique_ptr<tessera_moe> create(const tessera_moe_config* given_config, const tessera_moe_weights* given_weights) {
  const tessera_moe_config config = read_struct("config", given_config, default_config());
  const moe::LayerWeights weights = layer_weights(given_weights);
  if (config.device != TESSERA_CPU) moe::require_no_threads(config.num_threads);
  const DeviceScope scope(config.device);
  if (!moe::device_available(back_end(config.device))) require_usable(config.device);
  return std::unique_ptr<tessera_moe>(new tessera_moe{
      moe::Layer(layer_config(config), weights, {back_end(config.device), config.num_threads}), config.device});
}

void run(const tessera_moe& layer, const tessera_moe_inputs& given, void* workspace, size_t workspace_bytes,
         void* stream) {
  moe::LayerInputs inputs;
  inputs.x = given.x;
  inputs.topk_ids = given.topk_ids;
  inputs.ids_are_64_bit = given.ids_are_64_bit != 0;
  inputs.topk_weights = given.topk_weights;
  inputs.out = given.out;
  inputs.num_tokens = given.num_tokens;
  inputs.shared_weight = given.shared_weight;
  inputs.topk_weights_dtype = read_dtype("topk_weights_dtype", given.topk_weights_dtype);
  inputs.x_scale = given.x_scale;
  const DeviceScope scope(layer.device);
  layer.layer.run(inputs, workspace, workspace_bytes, static_cast<CUstream_st*>(stream));
}

void route(const tessera_router_config& given, const moe::RouterInputs& inputs, void* stream) {
  RouterConfig config;
  config.kind = read_enum("kind", given.kind, RouterKind::sigmoid_renormalize);
  config.num_experts = given.num_experts;
  config.top_k = given.top_k;
  config.num_groups = given.num_groups;
  config.topk_groups = given.topk_groups;
  config.scale = given.scale;
  config.logits_dtype = read_dtype("logits_dtype", given.logits_dtype);
  if (given.device == TESSERA_CPU) {
    if (stream != nullptr) throw Error("stream", "a stream", "none: the router runs on the CPU");
    return moe::route(config, inputs);
  }
  const DeviceScope scope(given.device);
  if (!moe::device_available(moe::Device::cuda)) require_usable(given.device);
  moe::cuda_route(config, inputs, static_cast<CUstream_st*>(stream));
}

}  // namespace
}  // namespace tessera::api

using namespace tessera::api;  // the functions below are C's and stand in no namespace

extern "C" {

const tessera_moe_limit_values* tessera_moe_limits(void) { return &kLimits; }

void tessera_moe_config_init_sized(tessera_moe_config* config, size_t struct_bytes) {
  init_struct(config, struct_bytes, default_config());
}
void tessera_moe_weights_init_sized(tessera_moe_weights* weights, size_t struct_bytes) {
  init_struct(weights, struct_bytes, tessera_moe_weights{});
}
void tessera_moe_inputs_init_sized(tessera_moe_inputs* inputs, size_t struct_bytes) {
  init_struct(inputs, struct_bytes, tessera_moe_inputs{});
}
void tessera_router_config_init_sized(tessera_router_config* config, size_t struct_bytes) {
  init_struct(config, struct_bytes, default_router_config());
}

tessera_status tessera_moe_create(const tessera_moe_config* config, const tessera_moe_weights* weights,
                                  tessera_moe** layer) {
  return guarded([&] {
    require("layer", layer);
    *layer = create(config, weights).release();
  });
}

void tessera_moe_destroy(tessera_moe* layer) { delete layer; }

tessera_status tessera_moe_workspace_bytes(const tessera_moe* layer, int32_t max_tokens, size_t* bytes) {
  return guarded([&] { require("bytes", bytes) = require("layer", layer).layer.workspace_bytes(max_tokens); });
}

tessera_status tessera_moe_run(const tessera_moe* layer, const tessera_moe_inputs* inputs, void* workspace,
                               size_t workspace_bytes, void* stream) {
  return guarded_stoppable([&] {
    run(require("layer", layer), read_struct("inputs", inputs, tessera_moe_inputs{}), workspace, workspace_bytes,
        stream);
  });
}

tessera_status tessera_moe_check_scales(const tessera_moe_config* config, const tessera_moe_weights* weights) {
  return guarded([&] {
    const tessera::moe::LayerConfig known = layer_config(read_struct("config", config, default_config()));
    tessera::moe::check_scales(known, layer_weights(weights));
  });
}

tessera_status tessera_quantize_rows(const void* values, int32_t dtype, int64_t rows, int64_t columns, void* codes,
                                     float* scales) {
  return guarded([&] {
    tessera::moe::quantize_rows(values, read_dtype("dtype", dtype), {rows, columns}, static_cast<uint8_t*>(codes),
                                scales);
  });
}

tessera_status tessera_quantize_whole_rows(const void* values, int32_t dtype, int64_t rows, int64_t columns,
                                           void* codes, float* scales) {
  return guarded([&] {
    tessera::moe::quantize_rows(values, read_dtype("dtype", dtype), {rows, columns, tessera::kWholeRow},
                                static_cast<uint8_t*>(codes), scales);
  });
}

tessera_status tessera_quantize_blocks(const void* values, int32_t dtype, int64_t num_matrices, int64_t rows,
                                       int64_t columns, int32_t gate_and_up, int32_t gate_up_order, void* codes,
                                       float* scales) {
  return guarded([&] {
    const auto order = read_enum("gate_up_order", gate_up_order, tessera::GateUpOrder::up_first);
    tessera::moe::quantize_blocks(values, read_dtype("dtype", dtype),
                                  {num_matrices, rows, columns, gate_and_up != 0, order}, static_cast<uint8_t*>(codes),
                                  scales);
  });
}

tessera_status tessera_convert_scales(const void* stored, int32_t scale_type, int32_t grid, int64_t num_matrices,
                                      int64_t rows, int64_t columns, int32_t gate_and_up, int32_t up_offset,
                                      float* scales) {
  return guarded([&] {
    using namespace tessera::moe;
    const StoredScales from{stored, read_enum("scale_type", scale_type, ScaleType::e8m0),
                            read_enum("grid", grid, ScaleGrid::interleaved)};
    convert_scales(from, {num_matrices, rows, columns, gate_and_up != 0}, up_offset, scales);
  });
}

tessera_status tessera_convert_channel_scales(const void* stored, int32_t scale_type, int32_t channel_grid,
                                              int64_t num_matrices, int64_t rows, int32_t gate_and_up,
                                              int32_t gate_up_order, float* scales) {
  return guarded([&] {
    using namespace tessera::moe;
    const StoredChannelScales from{stored, read_enum("scale_type", scale_type, ScaleType::e8m0),
                                   read_enum("channel_grid", channel_grid, ChannelGrid::matrices)};
    const auto order = read_enum("gate_up_order", gate_up_order, tessera::GateUpOrder::up_first);
    convert_channel_scales(from, {num_matrices, rows, 1, gate_and_up != 0, order}, scales);
  });
}

tessera_status tessera_moe_prepare_weights(const tessera_moe_config* config, const void* gate_up, const void* down,
                                           void* prepared_gate_up, void* prepared_down, void* stream) {
  return guarded_stoppable([&] {
    const tessera_moe_config known = read_struct("config", config, default_config());
    const DeviceScope scope(known.device);
    tessera::moe::prepare_weights(layer_config(known), {gate_up, down}, {prepared_gate_up, prepared_down},
                                  back_end(known.device), static_cast<CUstream_st*>(stream));
  });
}

tessera_status tessera_route(const tessera_router_config* config, int32_t num_tokens, const void* logits,
                             const float* bias, int32_t* topk_ids, float* topk_weights, int32_t* num_nan_rows,
                             void* stream) {
  return guarded([&] {
    route(read_struct("config", config, default_router_config()),
          {logits, bias, topk_ids, topk_weights, num_nan_rows, num_tokens}, stream);
  });
}

}  // extern "C"
