// The vector loops of a router: scores of one row and sums in the fixed order of tessera/moe/router.h.
#pragma once

#include <cstdint>

namespace tessera::cpu {

/// out[i] = exact_sigmoid(values[i]).
void sigmoid(const float* values, int64_t size, float* out);

/// out[i] = 1 where values[i] == largest, else exp_nonpositive(values[i] - largest); NaN gives 0.
void exp_below(const float* values, float largest, int64_t size, float* out);

/// The sum in 32 partial sums and a tree, as a warp adds.
float warp_sum(const float* values, int64_t size);

}  // namespace tessera::cpu
