// How the weights of an MoE layer are stored; tokens, biases and output have a dtype of their own.
#pragma once

#include <cstdint>
#include <string_view>

namespace tessera::moe {

enum class WeightFormat : uint8_t {
  dense,  ///< elements of the layer's dtype, no scales
};

/// "dense"
std::string_view weight_format_name(WeightFormat format);

/// The format of a number, as C and files have it. Throws Error that lists the names for a number that is none.
WeightFormat weight_format(int64_t number);

/// Throws Error that lists the names for one that is not among them; `where` names the argument.
WeightFormat parse_weight_format(std::string_view name, const char* where);

}  // namespace tessera::moe
