// The arithmetic of the oracle, element by element: oracle.cc goes through it on the host, its twin on a device
// (tests/gpu/moe/reference.cu) with a warp a product, to the same bits.
//
// For that, nothing here is left to a library or to a compiler: exp and erfc are their own, a product whose sum is
// taken is exact in fp64 (element times element, which have 24 bits at most), rounded on its own (of quantised
// operands, each an element times a scale) or an explicit fma, and a product is summed in kLanes interleaved parts,
// which a tree adds up.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "moe/layer_layout.h"
#include "tessera/core/e4m3.h"
#include "tessera/core/host_device.h"
#include "tessera/moe/layer_config.h"

namespace tessera::moe::oracle_math {

inline constexpr int kLanes = 32;  // a warp's

/// a * b, rounded on its own: no sum is fused with it. (Host code is compiled without contraction.)
TESSERA_HOST_DEVICE inline double apart(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

struct Value {
  double value = 0.0;
  double error = 0.0;  // bound on that of a right computation
};

/// Sums of a product, or of a part of one.
struct Dot {
  double sum = 0.0;
  double error = 0.0;
  double magnitude = 0.0;

  TESSERA_HOST_DEVICE void add(double value, double weight) {
    const double product = apart(value, weight);  // exact, or of operands with scales
    sum += product;
    magnitude += fabs(product);
  }
  TESSERA_HOST_DEVICE void add(Value value, double weight) {
    add(value.value, weight);
    error += apart(value.error, fabs(weight));
  }
  TESSERA_HOST_DEVICE void add(const Dot& other) {
    sum += other.sum;
    error += other.error;
    magnitude += other.magnitude;
  }
};

/// exp within 2 units in the last place; below -700 it is 0, above 709 infinite.
TESSERA_HOST_DEVICE inline double exponential(double x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0;
  constexpr double kLn2 = 0x1.62e42fefa39efp-1, kLn2Rest = 0x1.abc9e3b39803fp-56;
  if (x != x) return x;
  if (x < -700.0) return 0.0;
  if (x > 709.0) return std::numeric_limits<double>::infinity();
  const double n = rint(x * kLog2E);
  const double r = fma(n, -kLn2Rest, fma(n, -kLn2, x));
  // The power series up to r^14 / 14!, |r| <= ln 2 / 2: the rest is below 2^-60.
  constexpr int kTerms = 14;
  double series = 1.0;
  for (int k = kTerms; k > 0; --k) series = fma(series, r / k, 1.0);
  return series * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(n) + 1023) << 52);
}

TESSERA_HOST_DEVICE inline double sigmoid(double x) { return 1.0 / (1.0 + exponential(-x)); }

/// erfc within 1e-13 of its value: below 2 the series of erf with positive terms, from there on the continued fraction.
TESSERA_HOST_DEVICE inline double complementary_error_function(double x) {
  constexpr double kTwoOverRootPi = 0x1.20dd750429b6dp+0, kOneOverRootPi = 0x1.20dd750429b6dp-1;
  constexpr int kTerms = 60, kFractions = 100;
  if (x != x) return x;
  const double a = fabs(x);
  const double scale = exponential(-(a * a));
  if (a < 2.0) {
    const double twice = 2.0 * a * a;
    double term = a, sum = a;
    for (int n = 1; n <= kTerms; ++n) {
      term = term * twice / (2 * n + 1);  // a quotient: the sum cannot be fused with it
      sum += term;
    }
    return fma(x < 0.0 ? kTwoOverRootPi * scale : -(kTwoOverRootPi * scale), sum, 1.0);
  }
  double fraction = a;
  for (int n = kFractions; n > 0; --n) fraction = a + 0.5 * n / fraction;
  const double tail = kOneOverRootPi * scale / fraction;
  return x < 0.0 ? 2.0 - tail : tail;
}

TESSERA_HOST_DEVICE inline double activated(const Activation& a, double x) {
  constexpr double kTwiceRootTwoOverPi = 2.0 * 0.7978845608028654, kRootOneHalf = 0.7071067811865476;
  switch (a.kind) {
    case ActivationKind::silu: return x * sigmoid(x);
    case ActivationKind::gelu_tanh: return x * sigmoid(kTwiceRootTwoOverPi * fma(0.044715 * x * x, x, x));
    case ActivationKind::gelu_erf: return 0.5 * x * complementary_error_function(-x * kRootOneHalf);
    case ActivationKind::relu: return x > 0.0 ? x : 0.0;
    case ActivationKind::relu_squared: return x > 0.0 ? x * x : 0.0;
    case ActivationKind::identity: return x;
    case ActivationKind::clamped_swiglu: break;
  }
  const double limit = a.limit;
  const double gate = limit < x ? limit : x;
  return gate * sigmoid(a.alpha * gate);
}

