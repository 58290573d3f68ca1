#include "checkpoint/family.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/json.h"
#include "io/quote.h"
#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::checkpoint {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 3> kNamed = {"gate_proj", "up_proj", "down_proj"};
constexpr std::array<std::string_view, 3> kNumbered = {"w1", "w3", "w2"};

constexpr std::array<const char*, 2> kNumExperts = {"num_experts", "num_local_experts"};
constexpr std::array<const char*, 2> kRoutedExperts = {"n_routed_experts", "num_local_experts"};
constexpr std::array<const char*, 2> kLocalExperts = {"num_local_experts", "num_experts"};

constexpr std::array kFamilies = {
    FamilyRow{"qwen3_moe", "Qwen3-MoE", "mlp.experts", kNamed, "", kNumExperts, "moe_intermediate_size", nullptr, false,
              RouterStyle::softmax},
    FamilyRow{"qwen3_next", "Qwen3-Next", "mlp.experts", kNamed, "mlp.shared_expert", kNumExperts,
              "moe_intermediate_size", "shared_expert_intermediate_size", false, RouterStyle::softmax},
    FamilyRow{"mixtral", "Mixtral", "block_sparse_moe.experts", kNumbered, "", kLocalExperts, "intermediate_size",
              nullptr, false, RouterStyle::softmax_renormalize},
    FamilyRow{"olmoe", "OLMoE", "mlp.experts", kNamed, "", kNumExperts, "intermediate_size", nullptr, false,
              RouterStyle::softmax},
    FamilyRow{"deepseek_v3", "DeepSeek-V3", "mlp.experts", kNamed, "mlp.shared_experts", kRoutedExperts,
              "moe_intermediate_size", "n_shared_experts", true, RouterStyle::sigmoid_grouped},
    FamilyRow{"glm4_moe", "GLM-4.5", "mlp.experts", kNamed, "mlp.shared_experts", kRoutedExperts,
              "moe_intermediate_size", "n_shared_experts", true, RouterStyle::sigmoid_grouped},
    FamilyRow{"gpt_oss", "gpt-oss", "mlp.experts", kNamed, "", kLocalExperts, "intermediate_size", nullptr, false,
              RouterStyle::topk_softmax, true},
    FamilyRow{"minimax_m2", "MiniMax-M2", "block_sparse_moe.experts", kNumbered, "", kLocalExperts, "intermediate_size",
              nullptr, false, RouterStyle::sigmoid_biased},
};

constexpr int64_t kMaxLayers = 1'024;
constexpr int64_t kMaxWidth = 1 << 20;

// gpt-oss's activation, which its config.json gives the limit of alone.
constexpr float kGptOssAlpha = 1.702f, kGptOssBeta = 1.0f;

class Config {
 public:
  Config(const json& object, const std::string& where) : object_(object), where_(where), reader_(object, where) {}

  bool has(const char* key) const {
    const auto found = object_.find(key);
    return found != object_.end() && !found->is_null();
  }
  int32_t require(const char* key, int64_t min, int64_t max) const {
    return static_cast<int32_t>(reader_.require_int(key, min, max));
  }
  int32_t get(const char* key, int64_t min, int64_t max, int32_t missing) const {
    return has(key) ? require(key, min, max) : missing;
  }
  bool flag(const char* key, bool missing) const {
    if (!has(key)) return missing;
    if (!object_[key].is_boolean()) throw Error(place(key), object_[key].dump(), "true or false");
    return object_[key].get<bool>();
  }
  float number(const char* key, float missing) const {
    if (!has(key)) return missing;
    if (!object_[key].is_number()) throw Error(place(key), "no number", "a number");
    return object_[key].get<float>();
  }
  std::string text(const char* key) const { return reader_.require_string(key); }
  std::vector<int64_t> ints(const char* key, int64_t max, size_t max_count) const {
    return reader_.require_ints(key, 0, max, 0, max_count);
  }
  const json& member(const char* key) const { return object_[key]; }
  std::string place(const char* key) const { return str_cat(where_, ": '", key, "'"); }

 private:
  const json& object_;
  const std::string& where_;
  io::JsonReader reader_;
};

const FamilyRow& family_of(const std::string& model_type, const std::string& place) {
  std::string names;
  for (const FamilyRow& row : kFamilies) {
    if (row.model_type == model_type) return row;
    names += (names.empty() ? "" : ", ") + std::string(row.model_type);
  }
  throw Error(place, io::quote(model_type), "one of " + names);
}

Activation activation_of(const FamilyRow& family, const Config& config) {
  if (family.is_gpt_oss)
    return {ActivationKind::clamped_swiglu, kGptOssAlpha, kGptOssBeta, config.number("swiglu_limit", 7.0f)};
  const std::string name = config.has("hidden_act") ? config.text("hidden_act") : "silu";
  if (name == "silu" || name == "swish") return {ActivationKind::silu};
  if (name == "gelu") return {ActivationKind::gelu_erf};
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return {ActivationKind::gelu_tanh};
  if (name == "relu") return {ActivationKind::relu};
  throw Error(config.place("hidden_act"), io::quote(name), "silu, gelu, gelu_pytorch_tanh or relu");
}

