#include "gpu/moe/output_bits/cases.h"

#include <algorithm>
#include <utility>

namespace tessera::output_bits {
namespace {

moe::LayerConfig sizes(int32_t hidden, int32_t intermediate, int32_t experts, int32_t top_k) {
  moe::LayerConfig config;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_experts = experts;
  config.top_k = top_k;
  return config;
}

std::string type_name(DType dtype) { return dtype == DType::bf16 ? "bf16" : "f16"; }

constexpr std::pair<ActivationKind, const char*> kActivations[] = {{ActivationKind::identity, "identity"},
                                                                   {ActivationKind::silu, "silu"},
                                                                   {ActivationKind::gelu_tanh, "gelu_tanh"},
                                                                   {ActivationKind::gelu_erf, "gelu_erf"},
                                                                   {ActivationKind::relu, "relu"},
                                                                   {ActivationKind::relu_squared, "relu_squared"},
                                                                   {ActivationKind::clamped_swiglu, "clamped_swiglu"}};

// Every activation, gated and not, with and without bias, both types: the epilogue's branches.
void add_activations(std::vector<Case>& cases) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const bool gated : {true, false}) {
      for (const auto& [kind, name] : kActivations) {
        if (gated && kind == ActivationKind::relu_squared) continue;
        if (!gated && kind == ActivationKind::clamped_swiglu) continue;
        for (const bool bias : {false, true}) {
          Case c{"activation/" + type_name(dtype) + (gated ? "/gated/" : "/plain/") + name + (bias ? "/bias" : ""),
                 sizes(264, 264, 5, 1), 333};
          c.config.dtype = dtype;
          c.config.gated = gated;
          c.config.activation.kind = kind;
          if (kind == ActivationKind::clamped_swiglu) c.config.activation = {kind, 1.702f, 1.0f, 2.0f};
          c.bias = bias;
          c.shows_intermediate = !bias;  // a down bias would be added to it
          cases.push_back(c);
        }
      }
    }
  }
}

// Numbers of rows around every border of a tile, a warpgroup, a warp's 16 rows; widths around a column block and a K
// step.
void add_tails(std::vector<Case>& cases) {
  for (const int32_t tokens : {1,   2,   7,   8,   15,  16,  17,  31,  63,  64,   65,   127,  128,  129, 192,
                               255, 256, 257, 383, 384, 385, 511, 512, 513, 1023, 1024, 1025, 2048, 4096}) {
    Case c{"rows/" + std::to_string(tokens), sizes(192, 136, 2, 1), tokens, moe::Routing::one};
    cases.push_back(c);
  }
  for (const int32_t width : {8, 56, 64, 72, 120, 128, 136, 248, 256, 264, 320, 512, 520}) {
    cases.push_back({"hidden/" + std::to_string(width), sizes(width, 136, 6, 2), 300});
    cases.push_back({"intermediate/" + std::to_string(width), sizes(136, width, 6, 2), 300});
    Case plain{"intermediate/plain/" + std::to_string(width), sizes(136, width, 6, 2), 300};
    plain.config.gated = false;
    plain.config.dtype = DType::f16;
    cases.push_back(plain);
  }
}

void add_orders_of_rows(std::vector<Case>& cases) {
  const std::pair<moe::GateUpOrder, const char*> orders[] = {{moe::GateUpOrder::gate_first, "gate_first"},
                                                             {moe::GateUpOrder::interleaved, "interleaved"},
                                                             {moe::GateUpOrder::up_first, "up_first"}};
  for (const auto& [order, name] : orders) {
    for (const int32_t slices : {0, 1, 3}) {
      for (const bool bias : {false, true}) {
        Case c{std::string("order/") + name + "/shared " + std::to_string(slices) + (bias ? "/bias" : ""),
               sizes(200, 136, 7, 3), 410};
        c.config.gate_up_order = order;
        c.config.shared_intermediate_size = slices * c.config.intermediate_size;
        c.bias = bias;
        c.weighted_shared_expert = slices == 3;
        cases.push_back(c);
      }
    }
  }
  Case plain{"shared/plain", sizes(200, 136, 7, 3), 410};
  plain.config.gated = false;
  plain.config.shared_intermediate_size = 2 * plain.config.intermediate_size;
  cases.push_back(plain);
}

void add_routings(std::vector<Case>& cases) {
  for (const moe::Routing routing : {moe::Routing::balanced, moe::Routing::best, moe::Routing::worst,
                                     moe::Routing::random, moe::Routing::zipf, moe::Routing::one}) {
    for (const int32_t experts : {8, 60, 128}) {
      cases.push_back({"routing/" + std::string(moe::routing_name(routing)) + "/" + std::to_string(experts),
                       sizes(128, 64, experts, 4), 777, routing});
    }
  }
  Case duplicate{"ids/duplicate", sizes(128, 64, 9, 5), 500};
  duplicate.ids = Ids::duplicate;
  cases.push_back(duplicate);
  for (const bool wide : {false, true}) {
    Case outside{wide ? "ids/outside/64 bit" : "ids/outside", sizes(128, 64, 9, 5), 500};
    outside.ids = Ids::outside;
    outside.ids_are_64_bit = wide;
    cases.push_back(outside);
  }
  Case map{"ids/map", sizes(128, 64, 9, 5), 500};
  map.config.num_mapped_experts = 31;
  cases.push_back(map);
  Case shard{"ids/shard", sizes(128, 64, 9, 5), 500};
  shard.config.first_expert = 4;
  cases.push_back(shard);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Case narrow{"topk weights/" + type_name(dtype), sizes(128, 64, 9, 5), 500};
    narrow.topk_weights_dtype = dtype;
    cases.push_back(narrow);
  }
}

// However the work is laid out, the bits are those of the case beside it.
void add_policies(std::vector<Case>& cases) {
  for (const auto order :
       {batching::TaskOrder::natural, batching::TaskOrder::heavy_first, batching::TaskOrder::interleaved}) {
    for (const int32_t ctas : {0, 1, 2, 7}) {
      for (const int32_t cluster : {1, 2}) {
        Case c{"policy/" + std::string(batching::task_order_name(order)) + "/ctas " + std::to_string(ctas) +
                   "/cluster " + std::to_string(cluster),
               sizes(256, 192, 12, 2), 1000, moe::Routing::zipf};
        c.policy.order = order;
        c.policy.num_ctas = ctas;
        c.policy.cluster_size = cluster;
        cases.push_back(c);
      }
    }
  }
}

// Shapes of published models with fewer experts and half the widths, from one token to thousands.
void add_presets(std::vector<Case>& cases) {
  for (const char* name : {"mixtral-8x7b", "qwen2-57b", "qwen3-30b", "olmoe"}) {
    for (const int32_t tokens : {1, 4, 16, 64, 256, 1024, 4096}) {
      Case c{std::string("preset/") + name + "/" + std::to_string(tokens), moe::find_preset(name).config, tokens};
      c.config.hidden_size = std::max(8, c.config.hidden_size / 16 * 8);
      c.config.intermediate_size = std::max(8, c.config.intermediate_size / 16 * 8);
      c.config.num_experts = std::min(c.config.num_experts, 32);
      c.config.shared_intermediate_size = 0;
      c.config.first_expert = 0;
      cases.push_back(c);
    }
  }
}

}  // namespace

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  add_activations(cases);
  add_tails(cases);
  add_orders_of_rows(cases);
  add_routings(cases);
  add_policies(cases);
  add_presets(cases);
  return cases;
}

}  // namespace tessera::output_bits
