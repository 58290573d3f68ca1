// How the weights of an MoE layer are stored; tokens, biases and output have a dtype of their own.
#pragma once

#include <cstdint>
#include <string_view>

namespace tessera::moe {

enum class WeightFormat : uint8_t {
  dense,  ///< elements of the layer's dtype, no scales
  /// e4m3 elements (core/e4m3.h), an f32 scale each 128 x 128 of them: W[o, i] = e4m3(w[o, i]) * scale[o/128, i/128].
  /// Tokens and the intermediate are quantised too, one scale each 128 columns of a row. Widths: multiples of 16.
  fp8_block,
  /// e4m3 elements, an f32 scale each row: W[o, i] = e4m3(w[o, i]) * scale[o], which multiplies the row's finished sum.
  /// Tokens have one scale each, the intermediate one each 128 columns; either may be given instead, see
  /// LayerConfig::num_gate_up_input_scales. Widths: multiples of 16.
  fp8_channel,
};

/// "dense", "fp8-block", "fp8-channel"
std::string_view weight_format_name(WeightFormat format);

/// The format of a number, as C and files have it. Throws Error that lists the names for a number that is none.
WeightFormat weight_format(int64_t number);

/// Throws Error that lists the names for one that is not among them; `where` names the argument.
WeightFormat parse_weight_format(std::string_view name, const char* where);

}  // namespace tessera::moe
