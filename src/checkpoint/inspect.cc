// What a checkpoint holds and how its layers would run, without reading a weight.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/plan_parts.h"
#include "moe/kernels.h"
#include "tessera/core/error.h"
#include "tessera/cuda/device.h"

namespace tessera::checkpoint {
namespace {

using Json = nlohmann::ordered_json;

// Batches by which kernels differ, and the SMs of an H100 or H200: both have 132.
constexpr int32_t kTokens[] = {1, 8, 32, 128, 512, 4096};
constexpr moe::LaunchDevice kHopper{.num_multiprocessors = 132};

uint64_t sum(const std::array<size_t, kNumLayerArrays>& bytes) {
  uint64_t all = 0;
  for (const size_t size : bytes) all += size;
  return all;
}

/// As far as it comes: what is wrong is in `problem`.
LayerFacts facts_of(const CheckpointParts& parts, int32_t index, moe::Device device) {
  LayerFacts facts;
  facts.index = index;
  try {
    const LayerTensors tensors = find_layer_tensors(parts, index);
    facts.format = tensors.format;
    facts.stored = tensors.describe();
    facts.stored_bytes = tensors.num_bytes;
    LoadOptions options{.layer = index, .placement = {.device = device}};
    const moe::LayerConfig config = layer_config(parts, tensors, options);
    facts.weight_bytes = sum(array_bytes(config, tensors.gate_up_bias != nullptr));
    facts.config = config;
  } catch (const Error& error) {
    facts.problem = error.what();
  }
  return facts;
}

const char* router_name(RouterKind kind) {
  switch (kind) {
    case RouterKind::softmax_topk: return "softmax_topk";
    case RouterKind::topk_softmax: return "topk_softmax";
    case RouterKind::softmax_topk_renormalize: return "softmax_topk_renormalize";
    case RouterKind::sigmoid_grouped: return "sigmoid_grouped";
    case RouterKind::sigmoid_renormalize: return "sigmoid_renormalize";
  }
  return "";
}

Json router_json(const std::optional<RouterConfig>& router) {
  if (!router) return nullptr;
  return {{"kind", router_name(router->kind)},
          {"num_groups", router->num_groups},
          {"topk_groups", router->topk_groups},
          {"scale", router->scale}};
}

Json runs_json(const LayerFacts& facts) {
  Json json = {{"runs", facts.problem.empty()}, {"problem", facts.problem}};
  if (!facts.config) return json;
  json["weight_format"] = moe::weight_format_name(facts.config->weight_format);
  json["dtype"] = dtype_name(facts.config->dtype);
  json["weight_bytes"] = facts.weight_bytes;
  return json;
}

/// Which kernel multiplies from how many tokens on.
Json kernels_json(const moe::LayerConfig& config) {
  Json kernels = Json::array();
  for (const int32_t tokens : kTokens) {
    const std::string name(moe::select_kernel(config, tokens, kHopper).row->name);
    if (kernels.empty() || kernels.back()["kernel"] != name)
      kernels.push_back({{"from_tokens", tokens}, {"kernel", name}});
  }
  return kernels;
}

Json layer_json(const CheckpointParts& parts, int32_t index) {
  const LayerFacts cpu = facts_of(parts, index, moe::Device::cpu), gpu = facts_of(parts, index, moe::Device::cuda);
  Json json = {{"layer", index},        {"format", stored_format_name(cpu.format)},
               {"stored", cpu.stored},  {"stored_bytes", cpu.stored_bytes},
               {"cpu", runs_json(cpu)}, {"hopper_gpu", runs_json(gpu)}};
  if (cpu.format == StoredFormat::mxfp4) {
    json["note"] =
        "fp8-block where the exponents of a block allow it exactly, which is seen when it is loaded; else dense";
  }
  if (gpu.config) json["hopper_gpu"]["kernels"] = kernels_json(*gpu.config);
  return json;
}

Json devices_json() {
  std::string why_none;
  Json devices = Json::array({{{"device", "cpu"}, {"name", "CPU"}, {"usable", true}, {"why_not", ""}}});
  for (const cuda::DeviceFacts& gpu : cuda::devices(why_none)) {
    const std::string why = cuda::why_unusable(gpu);
    devices.push_back({{"device", "cuda:" + std::to_string(gpu.index)},
                       {"name", gpu.name},
                       {"usable", why.empty()},
                       {"why_not", why},
                       {"memory_bytes", gpu.memory_bytes}});
  }
  if (!why_none.empty())
    devices.push_back({{"device", "cuda"}, {"name", ""}, {"usable", false}, {"why_not", why_none}});
  return devices;
}

}  // namespace

std::vector<LayerFacts> Checkpoint::layers(moe::Device device) const {
  std::vector<LayerFacts> all;
  for (const int32_t index : layers_with_experts(*parts_)) all.push_back(facts_of(*parts_, index, device));
  return all;
}

std::string Checkpoint::describe() const {
  const ModelFacts& facts = model();
  Json layers = Json::array();
  for (const int32_t index : layers_with_experts(*parts_)) layers.push_back(layer_json(*parts_, index));
  const Json json = {{"path", parts_->folder.name()},
                     {"family", facts.family},
                     {"model_type", facts.model_type},
                     {"num_layers", facts.num_layers},
                     {"hidden_size", facts.hidden_size},
                     {"intermediate_size", facts.intermediate_size},
                     {"num_experts", facts.num_experts},
                     {"top_k", facts.top_k},
                     {"shared_intermediate_size", facts.shared_intermediate_size},
                     {"router", router_json(facts.router)},
                     {"quantization", facts.quantization},
                     {"num_files", num_files()},
                     {"num_tensors", num_tensors()},
                     {"num_bytes", num_bytes()},
                     {"devices", devices_json()},
                     {"layers", layers}};
  return json.dump(2) + "\n";
}

}  // namespace tessera::checkpoint