/// An upper bound of |d act / dx| near x: at most 1.13 for GELU and 1.1 for SiLU.
TESSERA_HOST_DEVICE inline double slope(const Activation& a, double x) {
  return a.kind == ActivationKind::relu_squared ? fma(2.0, fabs(x), 1e-3) : 1.2;
}

// Errors of the activation itself: a few fp32 operations.
inline constexpr double kActivationUnits = 8 * 0x1p-24;

TESSERA_HOST_DEVICE inline Value gated(const Activation& a, Value gate, Value up) {
  double u = up.value;
  if (a.kind == ActivationKind::clamped_swiglu) {
    const double limit = a.limit;
    u = (u < -limit ? -limit : u > limit ? limit : u) + a.beta;
  }
  const double act = activated(a, gate.value);
  const double h = act * u;
  const double of_up = fma(fabs(act), up.error, kActivationUnits * fabs(h));
  return {h, fma(slope(a, gate.value) * gate.error, fabs(u) + up.error, of_up)};
}

TESSERA_HOST_DEVICE inline Value plain(const Activation& a, Value x) {
  const double h = activated(a, x.value);
  return {h, fma(slope(a, x.value), x.error, kActivationUnits * fabs(h))};
}

/// Of a type's numbers: bits of the significand with the leading one, power of the smallest normal one, the largest.
struct Format {
  int digits;
  int least_power;
  double largest;
};

TESSERA_HOST_DEVICE inline Format format_of(DType dtype) {
  if (dtype == DType::f16) return {11, -14, 65504.0};
  if (dtype == DType::bf16) return {8, -126, 0x1.FEp127};
  return {24, -126, 0x1.FFFFFEp127};
}

TESSERA_HOST_DEVICE inline double power_of_two(int power) {
  return std::bit_cast<double>(static_cast<uint64_t>(power + 1023) << 52);
}

/// Half the distance from 1 to the next number of the type.
TESSERA_HOST_DEVICE inline double unit_roundoff(DType dtype) { return power_of_two(-format_of(dtype).digits); }

/// Rounded once to the type, to nearest even; too large ones become infinite.
TESSERA_HOST_DEVICE inline double rounded_to(double value, DType dtype) {
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const int power = static_cast<int>(bits >> 52 & 0x7FF) - 1023;
  if (power == 1024 || value == 0.0) return value;  // infinite, NaN, zero
  const Format format = format_of(dtype);
  const double step = power_of_two((power > format.least_power ? power : format.least_power) - format.digits + 1);
  const double result = rint(value / step) * step;
  if (fabs(result) <= format.largest) return result;
  return value < 0.0 ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
}

/// Rounded to the type, as what is kept between the steps of a layer: a right one may have rounded the other way.
TESSERA_HOST_DEVICE inline Value kept(Value value, DType dtype) {
  const double rounded = rounded_to(value.value, dtype);
  return {rounded, fma(2.0 * unit_roundoff(dtype), fabs(rounded), value.error)};
}

/// Of a group of a row that becomes e4m3: its scale, what its values are multiplied by, and how far from it,
/// relatively, the scale of a right computation may lie.
struct GroupScale {
  float scale;
  float inverse;
  double spread;
};

/// Of the `count` Values of a group, values(0), values(1), ...
template <class Values>
TESSERA_HOST_DEVICE inline GroupScale group_scale(int64_t count, const Values& values) {
  uint32_t amax_bits = 0;
  double amax = kLeastAmax, low = kLeastAmax, high = kLeastAmax;
  for (int64_t i = 0; i < count; ++i) {
    const Value value = values(i);
    const uint32_t bits = magnitude_bits(static_cast<float>(value.value));
    amax_bits = bits > amax_bits ? bits : amax_bits;
    const double magnitude = fabs(value.value);
    amax = magnitude > amax ? magnitude : amax;
    low = magnitude - value.error > low ? magnitude - value.error : low;
    high = magnitude + value.error > high ? magnitude + value.error : high;
  }
  const float scale = e4m3_scale(amax_bits);
  const double above = high / amax - 1.0, below = 1.0 - low / amax;
  return {scale, e4m3_inverse_scale(scale), 0x1p-22 + (above > below ? above : below)};
}

/// Of a static scale: every right computation has it.
TESSERA_HOST_DEVICE inline GroupScale given_scale(float scale) { return {scale, e4m3_inverse_scale(scale), 0x1p-22}; }

