// Small random MoE layers on the host, by number, for judges of bits: the CPU and the GPU tests make the same ones.
//
//   ExactCase c(seed, ExactKinds::host);     // activations that the host computes exactly; `any`: all of them
//   moe::ExactLayer layer(c.config, c.weights(), c.inputs());
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "moe/judge/exact_layer.h"
#include "tessera/core/check.h"

namespace tessera::testing {

enum class ExactKinds { host, any };

/// xorshift: the same numbers from every library.
class ExactDraw {
 public:
  explicit ExactDraw(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull) {
    for (int i = 0; i < 8; ++i) bits();
  }
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545F4914F6CDD1Dull;
  }
  int32_t below(int32_t end) { return static_cast<int32_t>((bits() >> 33) % static_cast<uint64_t>(end)); }
  bool one_in(int32_t n) { return below(n) == 0; }
  /// The sum of four uniform numbers: variance 1.
  float normal() {
    const uint64_t b = bits();
    int64_t sum = -131070;
    for (int i = 0; i < 4; ++i) sum += static_cast<int64_t>(b >> (16 * i) & 0xFFFFu);
    return static_cast<float>(sum) * (1.7320508f / 65536.0f);
  }

 private:
  uint64_t state_;
};

struct ExactCase {
  moe::LayerConfig config;
  int32_t num_tokens = 0;
  std::vector<uint16_t> x, gate_up, down, gate_up_bias, down_bias, shared_gate_up, shared_down, narrow_weights;
  std::vector<int32_t> ids, map;
  std::vector<int64_t> wide_ids;
  std::vector<float> topk_weights, shared_weight;
  DType topk_weights_dtype = DType::f32;
  // How a GPU is told to run it; no bit depends on these.
  int32_t task_order = 0, num_ctas = 0, cluster_size = 2, back_every = 6;

  explicit ExactCase(uint64_t seed, ExactKinds kinds = ExactKinds::host) : seed_(seed) {
    ExactDraw draw(seed);
    draw_config(draw, kinds);
    draw_weights(draw);
    draw_inputs(draw);
    task_order = draw.below(3);
    num_ctas = draw.one_in(3) ? 1 + draw.below(140) : 0;
    cluster_size = 1 + draw.below(2);
    back_every = draw.below(8);
  }

  moe::LayerWeights weights() const {
    return {gate_up.data(),       down.data(), or_null(gate_up_bias), or_null(down_bias), or_null(shared_gate_up),
            or_null(shared_down), map.data()};
  }
  moe::LayerInputs inputs() const {
    moe::LayerInputs in;
    in.x = x.data();
    in.ids_are_64_bit = !wide_ids.empty();
    in.topk_ids = wide_ids.empty() ? static_cast<const void*>(ids.data()) : wide_ids.data();
    in.topk_weights_dtype = topk_weights_dtype;
    in.topk_weights =
        topk_weights_dtype == DType::f32 ? static_cast<const void*>(topk_weights.data()) : narrow_weights.data();
    in.num_tokens = num_tokens;
    in.shared_weight = shared_weight.empty() ? nullptr : shared_weight.data();
    return in;
  }
  /// FNV-1a over all that a result depends on.
  uint64_t checksum() const {
    uint64_t hash = 0xCBF29CE484222325ull;
    const auto add = [&](const auto& values) {
      for (const auto& value : values) {
        const auto bytes = std::bit_cast<std::array<uint8_t, sizeof(value)>>(value);
        for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3ull;
      }
    };
    for (const auto* values :
         {&x, &gate_up, &down, &gate_up_bias, &down_bias, &shared_gate_up, &shared_down, &narrow_weights})
      add(*values);
    add(ids);
    add(map);
    add(topk_weights);
    add(shared_weight);
    return hash;
  }

  friend std::ostream& operator<<(std::ostream& out, const ExactCase& c) {
    const moe::LayerConfig& l = c.config;
    return out << "case " << c.seed_ << ": H " << l.hidden_size << " I " << l.intermediate_size << " E "
               << l.num_experts << " k " << l.top_k << " T " << c.num_tokens << " " << dtype_name(l.dtype)
               << (l.gated ? " gated" : " plain") << " act " << static_cast<int>(l.activation.kind) << " order "
               << static_cast<int>(l.gate_up_order) << " bias " << !c.gate_up_bias.empty() << !c.down_bias.empty()
               << " shared " << l.shared_intermediate_size << " map " << l.num_mapped_experts;
  }

 private:
  static const void* or_null(const std::vector<uint16_t>& values) { return values.empty() ? nullptr : values.data(); }

  // A size with every tail: multiples of 8, mostly small, sometimes beyond a tile.
  static int32_t draw_size(ExactDraw& draw) {
    const int32_t kind = draw.below(16);
    return 8 * (1 + draw.below(kind < 11 ? 9 : kind < 15 ? 20 : 42));
  }

  void draw_config(ExactDraw& draw, ExactKinds kinds) {
    config.hidden_size = draw_size(draw);
    config.intermediate_size = draw_size(draw);
    config.num_experts = draw.one_in(24) ? 1 + draw.below(60) : 1 + draw.below(9);
    config.top_k = 1 + draw.below(draw.one_in(12) ? 9 : 4);
    config.dtype = draw.one_in(2) ? DType::bf16 : DType::f16;
    config.gated = draw.one_in(2);
    draw_activation(draw, kinds);
    config.gate_up_order = static_cast<moe::GateUpOrder>(draw.below(3));
    if (draw.one_in(3)) config.shared_intermediate_size = config.intermediate_size * (1 + draw.below(2));
    if (draw.one_in(3)) {
      config.num_mapped_experts = config.num_experts + draw.below(2 * config.num_experts + 1);
      for (int32_t i = 0; i < config.num_mapped_experts; ++i)
        map.push_back(draw.one_in(4) ? -1 : draw.below(config.num_experts));
    }
    if (draw.one_in(3)) config.first_expert = draw.below(5);
    num_tokens = draw.one_in(20) ? 100 + draw.below(200) : 1 + draw.below(24);
  }

