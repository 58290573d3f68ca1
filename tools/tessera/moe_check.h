// The result of a timed run against the fp64 oracle, on a few tokens: only their experts' weights are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "moe_bench.h"
#include "tessera/moe/layer_config.h"

namespace tessera::cli {

/// Copies `bytes` from the memory in which the layer runs to the host's.
using CopyToHost = std::function<void(void* to, const void* from, size_t bytes)>;

/// Tokens that are checked, from the first to the last of `num_tokens`.
std::vector<int32_t> sampled_tokens(int32_t num_tokens);

/// The largest error of inputs.out[token], as a part of what the numeric policy allows for each element; infinite if
/// an element is not finite. ids are int32; biases, maps and shared experts are not looked at.
double error_of_bound(const moe::LayerConfig& config, const moe::LayerWeights& weights, const moe::LayerInputs& inputs,
                      int32_t token, const CopyToHost& copy);

}  // namespace tessera::cli
