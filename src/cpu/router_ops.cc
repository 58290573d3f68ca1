#include "cpu/router_ops.h"

#include <algorithm>

#include "cpu/vector_clones.h"
#include "tessera/core/exact_math.h"

namespace tessera::cpu {

TESSERA_VECTOR_CLONES void sigmoid(const float* values, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = exact_sigmoid(values[i]);
}

TESSERA_VECTOR_CLONES void exp_below(const float* values, float largest, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) {
    const float power = exp_nonpositive(exact_add(values[i], -largest));
    out[i] = values[i] == largest ? 1.0f : power;
  }
}

TESSERA_VECTOR_CLONES float warp_sum(const float* values, int64_t size) {
  constexpr int64_t kLanes = 32;
  float partial[kLanes] = {};
  for (int64_t begin = 0; begin < size; begin += kLanes) {
    const int64_t lanes = std::min(kLanes, size - begin);
    for (int64_t lane = 0; lane < lanes; ++lane) partial[lane] = exact_add(partial[lane], values[begin + lane]);
  }
  for (int64_t distance = kLanes / 2; distance > 0; distance /= 2) {
    for (int64_t lane = 0; lane < distance; ++lane) partial[lane] = exact_add(partial[lane], partial[lane + distance]);
  }
  return partial[0];
}

}  // namespace tessera::cpu
