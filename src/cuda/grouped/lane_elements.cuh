// Quantising to e4m3 by lanes: eight have the 128 columns of a row that share a scale, 16 elements each.
#pragma once

#include <cstdint>

#include "cuda/cta/element.cuh"
#include "cuda/grouped/quantize_rows.cuh"
#include "cuda/ptx/warp.cuh"

namespace tessera::grouped {

inline constexpr int kLaneElements = 16;
inline constexpr int kGroupLanes = kScaleGroup / kLaneElements;

// A lane's part of a row's group of columns, in fp32.
struct LaneElements {
  float values[kLaneElements];

  // What does not exist is zero. Sources are 16-byte aligned.
  template <class Element>
  __device__ void load(const Element* source, bool exists) {
    uint4 parts[2] = {};
    if (exists) {
      parts[0] = reinterpret_cast<const uint4*>(source)[0];
      parts[1] = reinterpret_cast<const uint4*>(source)[1];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t words[4] = {parts[i].x, parts[i].y, parts[i].z, parts[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = cta::unpack2(Element{}, words[j]);
        values[8 * i + 2 * j] = pair.x;
        values[8 * i + 2 * j + 1] = pair.y;
      }
    }
  }

  // Past L1: other multiprocessors may have written them while this kernel runs.
  __device__ void load(const float* source, bool exists) {
#pragma unroll
    for (int i = 0; i < kLaneElements / 4; ++i) {
      float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (exists) part = __ldcg(reinterpret_cast<const float4*>(source) + i);
      values[4 * i + 0] = part.x;
      values[4 * i + 1] = part.y;
      values[4 * i + 2] = part.z;
      values[4 * i + 3] = part.w;
    }
  }

  // The largest magnitude, or `amax` if that is larger.
  __device__ float largest(float amax = 0.0f) const {
#pragma unroll
    for (float value : values) amax = ptx::max_or_nan(amax, fabsf(value));
    return amax;
  }

  // Of the group. By all lanes of the warp.
  __device__ float group_largest() const {
    float amax = largest();
#pragma unroll
    for (int distance = 1; distance < kGroupLanes; distance *= 2)
      amax = ptx::max_or_nan(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
    return amax;
  }

  __device__ uint4 codes(float scale) const {
    const float inverse = __frcp_rn(scale);
    uint32_t words[kLaneElements / 4];
#pragma unroll
    for (int i = 0; i < kLaneElements / 4; ++i) {
      const uint32_t low = quantize_pair(values[4 * i], values[4 * i + 1], inverse);
      const uint32_t high = quantize_pair(values[4 * i + 2], values[4 * i + 3], inverse);
      words[i] = low | high << 16;
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

}  // namespace tessera::grouped
