// The battery's entries, family by family.
#include <algorithm>
#include <array>
#include <string>

#include "moe/case.h"

namespace tessera::testing {
namespace {

using moe::GateUpOrder;

constexpr std::array kOrders = {GateUpOrder::gate_first, GateUpOrder::interleaved, GateUpOrder::up_first};
constexpr std::array<const char*, 3> kOrderNames = {"gate_first", "interleaved", "up_first"};
constexpr std::array<const char*, 7> kActivationNames = {"identity", "silu",         "gelu_tanh",     "gelu_erf",
                                                         "relu",     "relu_squared", "clamped_swiglu"};
// alpha, beta and limit are those of clamped_swiglu alone; a limit that many of the gates reach.
constexpr Activation activation_of(ActivationKind kind) {
  return kind == ActivationKind::clamped_swiglu ? Activation{kind, 1.702f, 1.0f, 0.75f} : Activation{kind};
}

using Types = std::vector<DType>;
const Types kAll = {DType::f32, DType::bf16, DType::f16};
const Types k16Bit = {DType::bf16, DType::f16};
const Types kBf16 = {DType::bf16};

class Builder {
 public:
  /// Joins the words to the entry's name.
  template <class... Words>
  void add(LayerCase c, const Types& dtypes, const char* why, const Words&... words) {
    ((c.name += (c.name.empty() ? "" : "_") + text(words)), ...);
    c.why = why;
    entries_.push_back({std::move(c), dtypes});
  }
  std::vector<BatteryEntry> take() { return std::move(entries_); }

 private:
  static std::string text(const std::string& word) { return word; }
  static std::string text(int32_t number) { return std::to_string(number); }

