// Output layer: a warp a record.
//
//   lane l adds x[l] w[l] + x[l + 32] w[l + 32] + ... for a few classes at once; the lanes' sums meet in a butterfly.
#pragma once

#include <cstdint>

#include "cuda/kernels/output_layer/launch.h"
#include "cuda/kernels/output_layer/policy.h"
#include "cuda/ptx/cluster.cuh"

namespace tessera::kernels::output_layer {

inline constexpr Policy kPolicy = default_policy();
inline constexpr int kLanes = 32;
inline constexpr int kWarps = kPolicy.threads / kLanes;
inline constexpr int kClasses = kPolicy.classes_at_a_time;
inline constexpr uint32_t kAllLanes = 0xFFFFFFFFu;

__global__ void __launch_bounds__(kPolicy.threads, kPolicy.min_ctas)
    output_layer_kernel(const __grid_constant__ Args args) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kLanes;
  const int64_t record = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (record >= args.num_records) return;  // the whole warp
  const float* x = args.x + record * args.stride;
  for (int32_t first_class = 0; first_class < args.num_classes; first_class += kClasses) {
    const float* weight[kClasses];
    float sum[kClasses] = {};
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      // Missing classes repeat the last one; what comes of them is not written.
      const int32_t row = min(first_class + c, args.num_classes - 1);
      weight[c] = args.weight + static_cast<int64_t>(row) * args.in_features;
    }
#pragma unroll 4
    for (int32_t i = lane; i < args.in_features; i += kLanes) {
      const float value = __ldg(&x[i]);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) sum[c] = __fmaf_rn(value, __ldg(&weight[c][i]), sum[c]);
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
#pragma unroll
      for (int distance = kLanes / 2; distance > 0; distance /= 2)
        sum[c] = __fadd_rn(sum[c], __shfl_xor_sync(kAllLanes, sum[c], distance));
      if (lane == c && first_class + c < args.num_classes) {
        args.logits[record * args.num_classes + first_class + c] =
            __fadd_rn(sum[c], __ldg(&args.bias[first_class + c]));
      }
    }
  }
}

}  // namespace tessera::kernels::output_layer