  void draw_activation(ExactDraw& draw, ExactKinds kinds) {
    using Kind = ActivationKind;
    constexpr Kind kHostGated[] = {Kind::identity, Kind::relu}, kHostPlain[] = {Kind::relu, Kind::relu_squared};
    constexpr Kind kGated[] = {Kind::silu, Kind::gelu_tanh, Kind::gelu_erf, Kind::clamped_swiglu};
    constexpr Kind kPlain[] = {Kind::silu, Kind::gelu_tanh, Kind::gelu_erf};
    if (kinds == ExactKinds::host) {
      config.activation.kind = config.gated ? kHostGated[draw.below(2)] : kHostPlain[draw.below(2)];
      if (!config.gated && draw.one_in(4)) config.activation.kind = Kind::identity;
      return;
    }
    config.activation.kind = config.gated ? kGated[draw.below(4)] : kPlain[draw.below(3)];
    if (config.activation.kind == Kind::clamped_swiglu) config.activation = {Kind::clamped_swiglu, 1.702f, 1.0f, 7.0f};
  }

  // One in eight arrays has numbers of very different sizes, one in eight many zeros.
  std::vector<uint16_t> numbers(ExactDraw& draw, int64_t count, float scale) const {
    const int32_t kind = draw.below(8);
    std::vector<uint16_t> values(static_cast<size_t>(count));
    for (uint16_t& bits : values) {
      float value = draw.normal() * scale;
      if (kind == 0) value = std::ldexp(value, draw.below(13) - 8);
      if (kind == 1 && draw.one_in(2)) value = draw.one_in(2) ? 0.0f : -0.0f;
      bits = moe::rounded_bits(value, config.dtype);
    }
    return values;
  }

  void draw_weights(ExactDraw& draw) {
    const int64_t h = config.hidden_size, i = config.intermediate_size, e = config.num_experts;
    const int64_t s = config.shared_intermediate_size, halves = config.gated ? 2 : 1;
    const auto inverse_root = [](int64_t n) { return 1.0f / std::sqrt(static_cast<float>(n)); };
    gate_up = numbers(draw, e * halves * i * h, inverse_root(h));
    down = numbers(draw, e * h * i, inverse_root(i));
    if (draw.one_in(2)) gate_up_bias = numbers(draw, e * halves * i, 0.5f);
    if (draw.one_in(2)) down_bias = numbers(draw, e * h, 0.5f);
    if (s == 0) return;
    shared_gate_up = numbers(draw, halves * s * h, inverse_root(h));
    shared_down = numbers(draw, h * s, inverse_root(i));
  }

  void draw_inputs(ExactDraw& draw) {
    x = numbers(draw, int64_t{num_tokens} * config.hidden_size, 1.0f);
    const int32_t known = config.num_mapped_experts != 0 ? config.num_mapped_experts : config.num_experts;
    const int32_t first = config.num_mapped_experts != 0 ? 0 : config.first_expert;
    const int32_t skew = draw.below(4);  // 0: any expert; 1: few of them; 2: one; 3: any, and ids that are none
    for (int64_t n = 0; n < int64_t{num_tokens} * config.top_k; ++n) {
      int32_t id = first + draw.below(skew == 1 ? std::max(known / 3, 1) : known);
      if (skew == 2) id = first + known - 1;
      if (skew == 3 && draw.one_in(5)) id = draw.one_in(2) ? -1 - draw.below(9) : first + known + draw.below(9);
      ids.push_back(id);
      topk_weights.push_back(draw.normal());
    }
    if (draw.one_in(4)) wide_ids.assign(ids.begin(), ids.end());
    const int32_t narrow = draw.below(4);
    if (narrow < 2) topk_weights_dtype = narrow == 0 ? DType::bf16 : DType::f16;
    for (const float weight : topk_weights) {
      if (narrow < 2) narrow_weights.push_back(moe::rounded_bits(weight, topk_weights_dtype));
    }
    if (config.shared_intermediate_size == 0 || draw.one_in(2)) return;
    for (int32_t t = 0; t < num_tokens; ++t) shared_weight.push_back(draw.normal());
  }

  uint64_t seed_;
};

/// Where two arrays [rows, width] differ first, and in how many elements; empty if nowhere.
inline std::string difference_of(const char* what, const std::vector<uint16_t>& got,
                                 const std::vector<uint16_t>& expected, int64_t width) {
  if (got.size() != expected.size()) return str_cat(what, ": ", got.size(), " elements, expected ", expected.size());
  size_t different = 0, first = 0;
  for (size_t i = got.size(); i-- > 0;) {
    if (got[i] == expected[i]) continue;
    ++different;
    first = i;
  }
  if (different == 0) return "";
  const auto w = static_cast<size_t>(width);
  return str_cat(what, ": ", different, " of ", got.size(), " elements differ, the first in row ", first / w,
                 " column ", first % w, ": bits ", got[first], ", expected ", expected[first]);
}

}  // namespace tessera::testing