std::optional<RouterConfig> router_of(const FamilyRow& family, const Config& config, const ModelFacts& facts) {
  RouterConfig router{.num_experts = facts.num_experts, .top_k = facts.top_k};
  switch (family.router) {
    case RouterStyle::softmax:
      router.kind =
          config.flag("norm_topk_prob", false) ? RouterKind::softmax_topk_renormalize : RouterKind::softmax_topk;
      return router;
    case RouterStyle::softmax_renormalize: router.kind = RouterKind::softmax_topk_renormalize; return router;
    case RouterStyle::topk_softmax: router.kind = RouterKind::topk_softmax; return router;
    case RouterStyle::sigmoid_biased: router.kind = RouterKind::sigmoid_grouped; return router;
    case RouterStyle::sigmoid_grouped: break;
  }
  router.kind = RouterKind::sigmoid_grouped;
  router.num_groups = config.get("n_group", 1, facts.num_experts, 1);
  router.topk_groups = config.get("topk_group", 1, router.num_groups, 1);
  router.scale = config.number("routed_scaling_factor", 1.0f);
  if (!config.flag("norm_topk_prob", true)) return std::nullopt;
  return router;
}

void read_quantization(const Config& config, const std::string& where, Model& model) {
  if (!config.has("quantization_config")) return;
  const json& object = config.member("quantization_config");
  if (!object.is_object()) throw Error(config.place("quantization_config"), "no object", "an object");
  const std::string place = where + ": quantization_config";
  const Config quantization(object, place);
  model.quant_method = quantization.has("quant_method") ? quantization.text("quant_method") : "unnamed";
  model.facts.quantization = escaped(model.quant_method);
  if (!quantization.has("weight_block_size")) return;
  const std::vector<int64_t> block =
      io::JsonReader(object, place).require_ints("weight_block_size", 1, kMaxWidth, 2, 2);
  model.weight_block = {block[0], block[1]};
  model.facts.quantization += str_cat(", blocks of ", block[0], " x ", block[1]);
}

void read_sparse_layers(const Config& config, Model& model) {
  model.num_extra_layers =
      config.get("num_nextn_predict_layers", 0, kMaxLayers, config.get("num_mtp_layers", 0, kMaxLayers, 0));
  model.first_sparse = config.get("first_k_dense_replace", 0, kMaxLayers, 0);
  model.sparse_step = std::max(config.get("decoder_sparse_step", 0, kMaxLayers, 1), 1);
  if (!config.has("mlp_only_layers")) return;
  for (const int64_t layer : config.ints("mlp_only_layers", kMaxLayers, static_cast<size_t>(kMaxLayers)))
    model.dense_layers.push_back(static_cast<int32_t>(layer));
}

}  // namespace

bool Model::has_experts(int32_t layer) const {
  if (layer >= facts.num_layers) return layer < facts.num_layers + num_extra_layers;
  if (layer < 0 || layer < first_sparse || (layer + 1) % sparse_step != 0) return false;
  return std::find(dense_layers.begin(), dense_layers.end(), layer) == dense_layers.end();
}

Model read_model(std::string_view text, const std::string& where) {
  const json object = io::parse_json_object(text, where);
  const Config config(object, where);
  Model model;
  ModelFacts& facts = model.facts;
  facts.model_type = config.text("model_type");
  model.family = &family_of(facts.model_type, config.place("model_type"));
  const FamilyRow& family = *model.family;
  facts.family = family.name;
  facts.num_layers = config.require("num_hidden_layers", 1, kMaxLayers);
  facts.hidden_size = config.require("hidden_size", 1, kMaxWidth);
  facts.intermediate_size = config.require(family.intermediate_key, 1, kMaxWidth);
  const char* const experts_key = config.has(family.experts_keys[0])   ? family.experts_keys[0]
                                  : config.has(family.experts_keys[1]) ? family.experts_keys[1]
                                                                       : family.experts_keys[0];
  facts.num_experts = config.require(experts_key, 1, moe::kMaxExperts);
  facts.top_k = config.require("num_experts_per_tok", 1, std::min(facts.num_experts, moe::kMaxTopK));
  if (family.shared_key != nullptr) {
    const int32_t unit = family.shared_is_count ? facts.intermediate_size : 1;
    facts.shared_intermediate_size = unit * config.get(family.shared_key, 0, kMaxWidth / unit, 0);
  }
  facts.activation = activation_of(family, config);
  facts.router = router_of(family, config, facts);
  read_sparse_layers(config, model);
  read_quantization(config, where, model);
  return model;
}

}  // namespace tessera::checkpoint
