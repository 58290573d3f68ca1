#include "moe/validation.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "moe/formats.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {
namespace {

void require_width(const char* name, int32_t value, WeightFormat weight_format) {
  const FormatRow& format = format_row(weight_format);
  const int32_t multiple = width_multiple(format);
  if (value > 0 && value % multiple == 0) return;
  const std::string of = multiple == kWidthMultiple ? "" : str_cat(" for weights of format ", format.name);
  throw Error(name, str_cat(value), str_cat("a positive multiple of ", multiple, of));
}

// A number that would have no effect is a mistake of the caller's; given is what differs from the default.
void require_default(const char* name, float given, float unused) {
  if (given != unused) throw Error(name, str_cat(given), str_cat(unused, ": only clamped_swiglu has one"));
}

void validate_activation(const LayerConfig& config) {
  const Activation& activation = config.activation;
  require_range("activation", static_cast<int64_t>(activation.kind), 0,
                static_cast<int64_t>(ActivationKind::clamped_swiglu));
  if (config.gated && activation.kind == ActivationKind::relu_squared)
    throw Error("activation", "relu_squared", "a gated activation, or gated = false");
  if (activation.kind != ActivationKind::clamped_swiglu) {
    constexpr Activation kDefaults{};
    require_default("activation alpha", activation.alpha, kDefaults.alpha);
    require_default("activation beta", activation.beta, kDefaults.beta);
    require_default("activation limit", activation.limit, kDefaults.limit);
    return;
  }
  if (!config.gated) throw Error("activation", "clamped_swiglu", "gated = true");
  if (!std::isfinite(activation.alpha)) throw Error("activation alpha", str_cat(activation.alpha), "a finite number");
  if (!std::isfinite(activation.beta)) throw Error("activation beta", str_cat(activation.beta), "a finite number");
  if (!(activation.limit > 0.0f)) throw Error("activation limit", str_cat(activation.limit), "a positive number");
}

void validate_scale_offsets(const LayerConfig& config) {
  const FormatRow& format = format_row(config.weight_format);
  const auto require = [&](const char* name, int32_t offset, int32_t block) {
    if (block == 0 && offset != 0)
      throw Error(name, str_cat(offset), str_cat("0: weights of format ", format.name, " have no scales"));
    if (format.scales_rows() && offset != 0)
      throw Error(name, str_cat(offset), str_cat("0: weights of format ", format.name, " have no blocks of scales"));
    require_range(name, offset, 0, std::max(block - 1, 0));
  };
  require("gate scale offset", config.scale_offsets.gate, format.scale_block_rows);
  require("up scale offset", config.scale_offsets.up, format.scale_block_rows);
  require("down scale offset", config.scale_offsets.down, format.scale_block_columns);
  if (!config.gated && config.scale_offsets.up != 0)
    throw Error("up scale offset", str_cat(config.scale_offsets.up), "0: without a gate, that of gate is gate_up's");
}

uint64_t extent(int64_t a, int64_t b, int64_t c, size_t element_bytes) {
  return static_cast<uint64_t>(a) * static_cast<uint64_t>(b) * static_cast<uint64_t>(c) * element_bytes;
}

bool overlap(const MemoryRange& a, const MemoryRange& b) {
  const auto first = reinterpret_cast<uintptr_t>(a.begin);
  const auto second = reinterpret_cast<uintptr_t>(b.begin);
  if (a.begin == nullptr || b.begin == nullptr || a.num_bytes == 0 || b.num_bytes == 0) return false;
  // Differences of addresses: their sums with a length may wrap.
  return first < second ? second - first < a.num_bytes : first - second < b.num_bytes;
}

// `out` and the workspace against each other, the run's arrays and the layer's own.
void require_run_apart(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                       const GivenWorkspace& workspace) {
  const FormatRow& format = format_row(config.weight_format);
  const size_t element = dtype_size(config.dtype);
  const int64_t tokens = inputs.num_tokens;
  const int64_t hidden = config.hidden_size;
  const int64_t experts = config.num_experts;
  const int64_t width = config.intermediate_size;
  const int64_t shared = config.shared_intermediate_size;
  const int64_t gate_and_up = config.gated ? 2 : 1;
  const auto matrices = [&](int64_t count, int64_t rows, int64_t columns) -> uint64_t {
    return static_cast<uint64_t>(count) * weight_bytes(format, config.dtype, rows, columns);
  };
  const size_t id_bytes = inputs.ids_are_64_bit ? sizeof(int64_t) : sizeof(int32_t);
  const MemoryRange read[] = {
      {"x", inputs.x, extent(tokens, hidden, 1, inputs.x_scale == nullptr ? element : 1)},
      {"x_scale", inputs.x_scale, extent(tokens, num_token_groups(format, hidden), 1, sizeof(float))},
      {"topk_ids", inputs.topk_ids, extent(tokens, config.top_k, 1, id_bytes)},
      {"topk_weights", inputs.topk_weights, extent(tokens, config.top_k, 1, dtype_size(inputs.topk_weights_dtype))},
      {"shared_weight", inputs.shared_weight, extent(tokens, 1, 1, sizeof(float))},
      {"the gate_up weight", weights.gate_up, matrices(experts * gate_and_up, width, hidden)},
      {"the down weight", weights.down, matrices(experts, hidden, width)},
      {"the gate_up bias", weights.gate_up_bias, extent(experts, gate_and_up, width, element)},
      {"the down bias", weights.down_bias, extent(experts, hidden, 1, element)},
      {"the shared gate_up weight", weights.shared_gate_up, matrices(gate_and_up, shared, hidden)},
      {"the shared down weight", weights.shared_down, matrices(1, hidden, shared)},
      {"the gate_up scale", weights.gate_up_scale, scale_bytes(format, gate_up_scale_extent(config))},
      {"the down scale", weights.down_scale, scale_bytes(format, down_scale_extent(config))},
      {"the shared gate_up scale", weights.shared_gate_up_scale,
       scale_bytes(format, shared_gate_up_scale_extent(config))},
      {"the shared down scale", weights.shared_down_scale, scale_bytes(format, shared_down_scale_extent(config))},
      {"the gate_up input scale", weights.gate_up_input_scale,
       extent(config.num_gate_up_input_scales, 1, 1, sizeof(float))},
      {"the down input scale", weights.down_input_scale, extent(config.num_down_input_scales, 1, 1, sizeof(float))},
      {"expert_map", weights.expert_map, extent(config.num_mapped_experts, 1, 1, sizeof(int32_t))},
  };
  const MemoryRange written[] = {{"out", inputs.out, extent(tokens, hidden, 1, element)},
                                 {"workspace", workspace.begin, workspace.needed_bytes}};
  require_apart(written, read);
}

// Scales belong to formats that have them: a pointer that would be ignored is a mistake of the caller's.
void validate_scales(const LayerConfig& config, const LayerWeights& weights, const char* memory) {
  const FormatRow& format = format_row(config.weight_format);
  const auto require = [&](const char* name, const void* pointer, bool used) {
    if (format.has_scales() && used) return require_pointer(name, pointer, memory, kAlignment);
    if (pointer != nullptr)
      throw Error(name, "a pointer", str_cat("null: weights of format ", format.name, " here have no such scales"));
  };
  const bool shared = config.shared_intermediate_size != 0;
  require("gate_up scale", weights.gate_up_scale, true);
  require("down scale", weights.down_scale, true);
  require("shared gate_up scale", weights.shared_gate_up_scale, shared);
  require("shared down scale", weights.shared_down_scale, shared);
  validate_input_scales(config, weights, memory);
}

int64_t num_own_scales(const LayerConfig& config) {
  return int64_t{config.num_experts} + (config.shared_intermediate_size != 0 ? 1 : 0);
}

}  // namespace

