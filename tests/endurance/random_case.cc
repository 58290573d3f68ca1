#include "endurance/random_case.h"

#include <algorithm>
#include <random>

namespace tessera::testing {

namespace {

constexpr int64_t kMaxProducts = 1'000'000;

int64_t products_of(const LayerCase& c) {
  return int64_t{3} * c.tokens * c.hidden * (int64_t{c.top_k} * c.intermediate + c.shared_intermediate);
}

}  // namespace

LayerCase random_case(uint64_t seed, moe::WeightFormat format, DType dtype) {
  std::mt19937_64 random(seed * 0x9E3779B97F4A7C15ull + 1);  // its numbers are the same in every library
  const auto below = [&](int n) { return static_cast<int32_t>(random() % static_cast<uint64_t>(n)); };
  const auto one_in = [&](int n) { return below(n) == 0; };
  const bool is_fp8 = format == moe::WeightFormat::fp8_block;
  const int32_t multiple = is_fp8 ? 16 : 8;
  const auto width = [&] { return multiple * (1 + below(one_in(4) ? 40 : 12)); };
  LayerCase c;
  c.format = format;
  c.dtype = dtype;
  c.hidden = width();
  c.intermediate = width();
  c.experts = one_in(6) ? 1 + below(200) : 1 + below(12);
  c.top_k = 1 + below(one_in(8) ? 12 : 4);
  c.tokens = one_in(20) ? 0 : 1 + below(one_in(3) ? 300 : 40);
  static constexpr const char* kRoutings[] = {"balanced", "best",   "worst", "random", "zipf",    "first",
                                              "last",     "middle", "few",   "any",    "foreign", "none"};
  c.routing = kRoutings[below(12)];
  c.gated = !one_in(4);
  static constexpr ActivationKind kGated[] = {ActivationKind::silu,     ActivationKind::gelu_tanh,
                                              ActivationKind::gelu_erf, ActivationKind::relu,
                                              ActivationKind::identity, ActivationKind::clamped_swiglu};
  c.activation.kind = c.gated ? kGated[below(6)] : one_in(3) ? ActivationKind::relu_squared : kGated[below(5)];
  if (c.activation.kind == ActivationKind::clamped_swiglu) c.activation = {c.activation.kind, 1.702f, 1.0f, 7.0f};
  c.bias = one_in(3);
  c.ids_are_64_bit = one_in(3);
  if (one_in(4)) {
    c.mapped = c.experts + below(9) + (c.experts + 8) / 2;
  } else if (one_in(4)) {
    c.first_expert = below(50);
  }
  // Slices of the routed experts' width; of a format with blocks, one slice.
  if (one_in(4)) c.shared_intermediate = c.intermediate * (is_fp8 ? 1 : 1 + below(2));
  c.shared_weight = c.shared_intermediate > 0 && one_in(2);
  static constexpr moe::GateUpOrder kOrders[] = {moe::GateUpOrder::gate_first, moe::GateUpOrder::up_first,
                                                 moe::GateUpOrder::interleaved};
  if (c.gated) c.order = kOrders[below(3)];
  if (dtype != DType::f32 && one_in(4)) c.topk_weights_dtype = dtype;
  while (products_of(c) > kMaxProducts) c.tokens /= 2;
  c.name = "random";
  return c;
}

}  // namespace tessera::testing
