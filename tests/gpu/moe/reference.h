// The oracle on the device (src/moe/judge/oracle_math.h), a warp a sum: where the host's would take too long. Bit-equal
// to it, which battery_test.cc looks at. And numbers that are made on the device, for layers of real sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/judge/oracle.h"
#include "tessera/moe/cuda_layer.h"

namespace tessera::testing {

/// `tokens` are the rows of x that are wanted, in any order; inputs as for CudaLayer (device memory). Synchronises.
moe::OracleResult reference_layer(const moe::LayerConfig& config, const moe::LayerWeights& weights,
                                  const moe::LayerInputs& inputs, const std::vector<int32_t>& tokens,
                                  double accumulator_unit = moe::kWgmmaAccumulatorUnit);

/// Standard normal numbers times `scale`, the same for the same seed; device memory, 16-bit elements.
void fill_normal(DType dtype, void* data, size_t count, float scale, uint64_t seed);

}  // namespace tessera::testing