void require_apart(std::span<const MemoryRange> written, std::span<const MemoryRange> read) {
  const auto refuse = [](const MemoryRange& a, const MemoryRange& b) {
    if (overlap(a, b)) throw Error(a.name, str_cat("memory that overlaps ", b.name), "memory of its own");
  };
  for (size_t i = 0; i < written.size(); ++i) {
    for (const MemoryRange& other : read) refuse(written[i], other);
    for (size_t j = 0; j < i; ++j) refuse(written[i], written[j]);
  }
}

void require_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) throw Error(name, str_cat(value), str_cat(low, "..", high));
}

void require_dtype(const char* name, DType dtype) {
  require_range(name, static_cast<int64_t>(dtype), 0, kNumDTypes - 1);
}

void require_pointer(const char* name, const void* pointer, const char* memory, size_t alignment, bool optional) {
  if (pointer == nullptr && !optional) throw Error(name, "a null pointer", memory);
  if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0)
    throw Error(name, "a misaligned pointer", str_cat(alignment, "-byte alignment"));
}

void require_no_threads(int64_t num_threads) {
  if (num_threads != 0)
    throw Error("num_threads", str_cat(num_threads), "0 with device cuda: only the CPU computes with threads");
}

void validate_sizes(const LayerConfig& config, bool has_f32) {
  require_width("hidden_size", config.hidden_size, config.weight_format);
  require_width("intermediate_size", config.intermediate_size, config.weight_format);
  require_range("num_experts", config.num_experts, 1, kMaxExperts);
  require_dtype("dtype", config.dtype);
  if (config.dtype == DType::f32 && !has_f32) throw Error("dtype", "f32", "bf16 or f16");
  validate_scale_offsets(config);
  if (config.round_like_engines && !format_row(config.weight_format).quantizes_rows())
    throw Error("round_like_engines", "true",
                str_cat("false: with weights of format ", weight_format_name(config.weight_format),
                        " the intermediate is rounded anyway"));
}

