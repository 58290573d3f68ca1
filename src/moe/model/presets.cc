#include "tessera/moe/presets.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>

#include "tessera/core/check.h"
#include "tessera/core/error.h"
#include "tessera/moe/limits.h"

namespace tessera::moe {
namespace {

constexpr Activation kSwiGlu{};
constexpr Activation kGeGlu{ActivationKind::gelu_tanh};
constexpr Activation kGptOss{ActivationKind::clamped_swiglu, 1.702f, 1.0f, 7.0f};

constexpr LayerConfig shape(int32_t hidden, int32_t intermediate, int32_t experts, int32_t top_k,
                            Activation activation = kSwiGlu) {
  LayerConfig config;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_experts = experts;
  config.top_k = top_k;
  config.activation = activation;
  return config;
}

constexpr LayerConfig shard(LayerConfig config, int32_t first_expert) {
  config.first_expert = first_expert;
  return config;
}

// Sizes are those of the models' published configurations. A tensor-parallel shard (tp) holds a part of every expert's
// intermediate, an expert-parallel one (ep) some of the experts.
constexpr std::array kPresets = {
    Preset{"mixtral-8x7b", "Mixtral 8x7B", shape(4096, 14336, 8, 2), 8},
    Preset{"qwen2-57b", "Qwen2-57B-A14B", shape(3584, 2560, 64, 8), 64},
    Preset{"qwen3-30b", "Qwen3-30B-A3B", shape(2048, 768, 128, 8), 128},
    Preset{"qwen3-235b", "Qwen3-235B-A22B", shape(4096, 1536, 128, 8), 128},
    Preset{"qwen3-next", "Qwen3-Next-80B-A3B", shape(2048, 512, 512, 10), 512},
    Preset{"deepseek-v3", "DeepSeek-V3, all 256 experts", shape(7168, 2048, 256, 8), 256},
    Preset{"deepseek-v3-shard32", "32 experts of DeepSeek-V3, every slot on them", shape(7168, 2048, 32, 8), 32},
    Preset{"deepseek-v3-ep8", "experts 96..127 of DeepSeek-V3's 256, tokens of all ranks",
           shard(shape(7168, 2048, 32, 8), 96), 256},
    Preset{"gpt-oss-120b", "gpt-oss-120b", shape(2880, 2880, 128, 4, kGptOss), 128},
    Preset{"gpt-oss-20b", "gpt-oss-20b", shape(2880, 2880, 32, 4, kGptOss), 32},
    Preset{"olmoe", "OLMoE-1B-7B", shape(2048, 1024, 64, 8), 64},
    Preset{"glm-4.5-air", "GLM-4.5-Air", shape(4096, 1408, 128, 8), 128},
    Preset{"gemma4", "Gemma 4", shape(2816, 704, 128, 8, kGeGlu), 128},
    Preset{"qwen3-30b-tp8", "Qwen3-30B-A3B over 8 GPUs, I = 96", shape(2048, 96, 128, 8), 128},
    Preset{"qwen3-next-tp4", "Qwen3-Next-80B-A3B over 4 GPUs, I = 128", shape(2048, 128, 512, 10), 512},
    Preset{"qwen3-30b-tp4", "Qwen3-30B-A3B over 4 GPUs, I = 192", shape(2048, 192, 128, 8), 128},
    Preset{"deepseek-v3-tp8", "DeepSeek-V3 over 8 GPUs, I = 256", shape(7168, 256, 256, 8), 256},
};

constexpr std::array kRoutings = {Routing::balanced, Routing::best, Routing::worst,
                                  Routing::random,   Routing::zipf, Routing::one};

/// "a, b or c"
template <class Items, class Name>
std::string name_list(const Items& items, const Name& name) {
  std::string list;
  for (size_t i = 0; i < items.size(); ++i) {
    list += i == 0 ? "" : i + 1 == items.size() ? " or " : ", ";
    list += name(items[i]);
  }
  return list;
}

/// Numbers that are the same on every machine: the standard's distributions are not.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  /// In [0, bound), bound < 2^32; off from uniform by less than 2^-32.
  int32_t below(int32_t bound) {
    return static_cast<int32_t>(((engine_() >> 32) * static_cast<uint64_t>(bound)) >> 32);
  }
  /// In [0, 1), a multiple of 2^-53.
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

  /// A random permutation's first `count` items move to the front of `items`.
  void shuffle_front(std::vector<int32_t>& items, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      const int32_t other = i + below(static_cast<int32_t>(items.size()) - i);
      std::swap(items[static_cast<size_t>(i)], items[static_cast<size_t>(other)]);
    }
  }

 private:
  std::mt19937_64 engine_;
};

