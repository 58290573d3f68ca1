// What stands between and after an expert's two products: activations and the weighted sum. fp32, each operation
// rounded to nearest and none fused, so that every vector unit gives the same bits.
#pragma once

#include <cstdint>

#include "tessera/core/activation.h"

namespace tessera::cpu {

/// h[i] = act(gate[i]) * up[i]; see core/activation.h. h must not overlap the others. NaN stays NaN.
void apply_gated(const Activation& activation, const float* gate, const float* up, int64_t size, float* h);

/// h[i] = act(x[i]), for the kinds that need no gate.
void apply_plain(const Activation& activation, const float* x, int64_t size, float* h);

/// even[i] = pairs[2 i], odd[i] = pairs[2 i + 1] for i < size.
void split_pairs(const float* pairs, int64_t size, float* even, float* odd);

/// sum[i] = sum[i] + weight * values[i].
void add_weighted(const float* values, float weight, int64_t size, float* sum);

}  // namespace tessera::cpu