void validate(const LayerConfig& config, const LayerWeights& weights, const BackEndTraits& traits) {
  validate_sizes(config, traits.has_f32);
  require_range("top_k", config.top_k, 1, kMaxTopK);
  require_range("first_expert", config.first_expert, 0, INT32_MAX - config.num_experts);
  require_range("num_mapped_experts", config.num_mapped_experts, 0, INT32_MAX);
  if (config.shared_intermediate_size != 0)
    require_width("shared_intermediate_size", config.shared_intermediate_size, config.weight_format);
  require_range("gate_up_order", static_cast<int64_t>(config.gate_up_order), 0,
                static_cast<int64_t>(GateUpOrder::up_first));
  validate_activation(config);
  const auto require = [&](const char* name, const void* pointer, bool optional) {
    require_pointer(name, pointer, traits.memory, kAlignment, optional);
  };
  require("gate_up weight", weights.gate_up, false);
  require("down weight", weights.down, false);
  require("gate_up bias", weights.gate_up_bias, true);
  require("down bias", weights.down_bias, true);
  if (config.shared_intermediate_size != 0) {
    require("shared gate_up weight", weights.shared_gate_up, false);
    require("shared down weight", weights.shared_down, false);
  }
  if (config.num_mapped_experts == 0 && weights.expert_map != nullptr)
    throw Error("num_mapped_experts", "0 with an expert_map", "its number of entries, or no map");
  validate_scales(config, weights, traits.memory);
  if (config.num_mapped_experts != 0)
    require_pointer("expert_map", weights.expert_map, traits.memory, alignof(int32_t));
}

void validate_input_scales(const LayerConfig& config, const LayerWeights& weights, const char* memory) {
  const auto require = [&](const char* name, const float* scales, const char* count_name, int32_t count) {
    if (count != 0 && !format_row(config.weight_format).scales_rows())
      throw Error(count_name, str_cat(count),
                  str_cat("0: rows beside weights of format ", weight_format_name(config.weight_format),
                          " have no static scales"));
    const int64_t own = num_own_scales(config);
    if (count != 0 && count != 1 && count != own)
      throw Error(count_name, str_cat(count), own == 1 ? "0 or 1" : str_cat("0, 1 or ", own, ", one for each expert"));
    if (count == 0 && scales != nullptr) throw Error(name, "a pointer", str_cat("null, or ", count_name));
    if (count != 0) require_pointer(name, scales, memory, alignof(float));
  };
  require("gate_up input scale", weights.gate_up_input_scale, "num_gate_up_input_scales",
          config.num_gate_up_input_scales);
  require("down input scale", weights.down_input_scale, "num_down_input_scales", config.num_down_input_scales);
}

void validate_num_tokens(const LayerConfig& config, int32_t num_tokens, const char* name) {
  // Half the range of int32, so that a row index plus a tile's height never wraps.
  require_range(name, num_tokens, 0, INT32_MAX / config.top_k / 2);
}

void validate(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
              const GivenWorkspace& workspace, const BackEndTraits& traits) {
  require_pointer("x", inputs.x, traits.memory, kAlignment);
  if (inputs.x_scale != nullptr && !format_row(config.weight_format).quantizes_rows())
    throw Error(
        "x_scale", "a pointer",
        str_cat("null: with weights of format ", weight_format_name(config.weight_format), " x is not quantised"));
  require_pointer("x_scale", inputs.x_scale, traits.memory, alignof(float), true);
  require_pointer("out", inputs.out, traits.memory, kAlignment);
  require_pointer("topk_ids", inputs.topk_ids, traits.memory,
                  inputs.ids_are_64_bit ? alignof(int64_t) : alignof(int32_t));
  require_dtype("topk_weights_dtype", inputs.topk_weights_dtype);
  require_pointer("topk_weights", inputs.topk_weights, traits.memory, dtype_size(inputs.topk_weights_dtype));
  require_pointer("shared_weight", inputs.shared_weight, traits.memory, alignof(float), true);
  require_pointer("workspace", workspace.begin, traits.memory, kAlignment);
  if (workspace.num_bytes < workspace.needed_bytes)
    throw Error("workspace", str_cat(workspace.num_bytes, " bytes"), str_cat("at least ", workspace.needed_bytes));
  require_run_apart(config, weights, inputs, workspace);
}

}  // namespace tessera::moe
