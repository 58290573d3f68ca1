// From a checkpoint's tensors to the configuration of the layer that is made of them.
#include <algorithm>
#include <numeric>

#include "checkpoint/plan_parts.h"
#include "moe/formats.h"
#include "moe/kernels.h"
#include "moe/layer_layout.h"
#include "moe/validation.h"
#include "tessera/core/check.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::checkpoint {
namespace {

std::string place_of(const CheckpointParts& parts, const LayerTensors& tensors) {
  return str_cat(parts.folder.name(), ": layer ", tensors.index);
}

/// The format of a layer that this library has by this name.
moe::WeightFormat format_named(const CheckpointParts& parts, const LayerTensors& tensors, std::string_view name) {
  for (const moe::FormatRow& row : moe::format_rows()) {
    if (row.name == name) return row.format;
  }
  throw Error(place_of(parts, tensors), "experts of format " + std::string(stored_format_name(tensors.format)),
              "a format that layers have: " + std::string(name) + " is not one of them in this version");
}

moe::WeightFormat layer_format(const CheckpointParts& parts, const LayerTensors& tensors, const LoadOptions& options) {
  if (tensors.format != StoredFormat::mxfp4) {
    const bool is_channel = tensors.format == StoredFormat::fp8_channel || tensors.format == StoredFormat::fp8_tensor;
    const auto format = is_channel                              ? format_named(parts, tensors, "fp8-channel")
                        : tensors.format == StoredFormat::dense ? moe::WeightFormat::dense
                                                                : moe::WeightFormat::fp8_block;
    if (options.weight_format && *options.weight_format != format) {
      throw Error(
          "weight_format", std::string(moe::weight_format_name(*options.weight_format)),
          str_cat(moe::weight_format_name(format), ", as the checkpoint has it: of MXFP4 alone there is a choice"));
    }
    return format;
  }
  const moe::WeightFormat format = options.weight_format.value_or(moe::WeightFormat::fp8_block);
  if (format != moe::WeightFormat::fp8_block && format != moe::WeightFormat::dense)
    throw Error("weight_format", std::string(moe::weight_format_name(format)), "fp8-block or dense, of MXFP4");
  return format;
}

DType layer_dtype(const CheckpointParts& parts, const LayerTensors& tensors, const LoadOptions& options) {
  const bool is_cuda = options.placement.device == moe::Device::cuda;
  if (options.dtype) return *options.dtype;
  if (tensors.format != StoredFormat::dense) return DType::bf16;
  const io::StoredTensor& weight =
      *(tensors.layout == Layout::per_expert ? tensors.experts.front()[kGate] : tensors.gate_up).weight;
  const DType dtype = read_dtype(parts.folder, weight);
  if (is_cuda && dtype == DType::f32) {
    throw Error(parts.folder.place(weight), "dtype F32", "bf16 or f16 on a GPU: ask for one of them as dtype");
  }
  return dtype;
}

void set_shard(const LoadOptions& options, int32_t num_experts, moe::LayerConfig& config) {
  moe::require_range("num_shards", options.num_shards, 1, num_experts);
  moe::require_range("shard", options.shard, 0, options.num_shards - 1);
  const auto begin_of = [&](int32_t shard) {
    return static_cast<int32_t>(int64_t{num_experts} * shard / options.num_shards);
  };
  config.first_expert = begin_of(options.shard);
  config.num_experts = begin_of(options.shard + 1) - config.first_expert;
}

/// Gate's and up's rows under a grid that counts through both: up's begin inside a block where I is no multiple of it.
int32_t up_offset(const LayerTensors& tensors, const ModelFacts& facts, moe::Device device) {
  if (tensors.layout != Layout::fused || tensors.format != StoredFormat::fp8_block) return 0;
  const int64_t blocks = tensors.gate_up.scale->info.shape[1];
  const bool counts_through = blocks == scale_groups(int64_t{2} * facts.intermediate_size);
  // A GPU's kernels read one scale for 128 rows of each: there equal scales alone can be loaded.
  return counts_through && device == moe::Device::cpu ? facts.intermediate_size % kScaleGroup : 0;
}

}  // namespace

