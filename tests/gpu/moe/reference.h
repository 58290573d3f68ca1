// The slow, obvious mixture-of-experts layer in fp64 on the device: what tests and benchmarks compare with.
//
// It rounds where the layer declares to: the intermediate, the expert's rows and the output, once each, to the layer's
// type. No tiling, no plan: every (token, slot) is computed on its own from topk_ids.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/moe/cuda_layer.h"

namespace tessera::testing {

struct ReferenceResult {
  std::vector<double> out;    // [num_tokens, H], before the last rounding
  std::vector<double> bound;  // [num_tokens, H]: the largest |kernel - out| that the numeric policy (c) allows
};

// `tokens` are the rows of x that are wanted, in any order; inputs as for CudaLayer (device memory). Synchronises.
ReferenceResult reference_layer(const moe::LayerConfig& config, const moe::LayerWeights& weights,
                                const moe::LayerInputs& inputs, const std::vector<int32_t>& tokens);

// Standard normal numbers times `scale`, the same for the same seed; device memory, 16-bit elements.
void fill_normal(DType dtype, void* data, size_t count, float scale, uint64_t seed);
// Small integers in [-limit, limit], zero with probability `zero_percent`.
void fill_integers(DType dtype, void* data, size_t count, int limit, int zero_percent, uint64_t seed);

}  // namespace tessera::testing
