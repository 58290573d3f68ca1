// The named runs whose output bits must not change when the kernels are rearranged, each with what it passes through.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/moe/cuda_layer.h"
#include "tessera/moe/presets.h"

namespace tessera::output_bits {

enum class Ids : uint8_t { preset_routing, duplicate, outside };

struct Case {
  std::string name;
  moe::LayerConfig config;
  int32_t num_tokens = 1;
  moe::Routing routing = moe::Routing::random;
  Ids ids = Ids::preset_routing;  // duplicate: any expert in any slot; outside: two thirds of the ids name none
  bool bias = false;
  bool ids_are_64_bit = false;
  bool weighted_shared_expert = false;
  DType topk_weights_dtype = DType::f32;
  // Down projection the identity, one slot of weight 1: out is the intermediate, bit for bit. Needs H = I, k = 1.
  bool shows_intermediate = false;
  moe::LaunchPolicy policy{};
};

std::vector<Case> all_cases();

}  // namespace tessera::output_bits