moe::LayerConfig layer_config(const CheckpointParts& parts, const LayerTensors& tensors, const LoadOptions& options) {
  const ModelFacts& facts = parts.model.facts;
  if (!tensors.problem.empty()) throw Error(place_of(parts, tensors), tensors.problem);
  const moe::WeightFormat format = layer_format(parts, tensors, options);
  moe::LayerConfig config;
  config.hidden_size = facts.hidden_size;
  config.intermediate_size = facts.intermediate_size;
  config.top_k = facts.top_k;
  config.dtype = layer_dtype(parts, tensors, options);
  config.activation = facts.activation;
  config.weight_format = format;
  config.gate_up_order = parts.model.family->is_gpt_oss ? moe::GateUpOrder::interleaved : moe::GateUpOrder::gate_first;
  config.scale_offsets.up = up_offset(tensors, facts, options.placement.device);
  set_shard(options, facts.num_experts, config);
  const bool wants_shared = options.shared_expert.value_or(options.shard == 0 && facts.shared_intermediate_size != 0);
  if (wants_shared && facts.shared_intermediate_size == 0)
    throw Error("shared_expert", "true", "false: this model has none");
  if (wants_shared && !tensors.shared_problem.empty()) throw Error(place_of(parts, tensors), tensors.shared_problem);
  config.shared_intermediate_size = wants_shared ? facts.shared_intermediate_size : 0;
  require_runs(config, options.placement.device);
  return config;
}

std::array<size_t, kNumLayerArrays> array_bytes(const moe::LayerConfig& config, bool has_biases) {
  const moe::FormatRow& row = moe::format_row(config.weight_format);
  const int64_t experts = config.num_experts, hidden = config.hidden_size, width = config.intermediate_size;
  const int64_t parts = config.gated ? 2 : 1, shared = config.shared_intermediate_size;
  const auto weights = [&](int64_t rows, int64_t columns) {
    return moe::weight_bytes(row, config.dtype, rows, columns);
  };
  std::array<size_t, kNumLayerArrays> bytes{};
  const auto set = [&](LayerArray array, size_t size) { bytes[static_cast<size_t>(array)] = size; };
  set(LayerArray::gate_up, weights(experts * parts * width, hidden));
  set(LayerArray::down, weights(experts * hidden, width));
  if (has_biases) {
    set(LayerArray::gate_up_bias, static_cast<size_t>(experts * parts * width) * dtype_size(config.dtype));
    set(LayerArray::down_bias, static_cast<size_t>(experts * hidden) * dtype_size(config.dtype));
  }
  set(LayerArray::shared_gate_up, weights(parts * shared, hidden));
  set(LayerArray::shared_down, shared == 0 ? 0 : weights(hidden, shared));
  set(LayerArray::gate_up_scale, moe::scale_bytes(row, moe::gate_up_scale_extent(config)));
  set(LayerArray::down_scale, moe::scale_bytes(row, moe::down_scale_extent(config)));
  if (shared == 0) return bytes;
  set(LayerArray::shared_gate_up_scale, moe::scale_bytes(row, moe::shared_gate_up_scale_extent(config)));
  set(LayerArray::shared_down_scale, moe::scale_bytes(row, moe::shared_down_scale_extent(config)));
  return bytes;
}

void require_runs(const moe::LayerConfig& config, moe::Device device) {
  const bool is_cuda = device == moe::Device::cuda;
  moe::validate_sizes(config, !is_cuda);
  if (!is_cuda) return;
  const int32_t shared = config.shared_intermediate_size;
  if (shared % config.intermediate_size != 0) {
    throw Error("shared_intermediate_size", str_cat(shared),
                str_cat("a multiple of intermediate_size, ", config.intermediate_size, ", or shared_expert = false"));
  }
  // Of any device: which kernels there are depends on the layer alone.
  moe::select_kernel(config, moe::kMaxTopK, {.num_multiprocessors = 1});
}

}  // namespace tessera::checkpoint
