#include "moe/judge/oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "moe/formats.h"
#include "moe/layer_layout.h"

namespace tessera::moe {
namespace {

struct Format {
  int digits;       // of the significand, the leading one included
  int least_power;  // of the smallest normal number
  double largest;
};

Format format_of(DType dtype) {
  if (dtype == DType::f16) return {11, -14, 65504.0};
  if (dtype == DType::bf16) return {8, -126, 0x1.FEp127};
  return {24, -126, std::numeric_limits<float>::max()};
}

double element(const void* values, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

struct Value {
  double value = 0;
  double error = 0;  // bound on that of a right computation
};

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activated(const Activation& a, double x) {
  switch (a.kind) {
    case ActivationKind::silu: return x * sigmoid(x);
    case ActivationKind::gelu_tanh: return x * sigmoid(2.0 * 0.7978845608028654 * (x + 0.044715 * x * x * x));
    case ActivationKind::gelu_erf: return 0.5 * x * std::erfc(-x * 0.7071067811865476);
    case ActivationKind::relu: return x > 0.0 ? x : 0.0;
    case ActivationKind::relu_squared: return x > 0.0 ? x * x : 0.0;
    case ActivationKind::identity: return x;
    case ActivationKind::clamped_swiglu: break;
  }
  const double gate = std::min(x, double{a.limit});
  return gate * sigmoid(a.alpha * gate);
}

// An upper bound of |d act / dx| near x: at most 1.13 for GELU and 1.1 for SiLU.
double slope(const Activation& a, double x) {
  return a.kind == ActivationKind::relu_squared ? 2.0 * std::abs(x) + 1e-3 : 1.2;
}

// Errors of the activation itself: a few fp32 operations.
constexpr double kActivationUnits = 8 * 0x1p-24;

Value gated(const Activation& a, Value gate, Value up) {
  double u = up.value;
  if (a.kind == ActivationKind::clamped_swiglu) {
    const double limit = a.limit;
    u = std::clamp(u, -limit, limit) + a.beta;
  }
  const double act = activated(a, gate.value);
  const double h = act * u;
  return {h, slope(a, gate.value) * gate.error * (std::abs(u) + up.error) + std::abs(act) * up.error +
                 kActivationUnits * std::abs(h)};
}

Value plain(const Activation& a, Value x) {
  const double h = activated(a, x.value);
  return {h, slope(a, x.value) * x.error + kActivationUnits * std::abs(h)};
}

// One expert's matrices, the shared one's too.
struct Expert {
  const void* gate_up;
  const void* down;
  const void* gate_up_bias;
  const void* down_bias;
  int64_t number;  // in these arrays
  int64_t width;   // of the intermediate
};

class Oracle {
 public:
  Oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs, double accumulator_unit)
      : config_(config),
        weights_(weights),
        inputs_(inputs),
        decode_(format_row(config.weight_format).decode),
        u_(unit_roundoff(config.dtype)),
        u_acc_(accumulator_unit) {}

  // One token's out and bound, [H] each.
  void token(int32_t token, double* out, double* bound) {
    const auto hidden = static_cast<size_t>(config_.hidden_size);
    sums_.assign(hidden, {});
    magnitudes_.assign(hidden, 0.0);
    x_.resize(hidden);
    for (size_t i = 0; i < hidden; ++i)
      x_[i] = element(inputs_.x, config_.dtype, int64_t{token} * config_.hidden_size + static_cast<int64_t>(i));
    for (int64_t slot = int64_t{token} * config_.top_k; slot < (int64_t{token} + 1) * config_.top_k; ++slot) {
      const int64_t number = expert_number(slot);
      if (number < 0) continue;
      add({weights_.gate_up, weights_.down, weights_.gate_up_bias, weights_.down_bias, number,
           config_.intermediate_size},
          topk_weight(inputs_, slot));
    }
    if (config_.shared_intermediate_size != 0) {
      add({weights_.shared_gate_up, weights_.shared_down, nullptr, nullptr, 0, config_.shared_intermediate_size},
          inputs_.shared_weight == nullptr ? 1.0 : inputs_.shared_weight[token]);
    }
    for (size_t c = 0; c < hidden; ++c) {
      out[c] = sums_[c].value;
      bound[c] = sums_[c].error + 2 * u_ * std::abs(out[c]) + 4 * 0x1p-24 * magnitudes_[c];
    }
  }

 private:
  // The expert of these weights, or -1.
  int64_t expert_number(int64_t slot) const {
    const int64_t id = inputs_.ids_are_64_bit ? static_cast<const int64_t*>(inputs_.topk_ids)[slot]
                                              : static_cast<const int32_t*>(inputs_.topk_ids)[slot];
    if (config_.num_mapped_experts != 0) {
      const bool known = id >= 0 && id < config_.num_mapped_experts;
      const int64_t number = known ? weights_.expert_map[id] : -1;
      return number < config_.num_experts ? std::max<int64_t>(number, -1) : -1;
    }
    for (int64_t number = 0; number < config_.num_experts; ++number) {
      if (id == config_.first_expert + number) return number;
    }
    return -1;
  }

  // Row `row` of a matrix [rows, values.size()] times the values, plus the bias; its error by the sum of magnitudes.
  Value product(const void* matrix, int64_t row, const std::vector<Value>& values, const void* bias) const {
    Value sum;
    double magnitude = 0;
    const auto depth = static_cast<int64_t>(values.size());
    for (int64_t i = 0; i < depth; ++i) {
      const double weight = decode_(matrix, config_.dtype, row * depth + i);
      const Value& value = values[static_cast<size_t>(i)];
      sum.value += value.value * weight;
      sum.error += value.error * std::abs(weight);
      magnitude += std::abs(value.value * weight);
    }
    if (bias != nullptr) {
      const double b = element(bias, config_.dtype, row);
      sum.value += b;
      magnitude += std::abs(b);
    }
    sum.error += 4 * u_acc_ * magnitude;
    return sum;
  }

  Value intermediate(const Expert& e, const std::vector<Value>& x, int64_t column) const {
    if (!config_.gated)
      return plain(config_.activation, product(e.gate_up, e.number * e.width + column, x, e.gate_up_bias));
    const int64_t first = e.number * 2 * e.width;
    // Of [E, 2, I, H] or [E, I, 2, H], in which gate is number `half`.
    const auto row = [&](int64_t half) {
      return first + (config_.gate_up_order == GateUpOrder::interleaved ? 2 * column + half : half * e.width + column);
    };
    const int64_t gate_half = config_.gate_up_order == GateUpOrder::up_first ? 1 : 0;
    return gated(config_.activation, product(e.gate_up, row(gate_half), x, e.gate_up_bias),
                 product(e.gate_up, row(1 - gate_half), x, e.gate_up_bias));
  }

  void add(const Expert& e, double weight) {
    std::vector<Value> x;
    for (const double value : x_) x.push_back({value, 0.0});
    std::vector<Value> h;
    for (int64_t column = 0; column < e.width; ++column) {
      Value value = intermediate(e, x, column);
      value.value = rounded_to(value.value, config_.dtype);
      value.error += 2 * u_ * std::abs(value.value);
      h.push_back(value);
    }
    for (size_t c = 0; c < sums_.size(); ++c) {
      Value y = product(e.down, e.number * config_.hidden_size + static_cast<int64_t>(c), h, e.down_bias);
      y.value = rounded_to(y.value, config_.dtype);
      y.error += 2 * u_ * std::abs(y.value);
      sums_[c].value += weight * y.value;
      sums_[c].error += std::abs(weight) * y.error;
      magnitudes_[c] += std::abs(weight * y.value);
    }
  }

  const LayerConfig& config_;
  const LayerWeights& weights_;
  const LayerInputs& inputs_;
  double (*decode_)(const void* weights, DType dtype, int64_t index);
  double u_;
  double u_acc_;
  std::vector<double> x_;
  std::vector<Value> sums_;
  std::vector<double> magnitudes_;
};

}  // namespace

double unit_roundoff(DType dtype) { return std::ldexp(1.0, -format_of(dtype).digits); }

double rounded_to(double value, DType dtype) {
  if (!std::isfinite(value) || value == 0.0) return value;
  const Format format = format_of(dtype);
  const int power = std::max(std::ilogb(value), format.least_power);
  const double step = std::ldexp(1.0, power - format.digits + 1);
  const double result = std::nearbyint(value / step) * step;
  return std::abs(result) > format.largest ? std::copysign(std::numeric_limits<double>::infinity(), value) : result;
}

OracleResult oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                    std::span<const int32_t> tokens, double accumulator_unit) {
  const size_t hidden = static_cast<size_t>(config.hidden_size);
  OracleResult result{std::vector<double>(tokens.size() * hidden), std::vector<double>(tokens.size() * hidden)};
  Oracle reference(config, weights, inputs, accumulator_unit);
  for (size_t i = 0; i < tokens.size(); ++i)
    reference.token(tokens[i], result.out.data() + i * hidden, result.bound.data() + i * hidden);
  return result;
}

OracleResult oracle(const LayerConfig& config, const LayerWeights& weights, const LayerInputs& inputs,
                    double accumulator_unit) {
  std::vector<int32_t> tokens(static_cast<size_t>(inputs.num_tokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  return oracle(config, weights, inputs, tokens, accumulator_unit);
}

}  // namespace tessera::moe