std::vector<int32_t> iota(int32_t count) {
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

void fill_random(std::span<int32_t> ids, int32_t num_experts, int32_t top_k, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> experts = iota(num_experts);
  for (size_t first = 0; first < ids.size(); first += static_cast<size_t>(top_k)) {
    random.shuffle_front(experts, top_k);
    std::copy_n(experts.begin(), top_k, ids.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

// One draw after the other without putting back: an expert that the token has already is drawn again.
void fill_zipf(std::span<int32_t> ids, int32_t num_experts, int32_t top_k, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> expert_of_rank = iota(num_experts);
  random.shuffle_front(expert_of_rank, num_experts);
  std::vector<double> running(static_cast<size_t>(num_experts));  // totals of 1 / rank, ranks from 1
  double total = 0.0;
  for (size_t rank = 0; rank < running.size(); ++rank) running[rank] = total += 1.0 / static_cast<double>(rank + 1);
  for (size_t first = 0; first < ids.size(); first += static_cast<size_t>(top_k)) {
    const std::span<int32_t> token = ids.subspan(first, static_cast<size_t>(top_k));
    for (size_t slot = 0; slot < token.size();) {
      const auto rank = std::upper_bound(running.begin(), running.end() - 1, random.unit() * total);
      const int32_t expert = expert_of_rank[static_cast<size_t>(rank - running.begin())];
      const auto end = token.begin() + static_cast<std::ptrdiff_t>(slot);
      if (std::find(token.begin(), end, expert) == end) token[slot++] = expert;
    }
  }
}

void validate(Routing routing, int64_t num_tokens, int32_t num_experts, int32_t top_k) {
  if (num_experts < 1 || num_experts > kMaxExperts)
    throw Error("experts", str_cat(num_experts), str_cat("1..", kMaxExperts));
  if (top_k < 1 || top_k > kMaxTopK) throw Error("top-k", str_cat(top_k), str_cat("1..", kMaxTopK));
  if (top_k > num_experts)
    throw Error("top-k", str_cat(top_k), str_cat("at most the number of experts, ", num_experts));
  const int64_t most = std::numeric_limits<int32_t>::max() / top_k;
  if (num_tokens < 0 || num_tokens > most) throw Error("tokens", str_cat(num_tokens), str_cat("0..", most));
  if (routing == Routing::worst && num_tokens * top_k < num_experts) {
    throw Error("routing worst", str_cat(num_tokens, " tokens x ", top_k, " slots"),
                str_cat("at least one slot for each of ", num_experts, " experts"));
  }
}

}  // namespace

std::span<const Preset> presets() { return kPresets; }

const Preset& find_preset(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (preset.name == name) return preset;
  }
  throw Error("preset", "'" + escaped(name) + "'",
              name_list(kPresets, [](const Preset& preset) { return std::string(preset.name); }));
}

std::string_view routing_name(Routing routing) {
  switch (routing) {
    case Routing::balanced: return "balanced";
    case Routing::best: return "best";
    case Routing::worst: return "worst";
    case Routing::random: return "random";
    case Routing::zipf: return "zipf";
    case Routing::one: return "one";
  }
  return "unknown";
}

Routing parse_routing(std::string_view name, const std::string& where) {
  for (const Routing routing : kRoutings) {
    if (routing_name(routing) == name) return routing;
  }
  throw Error(where, "'" + escaped(name) + "'",
              name_list(kRoutings, [](Routing routing) { return std::string(routing_name(routing)); }));
}

std::vector<int32_t> make_topk_ids(Routing routing, int64_t num_tokens, int32_t num_experts, int32_t top_k,
                                   uint64_t seed) {
  validate(routing, num_tokens, num_experts, top_k);
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens) * static_cast<size_t>(top_k), 0);
  switch (routing) {
    case Routing::one: break;
    case Routing::random: fill_random(ids, num_experts, top_k, seed); break;
    case Routing::zipf: fill_zipf(ids, num_experts, top_k, seed); break;
    default: {
      const int32_t period = routing == Routing::balanced ? num_experts : top_k;
      for (size_t slot = 0; slot < ids.size(); ++slot)
        ids[slot] = static_cast<int32_t>(slot % static_cast<size_t>(period));
    }
  }
  // The first slots of all take the cold experts; what follows them in the last of these tokens keeps lower ids.
  if (routing == Routing::worst) std::iota(ids.begin(), ids.begin() + (num_experts - top_k), top_k);
  return ids;
}

std::vector<int32_t> make_topk_ids(const Preset& preset, Routing routing, int64_t num_tokens, uint64_t seed) {
  std::vector<int32_t> ids = make_topk_ids(routing, num_tokens, preset.num_global_experts, preset.config.top_k, seed);
  for (int32_t& id : ids) id = (id + preset.config.first_expert) % preset.num_global_experts;
  return ids;
}

}  // namespace tessera::moe