  std::vector<BatteryEntry> entries_;
};

// The smallest layers that still have every part; what a sanitizer, which is slow, has time for.
void add_small(Builder& to) {
  to.add({.experts = 1, .top_k = 1, .tokens = 1, .routing = "last"}, kAll, "one row of one tile", "small_one_row");
  to.add({.hidden = 256, .intermediate = 128, .experts = 1, .top_k = 1, .tokens = 128, .routing = "last"}, k16Bit,
         "one tile of every GEMM, full to its last row", "small_one_tile");
  to.add({.hidden = 1024, .intermediate = 512, .experts = 2, .top_k = 1, .tokens = 33}, kBf16,
         "more steps of K than a pipeline has stages", "small_many_stages");
  to.add({.hidden = 264, .intermediate = 136, .experts = 3, .tokens = 150, .routing = "worst", .bias = true}, k16Bit,
         "partial tiles of rows, columns and K at once, one expert with more rows than a tile", "small_all_tails");
  to.add({.hidden = 264,
          .intermediate = 136,
          .experts = 3,
          .tokens = 150,
          .routing = "worst",
          .gated = false,
          .activation = {ActivationKind::gelu_tanh},
          .bias = true},
         k16Bit, "the same without a gate", "small_all_tails_plain");
  to.add({.intermediate = 512, .experts = 40, .top_k = 8, .tokens = 200, .routing = "foreign"}, kBf16,
         "a plan of more slots than one CTA holds, half of them nobody's", "small_long_plan");
}

// Tiles are 128 rows high on a GPU, and 64 at most on a CPU.
void add_numbers_of_tokens(Builder& to) {
  for (const int32_t tokens :
       {0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 255, 256, 257, 300}) {
    to.add({.hidden = 72, .experts = 3, .tokens = tokens}, kAll, "rows of an expert around the heights of tiles",
           "tokens", tokens);
    to.add({.hidden = 24,
            .intermediate = 16,
            .experts = 3,
            .top_k = 1,
            .tokens = tokens,
            .routing = "last",
            .activation = {ActivationKind::identity},
            .integers = true},
           kAll, "all tokens on one expert: exactly so many rows", "rows", tokens);
  }
}

void add_numbers_of_experts_and_slots(Builder& to) {
  for (const int32_t experts : {1, 2, 3, 5, 6, 7, 8, 12, 60, 63, 64, 65, 160, 192, 255, 256, 257, 384, 512, 1024}) {
    to.add({.hidden = 32, .intermediate = 128, .experts = experts, .top_k = std::min(experts, 2), .tokens = 130}, kBf16,
           "lists of experts around a warp, a block and the limit; many experts have no rows", "experts", experts);
  }
  for (const int32_t top_k : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32}) {
    to.add({.hidden = 40, .experts = 32, .top_k = top_k, .tokens = 40}, kAll, "slots of a token up to the limit",
           "slots", top_k);
  }
}

// Narrow intermediates hold integers: one element that rounds the other way than the reference's would weigh on a row.
void add_widths(Builder& to) {
  const auto layer = [](int32_t hidden, int32_t intermediate) {
    LayerCase c{.hidden = hidden, .intermediate = intermediate, .experts = 3, .tokens = 20};
    c.integers = hidden < 56 || intermediate < 64;
    if (c.integers) c.activation = {ActivationKind::identity};
    return c;
  };
  for (const int32_t hidden : {8, 16, 56, 72, 120, 128, 136, 200, 264, 520}) {
    for (const int32_t intermediate : {8, 24, 64, 72, 120, 136, 200, 256, 264}) {
      to.add(layer(hidden, intermediate), kBf16, "tails of columns and of K in both products", "width", hidden,
             intermediate);
    }
  }
  for (const int32_t intermediate : {96, 192, 352, 704, 1408, 2880}) {
    to.add(layer(72, intermediate), k16Bit, "an intermediate of a published model or of its shard", "width_of_model",
           intermediate);
  }
  for (const int32_t width : {8, 16, 24, 40}) {
    LayerCase c = layer(width, width);
    c.experts = 8;
    c.tokens = 70;
    to.add(c, k16Bit, "narrower than a tile in every direction", "width_narrow", width);
  }
}

void add_activations(Builder& to) {
  for (const bool gated : {true, false}) {
    for (int kind = 0; kind <= static_cast<int>(ActivationKind::clamped_swiglu); ++kind) {
      const auto activation = static_cast<ActivationKind>(kind);
      if (gated ? activation == ActivationKind::relu_squared : activation == ActivationKind::clamped_swiglu) continue;
      for (const bool bias : {false, true}) {
        for (const GateUpOrder order : kOrders) {
          LayerCase c{.hidden = 48, .intermediate = 136, .experts = 3, .tokens = 17};
          c.gated = gated;
          c.activation = activation_of(activation);
          c.bias = bias;
          c.order = order;
          to.add(c, kAll, "every activation with each order of gate and up rows, with biases and without",
                 gated ? "gated" : "plain", kActivationNames[static_cast<size_t>(kind)], bias ? "bias" : "no_bias",
                 kOrderNames[static_cast<size_t>(order)]);
        }
      }
    }
  }
}

void add_routings(Builder& to) {
  const auto layer = [](const char* routing, int32_t top_k) {
    return LayerCase{
        .hidden = 128, .intermediate = 256, .experts = 16, .top_k = top_k, .tokens = 28, .routing = routing};
  };
  for (const char* routing : {"balanced", "best", "worst", "random", "zipf", "few", "any", "foreign", "none"})
    to.add(layer(routing, 4), kAll, "a load that the plan must spread: see routing.h", "routing", routing);
  // With several slots the same row, and its rounding errors with it, would be summed again and again.
  for (const char* routing : {"first", "middle", "last"})
    to.add(layer(routing, 1), kAll, "one expert has all rows, the others have none", "routing", routing);
}

// Each at three sizes: several tiles and slots, tails everywhere, and a single row.
void add_options(Builder& to) {
  const std::array<LayerCase, 3> sizes = {
      LayerCase{.hidden = 128, .intermediate = 64, .experts = 4, .top_k = 2, .tokens = 150, .routing = "any"},
      LayerCase{.hidden = 264, .intermediate = 200, .experts = 7, .top_k = 3, .tokens = 20, .routing = "any"},
      LayerCase{.hidden = 64, .intermediate = 136, .experts = 3, .top_k = 1, .tokens = 1, .routing = "any"}};
  for (const LayerCase& size : sizes) {
    const auto with = [&](const auto& change, const char* why, const auto&... words) {
      LayerCase c = size;
      change(c);
      to.add(c, k16Bit, why, words..., size.hidden);
    };
    for (const int32_t slices : {1, 3}) {
      for (const bool weighted : {false, true}) {
        with(
            [&](LayerCase& c) {
              c.shared_intermediate = slices * c.intermediate;
              c.shared_weight = weighted;
            },
            "a shared expert, as wide as the others or in slices, weighted or not", "shared", slices,
            weighted ? "weighted" : "plain");
      }
    }
    for (const size_t order : {size_t{1}, size_t{2}}) {
      with(
          [&](LayerCase& c) {
            c.shared_intermediate = 2 * c.intermediate;
            c.bias = true;
            c.order = kOrders[order];
          },
          "gate and up rows of the shared expert lie as the others'", "shared_order", kOrderNames[order]);
    }
    with([](LayerCase& c) { c.mapped = 2 * c.experts + 3; }, "a map with holes: ids that are not this shard's", "map");
    with(
        [](LayerCase& c) {
          c.mapped = 2 * c.experts + 3;
          c.routing = "foreign";
        },
        "ids beyond the map, before it and far outside", "map_foreign");
    with([](LayerCase& c) { c.topk_weights_dtype = DType::bf16; }, "routing weights of 16 bits", "weights_bf16");
    with([](LayerCase& c) { c.topk_weights_dtype = DType::f16; }, "routing weights of 16 bits", "weights_f16");
  }
}

void add_shards(Builder& to) {
  to.add({.hidden = 256,
          .intermediate = 256,
          .top_k = 4,
          .tokens = 40,
          .routing = "foreign",
          .ids_are_64_bit = true,
          .first_expert = 5},
         k16Bit, "experts from 5 on, ids of the shards before it and behind", "shard_foreign");
  to.add(
      {.top_k = 4, .first_expert = 3, .shared_intermediate = 64, .shared_weight = true, .order = GateUpOrder::up_first},
      kAll, "a shard with a shared expert: every token has a row", "shard_shared");
  to.add({.hidden = 72, .tokens = 130, .bias = true, .ids_are_64_bit = true, .shared_intermediate = 24}, kAll,
         "ids of 64 bits; a shared expert narrower than the others, which a CPU takes", "shared_narrow");
  to.add({.gated = false, .activation = {ActivationKind::relu_squared}, .mapped = 13}, kAll,
         "a map in front of experts without a gate", "map_plain");
  to.add({.routing = "foreign",
          .activation = activation_of(ActivationKind::clamped_swiglu),
          .first_expert = 3,
          .shared_intermediate = 40,
          .shared_weight = true,
          .order = GateUpOrder::up_first},
         kAll, "most options at once", "shard_with_everything");
  to.add({.experts = 4, .top_k = 8, .tokens = 33}, k16Bit, "more slots than experts: a token names one again and again",
         "slots_beyond_experts");
  to.add({.hidden = 184,
          .intermediate = 184,
          .experts = 32,
          .top_k = 4,
          .tokens = 30,
          .activation = {ActivationKind::clamped_swiglu, 1.702f, 1.0f, 7.0f},
          .bias = true,
          .order = GateUpOrder::interleaved},
         k16Bit, "gpt-oss, a sixteenth as wide", "model_gpt_oss");
}

void add_exact(Builder& to) {
  for (const ActivationKind kind : {ActivationKind::identity, ActivationKind::relu}) {
    for (const bool gated : {true, false}) {
      for (const int32_t tokens : {1, 63, 129}) {
        to.add({.hidden = 72,
                .intermediate = 136,
                .top_k = 3,
                .tokens = tokens,
                .gated = gated,
                .activation = {kind},
                .bias = true,
                .shared_intermediate = 136,
                .shared_weight = true,
                .integers = true},
               kAll, "integers: every sum is exact, so nothing but the right result is right", "integers",
               gated ? "gated" : "plain", kActivationNames[static_cast<size_t>(kind)], tokens);
      }
    }
  }
}

// e4m3 weights with a scale each 128 x 128. Widths are multiples of 16, blocks of scales whole or not.
LayerCase fp8(LayerCase c) {
  c.format = moe::WeightFormat::fp8_block;
  return c;
}

void add_fp8_sizes(Builder& to) {
  for (const int32_t intermediate : {16, 64, 80, 96, 128, 192, 320, 704, 1408}) {
    to.add(fp8({.hidden = 208, .intermediate = intermediate, .experts = 3, .tokens = 20}), kAll,
           "intermediates of published models and their shards, most of which are no whole blocks", "fp8_width",
           intermediate);
  }
  for (const int32_t hidden : {16, 48, 112, 128, 144, 256, 272, 720, 2048}) {
    LayerCase c{.hidden = hidden, .intermediate = 144, .experts = 3, .tokens = 20};
    to.add(fp8(c), hidden == 2048 ? kBf16 : k16Bit, "tokens whose last group is short, and whole ones", "fp8_hidden",
           hidden);
  }
  for (const int32_t tokens : {0, 1, 2, 8, 31, 33, 63, 65, 127, 129, 257}) {
    to.add(fp8({.hidden = 144, .intermediate = 80, .experts = 3, .tokens = tokens}), kBf16,
           "rows of an expert around the heights of tiles", "fp8_tokens", tokens);
  }
}

void add_fp8_options(Builder& to) {
  for (const bool gated : {true, false}) {
    for (int kind = 0; kind <= static_cast<int>(ActivationKind::clamped_swiglu); ++kind) {
      const auto activation = static_cast<ActivationKind>(kind);
      if (gated ? activation == ActivationKind::relu_squared : activation == ActivationKind::clamped_swiglu) continue;
      for (const GateUpOrder order : kOrders) {
        if (!gated && order != GateUpOrder::gate_first) continue;
        LayerCase c{.hidden = 144, .intermediate = 208, .experts = 3, .tokens = 17};
        c.gated = gated;
        c.activation = activation_of(activation);
        c.bias = kind % 2 == 0;
        c.order = order;
        to.add(fp8(c), k16Bit,
               "every activation before the intermediate is quantised, scales of gate and up in one order", "fp8",
               gated ? "gated" : "plain", kActivationNames[static_cast<size_t>(kind)],
               kOrderNames[static_cast<size_t>(order)]);
      }
    }
  }
  for (const char* routing : {"balanced", "worst", "zipf", "few", "foreign", "none"}) {
    to.add(fp8({.hidden = 144, .intermediate = 208, .experts = 16, .top_k = 4, .tokens = 28, .routing = routing}),
           kBf16, "a load that the plan must spread, experts without rows", "fp8_routing", routing);
  }
  to.add(fp8({.hidden = 272, .intermediate = 208, .mapped = 19, .shared_intermediate = 208, .shared_weight = true}),
         kAll, "a map with holes and a shared expert as wide as the others", "fp8_map_shared");
  to.add(fp8({.hidden = 144,
              .intermediate = 128,
              .tokens = 33,
              .activation = activation_of(ActivationKind::clamped_swiglu),
              .bias = true,
              .ids_are_64_bit = true,
              .shared_intermediate = 384,
              .order = GateUpOrder::interleaved}),
         k16Bit, "a shared expert in slices that are whole blocks", "fp8_shared_slices");
  to.add(fp8({.hidden = 144, .intermediate = 208, .shared_intermediate = 80, .order = GateUpOrder::up_first}), kAll,
         "a shared expert narrower than the others, which a CPU takes", "fp8_shared_narrow");
  to.add(fp8({.hidden = 272, .intermediate = 208, .experts = 9, .top_k = 4, .tokens = 40, .dead_experts = true}), kAll,
         "experts that were never trained: their scales are nothing or next to it, their rows too", "fp8_dead_experts");
  to.add(fp8({.hidden = 272, .intermediate = 80, .experts = 5, .top_k = 1, .tokens = 20, .dead_experts = true}), kBf16,
         "a token whose only expert was never trained", "fp8_dead_alone");
}

// e4m3 weights with a scale each row; a scale a token, or static ones.
LayerCase channel(LayerCase c, int32_t x_scales = 0, int32_t h_scales = 0) {
  c.format = moe::WeightFormat::fp8_channel;
  c.x_scales = x_scales;
  c.h_scales = h_scales;
  return c;
}

void add_channel_sizes(Builder& to) {
  for (const int32_t intermediate : {16, 80, 128, 192, 320, 1408}) {
    to.add(channel({.hidden = 208, .intermediate = intermediate, .experts = 3, .tokens = 20}), k16Bit,
           "groups of the intermediate that are whole or not, under a scale each row", "channel_width", intermediate);
  }
  for (const int32_t hidden : {16, 112, 128, 144, 272, 2048, 2880}) {
    to.add(channel({.hidden = hidden, .intermediate = 144, .experts = 3, .tokens = 20}), hidden > 2000 ? kBf16 : kAll,
           "one scale a token, over all of its columns", "channel_hidden", hidden);
  }
  for (const int32_t tokens : {0, 1, 2, 8, 31, 33, 65, 127, 129, 257}) {
    to.add(channel({.hidden = 144, .intermediate = 80, .experts = 3, .tokens = tokens}), kBf16,
           "rows of an expert around the heights of tiles", "channel_tokens", tokens);
  }
}

void add_channel_options(Builder& to) {
  for (const bool gated : {true, false}) {
    for (const GateUpOrder order : kOrders) {
      if (!gated && order != GateUpOrder::gate_first) continue;
      for (const bool bias : {false, true}) {
        LayerCase c{.hidden = 144, .intermediate = 208, .experts = 3, .tokens = 17};
        c.gated = gated;
        c.bias = bias;
        c.order = order;
        c.activation = activation_of(gated ? ActivationKind::clamped_swiglu : ActivationKind::relu_squared);
        to.add(channel(c), kAll, "scales stand in the order of the rows, and come before the bias", "channel",
               gated ? "gated" : "plain", bias ? "bias" : "no_bias", kOrderNames[static_cast<size_t>(order)]);
      }
    }
  }
  for (const char* routing : {"worst", "zipf", "foreign", "none"}) {
    to.add(channel({.hidden = 144, .intermediate = 208, .experts = 16, .top_k = 4, .tokens = 28, .routing = routing}),
           kBf16, "a load that the plan must spread, experts without rows", "channel_routing", routing);
  }
  const LayerCase shared{.hidden = 272, .intermediate = 208, .mapped = 19, .shared_intermediate = 208};
  const LayerCase slices{.hidden = 144,
                         .intermediate = 128,
                         .tokens = 33,
                         .bias = true,
                         .ids_are_64_bit = true,
                         .shared_intermediate = 384,
                         .shared_weight = true,
                         .order = GateUpOrder::interleaved};
  const LayerCase narrow{.hidden = 144, .intermediate = 208, .shared_intermediate = 80, .order = GateUpOrder::up_first};
  const LayerCase few{.hidden = 144, .intermediate = 208, .experts = 5, .top_k = 3, .tokens = 3};
  const std::array<std::array<int32_t, 2>, 6> kinds = {
      {{0, 0}, {1, 0}, {0, 1}, {1, 1}, {kEachExpert, 0}, {kEachExpert, kEachExpert}}};
  for (const auto& [x, h] : kinds) {
    const auto digit = [](int32_t scales) { return std::to_string(scales == kEachExpert ? 2 : scales); };
    const std::string kind = digit(x) + digit(h);
    to.add(channel(shared, x, h), k16Bit, "a map with holes, a shared expert; scales made, one for all, one an expert",
           "channel_shared", kind);
    to.add(channel(slices, x, h), k16Bit, "a shared expert in slices: all have its scale", "channel_slices", kind);
    to.add(channel(narrow, x, h), kAll, "a shared expert narrower than the others, which a CPU takes", "channel_narrow",
           kind);
    to.add(channel(few, x, h), k16Bit, "few rows, under each kind of scale", "channel_few", kind);
  }
  to.add(channel({.hidden = 272, .intermediate = 208, .experts = 9, .top_k = 4, .tokens = 40, .dead_experts = true}),
         kAll, "experts that were never trained: their scales are nothing or next to it", "channel_dead_experts");
  for (const int32_t intermediate : {80, 272}) {
    LayerCase c{.hidden = 208, .intermediate = intermediate, .experts = 3, .tokens = 40, .bias = true};
    c.round_like_engines = true;
    to.add(channel(c), kAll, "rounded where engines round: before the activation and after", "channel_engines",
           intermediate);
    to.add(fp8(c), kAll, "rounded where engines round: before the activation and after", "fp8_engines", intermediate);
  }
  LayerCase plain{.hidden = 208, .intermediate = 144, .experts = 3, .tokens = 5, .gated = false};
  plain.activation = {ActivationKind::relu};
  plain.round_like_engines = true;
  to.add(channel(plain), k16Bit, "the same without a gate", "channel_engines_plain");
}

void add_channel_exact(Builder& to) {
  for (const GateUpOrder order : kOrders) {
    for (const int32_t tokens : {1, 129}) {
      LayerCase c{.hidden = 144, .intermediate = 272, .top_k = 3, .tokens = tokens};
      c.activation = {ActivationKind::identity};
      c.bias = c.integers = true;
      c.order = order;
      to.add(channel(c), k16Bit, "integers that quantising leaves alone, a power of two a row", "channel_integers",
             kOrderNames[static_cast<size_t>(order)], tokens);
    }
  }
}

void add_fp8_exact(Builder& to) {
  for (const GateUpOrder order : kOrders) {
    for (const int32_t tokens : {1, 63, 129}) {
      LayerCase c{.hidden = 144, .intermediate = 272, .top_k = 3, .tokens = tokens};
      c.activation = {tokens == 63 ? ActivationKind::relu : ActivationKind::identity};
      c.bias = c.integers = true;
      c.order = order;
      to.add(fp8(c), k16Bit,
             "integers that quantising leaves alone, a power of two a block: nothing but right is right",
             "fp8_integers", kOrderNames[static_cast<size_t>(order)], tokens);
    }
  }
  LayerCase plain{
      .hidden = 272, .intermediate = 144, .tokens = 40, .gated = false, .activation = {ActivationKind::relu}};
  plain.bias = plain.integers = true;
  to.add(fp8(plain), k16Bit, "the same without a gate", "fp8_integers_plain");
}

}  // namespace

const std::vector<BatteryEntry>& battery_entries() {
  static const std::vector<BatteryEntry> entries = [] {
    Builder builder;
    add_small(builder);
    add_numbers_of_tokens(builder);
    add_numbers_of_experts_and_slots(builder);
    add_widths(builder);
    add_activations(builder);
    add_routings(builder);
    add_options(builder);
    add_shards(builder);
    add_exact(builder);
    add_fp8_sizes(builder);
    add_fp8_options(builder);
    add_fp8_exact(builder);
    add_channel_sizes(builder);
    add_channel_options(builder);
    add_channel_exact(builder);
    return builder.take();
  }();
  return entries;
}

}  // namespace tessera::testing
