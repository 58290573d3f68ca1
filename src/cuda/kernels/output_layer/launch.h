// The last linear layer, in fp32 always: logits[n, c] = b[c] + sum_i x[n, i] w[c, i].
//
// A warp a record; lanes add their parts in a fixed tree, so that a record's bits depend on it alone.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tessera::kernels::output_layer {

struct Args {
  const float* x;       // [N, stride]
  int64_t stride;       // elements from row to row
  const float* weight;  // [classes, in_features]
  const float* bias;    // [classes]
  float* logits;        // [N, classes]
  int64_t num_records;  // N; 0 launches nothing
  int32_t in_features;
  int32_t num_classes;
};

// Enqueued on `stream`; nothing is allocated; capturable. Throws Error naming the argument that is wrong.
void launch(const Args& args, cudaStream_t stream);

}  // namespace tessera::kernels::output_layer