/// A value without an error, after it was quantised.
TESSERA_HOST_DEVICE inline double quantized(double value, const GroupScale& group) {
  return apart(e4m3_to_f32(e4m3_code(static_cast<float>(value), group.inverse)), group.scale);
}

/// The same of one with an error: a right computation may have any of the codes between those of its ends.
TESSERA_HOST_DEVICE inline Value quantized(Value value, const GroupScale& group) {
  const auto decoded = [&](double v) {
    return static_cast<double>(e4m3_to_f32(e4m3_code(static_cast<float>(v), group.inverse)));
  };
  const double code = decoded(value.value);
  const double room = fma(group.spread, fabs(value.value), value.error);
  const double up = decoded(value.value + room) - code, down = code - decoded(value.value - room);
  const double step = up > down ? up : down;
  return {apart(code, group.scale), apart(fma(group.spread, fabs(code) + step, step), group.scale)};
}

TESSERA_HOST_DEVICE inline double element(const void* values, DType dtype, int64_t index) {
  if (dtype == DType::f32) return static_cast<const float*>(values)[index];
  const uint16_t bits = static_cast<const uint16_t*>(values)[index];
  return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

/// The expert of these weights that slot number `slot` of [T, k] names, or -1.
TESSERA_HOST_DEVICE inline int64_t expert_of_slot(const LayerConfig& config, const LayerWeights& weights,
                                                  const LayerInputs& inputs, int64_t slot) {
  const int64_t id = inputs.ids_are_64_bit ? static_cast<const int64_t*>(inputs.topk_ids)[slot]
                                           : static_cast<const int32_t*>(inputs.topk_ids)[slot];
  int64_t number = -1;
  if (config.num_mapped_experts != 0) {
    if (id >= 0 && id < config.num_mapped_experts) number = weights.expert_map[id];
  } else if (id >= config.first_expert) {
    number = id - config.first_expert;
  }
  return number >= 0 && number < config.num_experts ? number : -1;
}

/// One expert's matrices, the shared one's too.
struct Expert {
  const void* gate_up;
  const void* down;
  const void* gate_up_bias;
  const void* down_bias;
  int64_t number;             // in these arrays
  int64_t width;              // of the intermediate
  const void* gate_up_scale;  // null: the format has none
  const void* down_scale;
  ScaleOffsets offsets;
  const float* x_scale;  // static; null: made of each row
  const float* h_scale;
};

TESSERA_HOST_DEVICE inline Expert routed_expert(const LayerConfig& config, const LayerWeights& weights,
                                                int64_t number) {
  return {weights.gate_up,
          weights.down,
          weights.gate_up_bias,
          weights.down_bias,
          number,
          config.intermediate_size,
          weights.gate_up_scale,
          weights.down_scale,
          config.scale_offsets,
          input_scale(weights.gate_up_input_scale, config.num_gate_up_input_scales, number),
          input_scale(weights.down_input_scale, config.num_down_input_scales, number)};
}
TESSERA_HOST_DEVICE inline Expert shared_expert(const LayerConfig& config, const LayerWeights& weights) {
  return {weights.shared_gate_up,
          weights.shared_down,
          nullptr,
          nullptr,
          0,
          config.shared_intermediate_size,
          weights.shared_gate_up_scale,
          weights.shared_down_scale,
          {},
          input_scale(weights.gate_up_input_scale, config.num_gate_up_input_scales, config.num_experts),
          input_scale(weights.down_input_scale, config.num_down_input_scales, config.num_experts)};
}

/// The elements of a layer. `Side` is where it runs: weight(matrix, index) reads an element of a weight without its
/// scale, and sum(depth, values, weights) adds values(i) * weights(i): part l those of i = l, l + kLanes, ..., and then
/// to each part the one at distance 16, 8, 4, 2, 1.
template <class Side>
struct Elements {
  const Side& side;
  const LayerConfig& config;
  double accumulator_unit;
  int64_t block_rows = kScaleGroup, block_columns = kScaleGroup;  // of the weights that share a scale

  /// A scale for each row, which stand in the order of the rows.
  TESSERA_HOST_DEVICE bool scales_rows() const { return block_columns == kWholeRow; }

  /// The scales of row `row` of matrix number `matrix` of [.., rows, depth], all counted from where the first block
  /// begins; null where there are none.
  TESSERA_HOST_DEVICE const float* row_scales(const void* scales, int64_t matrix, int64_t rows, int64_t row,
                                              int64_t depth) const {
    if (scales == nullptr) return nullptr;
    const int64_t in_matrix = (rows + block_rows - 1) / block_rows,
                  in_row = (depth + block_columns - 1) / block_columns;
    return static_cast<const float*>(scales) + (matrix * in_matrix + row / block_rows) * in_row;
  }

  /// Row `row` of a matrix [rows, depth] with these scales times values(0), values(1), ..., plus the bias; its error by
  /// the sum of magnitudes. Its columns begin `offset` into the first block of scales.
  template <class Values>
  TESSERA_HOST_DEVICE Value product(const void* matrix, const float* scales, int64_t row, int64_t depth,
                                    const Values& values, const void* bias, int64_t offset = 0) const {
    Dot dot = side.sum(depth, values, [&](int64_t i) {
      const double weight = side.weight(matrix, row * depth + i);
      return scales == nullptr ? weight : weight * scales[(offset + i) / block_columns];  // exact
    });
    if (bias != nullptr) {
      const double b = element(bias, config.dtype, row);
      dot.sum += b;
      dot.magnitude += fabs(b);
    }
    return {dot.sum, fma(4.0 * accumulator_unit, dot.magnitude, dot.error)};
  }

  /// Column `column` of an expert's intermediate, rounded; x(i) is the token, a double.
  template <class Values>
  TESSERA_HOST_DEVICE Value intermediate(const Expert& e, const Values& x, int64_t column) const {
    return kept(activation(e, x, column), config.dtype);
  }

  /// The same before it is rounded, or quantised.
  template <class Values>
  TESSERA_HOST_DEVICE Value activation(const Expert& e, const Values& x, int64_t column) const {
    const int64_t depth = config.hidden_size;
    const int64_t gate_offset = e.offsets.gate, up_offset = e.offsets.up;
    const int64_t scale_rows = e.width + (gate_offset > up_offset ? gate_offset : up_offset);
    if (!config.gated) {
      const float* scales = row_scales(e.gate_up_scale, e.number, scale_rows, gate_offset + column, depth);
      const Value value = product(e.gate_up, scales, e.number * e.width + column, depth, x, e.gate_up_bias);
      return plain(config.activation, engine_rounded(value));
    }
    const int64_t first = e.number * 2 * e.width;
    // Of [E, 2, I, H] or [E, I, 2, H], in which gate is number `half`.
    const auto half_row = [&](int64_t half) {
      return first + (config.gate_up_order == GateUpOrder::interleaved ? 2 * column + half : half * e.width + column);
    };
    const int64_t gate_half = config.gate_up_order == GateUpOrder::up_first ? 1 : 0;
    const auto scales_of = [&](int64_t half, int64_t row, int64_t offset) {
      return scales_rows() ? row_scales(e.gate_up_scale, 0, 0, row, depth)
                           : row_scales(e.gate_up_scale, 2 * e.number + half, scale_rows, offset + column, depth);
    };
    const int64_t gate_row = half_row(gate_half), up_row = half_row(1 - gate_half);
    const Value gate = product(e.gate_up, scales_of(0, gate_row, gate_offset), gate_row, depth, x, e.gate_up_bias);
    const Value up = product(e.gate_up, scales_of(1, up_row, up_offset), up_row, depth, x, e.gate_up_bias);
    return oracle_math::gated(config.activation, engine_rounded(gate), engine_rounded(up));
  }

  /// What engines keep in memory, where the layer is told to.
  TESSERA_HOST_DEVICE Value engine_rounded(Value value) const {
    return config.round_like_engines ? kept(value, config.dtype) : value;
  }

  /// Column `column` of an expert's row, rounded; h(i) is its intermediate, a Value.
  template <class Values>
  TESSERA_HOST_DEVICE Value row(const Expert& e, const Values& h, int64_t column) const {
    const int64_t offset = e.offsets.down;
    const float* scales = row_scales(e.down_scale, e.number, config.hidden_size, column, offset + e.width);
    return kept(product(e.down, scales, e.number * config.hidden_size + column, e.width, h, e.down_bias, offset),
                config.dtype);
  }
};

/// What the slots of a token add up to, in their order.
struct Combined {
  Value sum;
  double magnitude = 0.0;

  TESSERA_HOST_DEVICE void add(double weight, Value row) {
    const double product = weight * row.value;  // exact
    sum.value += product;
    sum.error = fma(fabs(weight), row.error, sum.error);
    magnitude += fabs(product);
  }
  /// How far from sum.value a right result, rounded to the type, may lie.
  TESSERA_HOST_DEVICE double bound(DType dtype) const {
    return fma(4 * 0x1p-24, magnitude, fma(2.0 * unit_roundoff(dtype), fabs(sum.value), sum.error));
  }
};

}  // namespace tessera::moe::oracle_math
