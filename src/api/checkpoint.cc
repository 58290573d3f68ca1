#include "tessera/tessera_checkpoint.h"

#include <memory>
#include <string>

#include "api/device.h"
#include "api/status.h"
#include "tessera/checkpoint/load_layer.h"

struct tessera_checkpoint {
  tessera::checkpoint::Checkpoint checkpoint;
  std::string description;  // made when it is first asked for
};

struct tessera_layer_plan {
  tessera::checkpoint::LayerPlan plan;
  int32_t device;
};

namespace tessera::api {
namespace {

constexpr size_t kNumArrays = checkpoint::kNumLayerArrays;

tessera_load_options default_options() {
  tessera_load_options options{};
  options.num_shards = 1;
  options.device = TESSERA_CPU;
  options.dtype = options.weight_format = options.shared_expert = TESSERA_AS_STORED;
  return options;
}

checkpoint::LoadOptions load_options(const tessera_load_options& given) {
  checkpoint::LoadOptions options;
  options.layer = given.layer;
  options.shard = given.shard;
  options.num_shards = given.num_shards;
  options.placement.device = given.device == TESSERA_CPU ? moe::Device::cpu : moe::Device::cuda;
  if (given.dtype != TESSERA_AS_STORED) options.dtype = read_enum("dtype", given.dtype, DType{kNumDTypes - 1});
  if (given.weight_format != TESSERA_AS_STORED) options.weight_format = moe::weight_format(given.weight_format);
  if (given.shared_expert != TESSERA_AS_STORED) options.shared_expert = given.shared_expert != 0;
  return options;
}

std::unique_ptr<tessera_layer_plan> make_plan(const tessera_checkpoint& opened, const tessera_load_options& given) {
  const DeviceScope scope(given.device);
  const checkpoint::LoadOptions options = load_options(given);
  if (options.placement.device == moe::Device::cuda) require_usable(given.device);
  return std::unique_ptr<tessera_layer_plan>(
      new tessera_layer_plan{checkpoint::LayerPlan(opened.checkpoint, options), given.device});
}

/// What differs from the defaults of tessera_moe_config, which `made` holds.
void write_config(const moe::LayerConfig& config, int32_t device, tessera_moe_config& made) {
  made.hidden_size = config.hidden_size;
  made.intermediate_size = config.intermediate_size;
  made.num_experts = config.num_experts;
  made.top_k = config.top_k;
  made.dtype = static_cast<int32_t>(config.dtype);
  made.gated = config.gated ? 1 : 0;
  made.activation = static_cast<int32_t>(config.activation.kind);
  made.alpha = config.activation.alpha;
  made.beta = config.activation.beta;
  made.limit = config.activation.limit;
  made.gate_up_order = static_cast<int32_t>(config.gate_up_order);
  made.first_expert = config.first_expert;
  made.shared_intermediate_size = config.shared_intermediate_size;
  made.device = device;
  made.weight_format = static_cast<int32_t>(config.weight_format);
  made.gate_scale_offset = config.scale_offsets.gate;
  made.up_scale_offset = config.scale_offsets.up;
  made.down_scale_offset = config.scale_offsets.down;
}

tessera_layer_sizes layer_sizes(const checkpoint::LayerPlan& plan) {
  const auto& bytes = plan.bytes();
  static_assert(kNumArrays == 10);
  const checkpoint::LoadReport& report = plan.report();
  return {sizeof(tessera_layer_sizes),
          bytes[0],
          bytes[1],
          bytes[2],
          bytes[3],
          bytes[4],
          bytes[5],
          bytes[6],
          bytes[7],
          bytes[8],
          bytes[9],
          report.read_bytes,
          report.num_blocks,
          report.num_exact_blocks};
}

}  // namespace
}  // namespace tessera::api

using namespace tessera::api;  // the functions below are C's and stand in no namespace

extern "C" {

tessera_status tessera_checkpoint_open(const char* folder, tessera_checkpoint** checkpoint) {
  return guarded_stoppable([&] {
    const std::string path = &require("folder", folder);
    require("checkpoint", checkpoint);
    *checkpoint = new tessera_checkpoint{tessera::checkpoint::Checkpoint(path), {}};
  });
}

void tessera_checkpoint_close(tessera_checkpoint* checkpoint) { delete checkpoint; }

const char* tessera_checkpoint_description(tessera_checkpoint* checkpoint) {
  const tessera_status status = guarded([&] {
    tessera_checkpoint& opened = require("checkpoint", checkpoint);
    if (opened.description.empty()) opened.description = opened.checkpoint.describe();
  });
  return status == TESSERA_OK ? checkpoint->description.c_str() : nullptr;
}

void tessera_load_options_init_sized(tessera_load_options* options, size_t struct_bytes) {
  init_struct(options, struct_bytes, default_options());
}
void tessera_layer_sizes_init_sized(tessera_layer_sizes* sizes, size_t struct_bytes) {
  init_struct(sizes, struct_bytes, tessera_layer_sizes{});
}
void tessera_layer_memory_init_sized(tessera_layer_memory* memory, size_t struct_bytes) {
  init_struct(memory, struct_bytes, tessera_layer_memory{});
}

tessera_status tessera_layer_plan_create(const tessera_checkpoint* checkpoint, const tessera_load_options* options,
                                         tessera_layer_plan** plan) {
  return guarded_stoppable([&] {
    require("plan", plan);
    const tessera_checkpoint& opened = require("checkpoint", checkpoint);
    *plan = make_plan(opened, read_struct("options", options, default_options())).release();
  });
}

void tessera_layer_plan_destroy(tessera_layer_plan* plan) { delete plan; }

tessera_status tessera_layer_plan_get(const tessera_layer_plan* plan, tessera_moe_config* config,
                                      tessera_layer_sizes* sizes) {
  return guarded([&] {
    const tessera_layer_plan& made = require("plan", plan);
    if (config != nullptr) {
      tessera_moe_config whole = read_struct("config", config, tessera_moe_config{});
      write_config(made.plan.config(), made.device, whole);
      write_struct("config", config, whole);
    }
    if (sizes != nullptr) write_struct("sizes", sizes, layer_sizes(made.plan));
  });
}

tessera_status tessera_layer_plan_read(const tessera_layer_plan* plan, const tessera_layer_memory* memory,
                                       tessera_progress progress, void* context) {
  return guarded_stoppable([&] {
    const tessera_layer_plan& made = require("plan", plan);
    const tessera_layer_memory given = read_struct("memory", memory, tessera_layer_memory{});
    const DeviceScope scope(made.device);
    made.plan.read(
        {given.gate_up, given.down, given.gate_up_bias, given.down_bias, given.shared_gate_up, given.shared_down,
         given.gate_up_scale, given.down_scale, given.shared_gate_up_scale, given.shared_down_scale},
        progress == nullptr ? tessera::checkpoint::Progress{}
                            : [=](uint64_t done, uint64_t total) { progress(context, done, total); });
  });
}

}  // extern "C"
